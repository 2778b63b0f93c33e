"""Widths of a dense or factored net from a number of parameters, or from a limit per layer.

A family is given by any configuration of a model: its widths (cells, projections, attention,
predictor, joiner) scale together, while depth, vocabulary and embedding stay fixed. Parameters are
counted on the net itself, built without memory for its weights, so the count is exact.

The counts of Pang et al. 2018 can be reproduced only in part (``tools/pang_sizes.py``: 80 mel bins
stacked by 3, no time reduction, 4,096 word pieces, embedding 96, attention as wide as the encoder's
output). Most dense nets are within 7 % (110 M: 106.4; 16 M: 15.0; 32 M: 30.7; 29 M: 29.8; 58 M:
53.7). But the "57 M" net of 700 and 1024 cells has 43.4 M, and the factored nets have 5 to 37 %
less than printed (32 M of 1024 p 256 and 660: 22.4; 57 M of 1400 p 256 and 1024: 36.2). Therefore
widths are computed from the number of parameters.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import torch

from omnisparse.models import ModelConfig, TransducerConfig, build_model
from omnisparse.sparsity.budget import num_parameters
from omnisparse.sparsity.layer_limit import count_layers
from omnisparse.sparsity.widths import Widths, solve_widths

WIDTHS = (
    "encoder_dim",
    "encoder_feed_forward",
    "encoder_projection",
    "decoder_dim",
    "decoder_projection",
    "predictor_dim",
    "predictor_projection",
    "attention_dim",
    "joiner_dim",
)
"""Fields that scale together, those with the most parameters first."""

PROJECTION_SHARE = 4
"""Ratio of cells to projection width if a family has no projection: 1024 to 256 in Pang et al."""


def parameter_shapes(
    config: ModelConfig, *, input_dim: int, vocab_size: int
) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the net that ``config`` describes, in model order.

    Without heads that only training uses.
    """
    with torch.device("meta"):
        model = build_model(config, input_dim=input_dim, vocab_size=vocab_size)
    return {name: tuple(parameter.shape) for name, parameter in model.shipped_parameters().items()}


def count_parameters(config: ModelConfig, *, input_dim: int, vocab_size: int) -> int:
    """Number of parameters of the net that ``config`` describes, as it is shipped."""
    with torch.device("meta"):
        model = build_model(config, input_dim=input_dim, vocab_size=vocab_size)
    return num_parameters(model.shipped_parameters())


def with_projections(
    config: ModelConfig,
    *,
    encoder: bool = True,
    decoder: bool = False,
    projection_share: float = PROJECTION_SHARE,
    decoder_share: float = 1.0,
) -> ModelConfig:
    """The factored family of a dense net; existing projections are not changed.

    Args:
        config: The dense net.
        encoder: Whether its encoder gets projections.
        decoder: Whether its decoder does.
        projection_share: Ratio of cells to projection width, at least 1.
        decoder_share: Cells of the decoder (of a transducer: the predictor) relative to the dense
            net's, above 0, while the encoder keeps its own. Pang et al. vary this and the
            projection, at an equal number of parameters (section 5.2, table 2).

    Raises:
        ValueError: If the decoder of a transducer is to be factored, or a share is out of range.
    """
    if projection_share <= 1 or decoder_share <= 0:
        raise ValueError(
            f"projection_share is {projection_share:g}, decoder_share {decoder_share:g}; legal: "
            "above 1, and above 0"
        )
    if decoder_share != 1:
        name = "decoder_dim" if hasattr(config, "decoder_dim") else "predictor_dim"
        narrowed = max(1, round(decoder_share * getattr(config, name)))
        config = replace(config, **{name: narrowed})
    changes = {}
    for part, wanted in (("encoder", encoder), ("decoder", decoder)):
        if not wanted:
            continue
        if not hasattr(config, f"{part}_projection"):
            raise ValueError(f"a {config.kind} has no {part}_projection")
        if getattr(config, f"{part}_projection") is None:
            cells = getattr(config, f"{part}_dim")
            changes[f"{part}_projection"] = max(1, min(cells - 1, int(cells // projection_share)))
    return replace(config, **changes)


def solve_model(
    family: ModelConfig,
    *,
    input_dim: int,
    vocab_size: int,
    parameters: int | None = None,
    layer_limit: int | None = None,
) -> ModelConfig:
    """The widest net of a family within a number of parameters, a limit per layer, or both.

    Args:
        family: Any member of the family.
        input_dim: Width of the features.
        vocab_size: Word pieces.
        parameters: Most parameters of the net; the result has slightly fewer (less than a step of
            its narrowest width), never more.
        layer_limit: Most parameters of a recurrent layer.

    Raises:
        ValueError: If neither is given, or the narrowest net of the family is too large.
    """
    if parameters is None and layer_limit is None:
        raise ValueError("neither a number of parameters nor a limit per layer is given")
    template: Widths = {
        item.name: getattr(family, item.name)
        for item in sorted(fields(family), key=lambda item: _order(item.name))
        if item.name in WIDTHS and getattr(family, item.name) is not None
    }
    if not has_feed_forward(family):
        template.pop("encoder_feed_forward", None)
    multiples = {"attention_dim": getattr(family, "attention_heads", 1), **_steps(family)}

    def fits(widths: Widths) -> bool:
        shapes = parameter_shapes(
            _with_widths(family, widths), input_dim=input_dim, vocab_size=vocab_size
        )
        layers = count_layers(shapes)
        if parameters is not None and sum(layer.parameters for layer in layers) > parameters:
            return False
        return layer_limit is None or all(
            layer.parameters <= layer_limit for layer in layers if layer.is_recurrent
        )

    widths = solve_widths(template, fits, multiples=multiples, fill=parameters is not None)
    if widths is None:
        smallest = _with_widths(family, {name: multiples.get(name, 1) for name in template})
        least = count_parameters(smallest, input_dim=input_dim, vocab_size=vocab_size)
        raise ValueError(
            f"no {family.kind} of this family has so few parameters; its narrowest has {least:,}"
        )
    return _with_widths(family, widths)


def has_feed_forward(config: ModelConfig) -> bool:
    """Whether the layers of the encoder have feed-forward parts, whose width is a key."""
    return isinstance(config, TransducerConfig) and config.encoder != "lstm"


def _steps(family: ModelConfig) -> Widths:
    """The number of which the encoder's width must be a multiple, where there is one."""
    if not isinstance(family, TransducerConfig) or family.encoder == "lstm":
        return {}
    # A Conformer rotates pairs of values in every head.
    heads = family.encoder_heads * (2 if family.encoder == "conformer" else 1)
    return {"encoder_dim": math.lcm(heads, family.time_reduction)}


def _with_widths(family: ModelConfig, widths: Widths) -> ModelConfig:
    """The member of the family with these widths; projections are kept narrower than the cells."""
    legal = dict(widths)
    for part in ("encoder", "decoder", "predictor"):
        if f"{part}_projection" in legal:
            legal[f"{part}_dim"] = max(legal[f"{part}_dim"], legal[f"{part}_projection"] + 1)
    return replace(family, **legal)  # type: ignore[arg-type]


def _order(name: str) -> int:
    return WIDTHS.index(name) if name in WIDTHS else len(WIDTHS)
