"""Compression over several stages: each student starts from the stage before, and learns from one.

The dense net is the first stage. The sizes between it and the target fall in equal ratios. Each
stage takes over what fits of the stage before (:mod:`omnisparse.methods.handover`) and trains with
the transducer loss and the divergence from a teacher on the collapsed lattice
(:mod:`omnisparse.methods.distillation`); its teacher is the best stage so far.

In the style of Rathod et al. 2022 (arXiv:2210.00169), multi-stage progressive compression of a
Conformer transducer: the teacher is replaced by the student of the stage before. Only the abstract
was readable, so everything beyond it is our choice:

Deviation: equal ratios between sizes, and half of the steps in the last stage. Layers are dropped
as in arXiv:2312.09842 of the same group, but only where the feed-forward parts would otherwise be
narrower than a share of the dense net's: on a Conformer they can be missed, and a layer cannot
(``benchmarks/compression_in_stages_cpu_2026-11.md``). The loss on the lattice is that of
Panchapagesan et al. 2020 (arXiv:2011.06110) with weight 1 and temperature 1. Of all stages so far
the teacher is the one with the lowest word error rate on the dev split (``promote: last`` takes the
newest student in any case, as the abstract says).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from omnisparse.errors import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
    check_ranges,
)
from omnisparse.methods.widths import count_parameters, has_feed_forward, solve_model
from omnisparse.models import LasConfig, ModelConfig, TransducerConfig, build_model
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.decomposition import RankBudget
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.sizes import parse_count

By = Literal["layers", "width", "rank", "sparsity"]
Plan = Literal["progressive", "fixed", "direct", "scratch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressiveConfig:
    """Stages of a compression, and what each learns from.

    The run's ``training`` is shared by all stages. Its ``model`` is the first teacher's.
    """

    kind: Literal["progressive"] = "progressive"
    """Selects this method."""
    size: str | int = "40%"
    """Parameters of the last stage, as ``--size`` takes them: ``16M`` or a share of the dense
    net's."""
    stages: PositiveInt = 3
    """Students between the dense net and the end, the last included."""
    last_share: Share = 0.5
    """Share of the steps that the last stage takes; those before take equal parts of the rest."""
    by: Literal["layers", "width", "rank", "sparsity"] = "layers"
    """What falls from stage to stage: layers (and the width of feed-forward parts), all widths,
    the ranks of matrices that are products, or non-zero weights."""
    feed_forward_share: Share = 0.125
    """With ``by: layers``: width of the feed-forward parts, as a share of the dense net's, below
    which a layer is dropped rather than the parts made narrower; 1 drops layers first."""
    plan: Literal["progressive", "fixed", "direct", "scratch"] = "progressive"
    """``progressive``, or one of its rivals with as many steps: ``fixed``: every stage learns from
    the first teacher; ``direct``: one stage only; ``scratch``: one stage that neither starts from
    the dense net nor learns from it."""
    promote: Literal["best", "last"] = "best"
    """Teacher of a stage with ``progressive``: of all stages so far that with the lowest word error
    rate on the dev split, or the stage before."""
    teacher: str | None = None
    """Run or artifact directory of the dense net; null trains it first, with the whole
    ``training``."""
    distillation_weight: NonNegativeFloat = 1.0
    """Weight of the divergence from the teacher."""
    label_weight: NonNegativeFloat | None = None
    """Weight of the loss on the transcript; null takes 0 for LAS and 1 for a transducer."""
    dropout: Probability | None = None
    """Dropout of all nets behind the dense one, which need less; null takes that of ``model``."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate of stages that start from trained weights; null takes that of
    ``training``."""
    prunable: tuple[str, ...] = ()
    """Regular expressions of the matrices that lose ranks or weights; none chooses as the sandwich
    does: LSTM and linear matrices but embeddings, attention and the output."""

    def __post_init__(self) -> None:
        """Check ranges; the size is checked against the model by :func:`plan_models`."""
        parse_count(self.size)
        check_ranges(self)

    @property
    def num_stages(self) -> int:
        """Stages that are trained behind the dense net."""
        return 1 if self.plan in ("direct", "scratch") else self.stages


@dataclass(frozen=True, kw_only=True, slots=True)
class StageModel:
    """The net of one stage."""

    model: ModelConfig
    size: int
    """Non-zero parameters at its end."""
    sparsity: float | None = None
    """Of the prunable weights, if the net is pruned to this size; else None."""

    @property
    def pruned(self) -> bool:
        """Whether the net is pruned; else it has ``size`` parameters."""
        return self.sparsity is not None


def stage_sizes(dense: int, target: int, stages: int) -> list[int]:
    """Parameters of each stage, in equal ratios from ``dense`` to ``target``, which is the last.

    Raises:
        ValueError: If ``target`` is not below ``dense``.
    """
    if not 0 < target < dense:
        raise ValueError(
            f"{target:,} parameters are no compression; legal: above 0, below the dense net's "
            f"{dense:,}"
        )
    share = target / dense
    return [*(round(dense * share ** (k / stages)) for k in range(1, stages)), target]


def plan_models(
    config: ProgressiveConfig, dense: ModelConfig, *, input_dim: int, vocab_size: int
) -> list[StageModel]:
    """The nets of all stages behind the dense one, the largest first.

    Args:
        config: Size, number of stages and what falls.
        dense: The first teacher.
        input_dim: Width of the features.
        vocab_size: Word pieces.

    Raises:
        ValueError: If a size cannot be reached; names the legal range.
    """
    dims = {"input_dim": input_dim, "vocab_size": vocab_size}
    if config.dropout is not None:
        dense = replace(dense, dropout=config.dropout)
    if config.by == "rank" and dense.ranks:
        raise ValueError("model.ranks is given, but by=rank chooses the ranks; legal: no ranks")
    whole = count_parameters(dense, **dims)
    parsed = parse_count(config.size)
    target = round(parsed.value * whole if parsed.kind == "fraction" else parsed.value)
    sizes = stage_sizes(whole, target, config.num_stages)
    if config.by == "sparsity":
        return _pruned(dense, sizes, config.prunable, dims)
    if config.by == "layers":
        models = _with_fewer_layers(config, dense, sizes, dims)
    else:
        make = {"width": _narrower, "rank": _with_ranks}[config.by]
        models = _falling(dense, [make(dense, size, config.prunable, dims) for size in sizes])
    return [StageModel(model=model, size=count_parameters(model, **dims)) for model in models]


def _on_meta(model: ModelConfig, dims: Mapping[str, int]) -> Any:
    with torch.device("meta"):
        return build_model(model, **dims)


def _pruned(
    dense: ModelConfig, sizes: Sequence[int], prunable: Sequence[str], dims: Mapping[str, int]
) -> list[StageModel]:
    """The dense net at every size, after a check that masks reach them."""
    net = _on_meta(dense, dims)
    budget = Budget.of(net, find_prunable(net, include=prunable))
    return [
        StageModel(
            model=dense, size=size, sparsity=1 - budget.solve(size) / budget.prunable_parameters
        )
        for size in sizes
    ]


def _narrower(
    dense: ModelConfig, size: int, prunable: Sequence[str], dims: Mapping[str, int]
) -> ModelConfig:
    return solve_model(dense, parameters=size, **dims)


def _with_ranks(
    dense: ModelConfig, size: int, prunable: Sequence[str], dims: Mapping[str, int]
) -> ModelConfig:
    """One ratio of the break-even rank for all matrices."""
    net = _on_meta(dense, dims)
    names = set(find_prunable(net, include=prunable))
    shapes = {n: (p.shape[0], p.shape[1]) for n, p in net.named_parameters() if n in names}
    factorable = sum(rows * columns for rows, columns in shapes.values())
    budget = RankBudget(shapes, count_parameters(dense, **dims) - factorable)
    return replace(dense, ranks=budget.uniform(size))


def _with_fewer_layers(
    config: ProgressiveConfig, dense: ModelConfig, sizes: Sequence[int], dims: Mapping[str, int]
) -> list[ModelConfig]:
    """Nets of ever fewer layers and narrower feed-forward parts, which can hand over.

    Stages between give way to the last, which is the net that one stage would make: their parts
    are never narrower than its own, so they may be larger than was asked for. A stage for which
    there is no net of its own is left out.
    """
    family = _layer_family(dense)
    last = _fewer_layers(config, family, sizes[-1], dims)
    least = _width(last) if has_feed_forward(dense) else None
    found: list[ModelConfig] = []
    before = dense
    for size in sizes[:-1]:
        between = [
            _with_width(model, _width(before))
            for model in family
            if last.encoder_layers <= model.encoder_layers <= before.encoder_layers
        ]
        model = _fewer_layers(config, between, size, dims, least=least)
        if model not in (before, last):
            found.append(model)
            before = model
    return [*found, last]


def _fewer_layers(
    config: ProgressiveConfig,
    family: Sequence[ModelConfig],
    size: int,
    dims: Mapping[str, int],
    *,
    least: int | None = None,
) -> ModelConfig:
    """The most layers whose feed-forward parts need not be narrower than the configured share.

    If whole parts leave room, one layer more with narrower parts is taken where it is nearer.

    Args:
        config: Has this share.
        family: Nets with ever fewer layers, the most first.
        size: Parameters.
        dims: Of features and word pieces.
        least: Narrowest legal feed-forward parts; with these a net may be larger than ``size``.
            None: never.

    Raises:
        ValueError: If no net is so small; names the legal range.
    """
    found: list[tuple[ModelConfig, int]] = []
    counts: list[int] = []
    for model in family:
        try:
            counts.append(count_parameters(model, **dims))
        except ValueError:
            break  # ranks name a matrix of a layer that is gone
        found.append((model, _fitting_width(model, counts[-1], size, dims)))
    legal = [index for index, (_, width) in enumerate(found) if width >= (least or 1)]
    if not legal:
        smallest = count_parameters(_with_width(found[-1][0], 1), **dims)
        raise ValueError(
            f"{size:,} parameters cannot be reached with fewer layers; legal: {smallest:,} to "
            f"{counts[0]:,}, or by=width, rank or sparsity"
        )
    enough = config.feed_forward_share * _width(family[0])
    index = next((index for index in legal if found[index][1] >= enough), legal[-1])
    model, width = found[index]
    chosen = _with_width(model, width)
    if index and width == _width(model):
        more, narrow = found[index - 1]
        if (narrow := max(narrow, least or 0)) > 0:
            nets = (chosen, _with_width(more, narrow))
            return min(nets, key=lambda net: abs(math.log(count_parameters(net, **dims) / size)))
    return chosen


def _falling(dense: ModelConfig, models: Sequence[ModelConfig]) -> list[ModelConfig]:
    """The same with feed-forward parts that never grow from a net to the next.

    A narrower net may have room for wider parts, which the net before could not hand over. Stages
    between give way to the last, so they may be larger than was asked for.
    """
    least = min(_width(models[-1]), _width(dense))
    falling, before = [], _width(dense)
    for model in models:
        before = max(least, min(_width(model), before))
        falling.append(_with_width(model, before))
    return falling


def _width(model: ModelConfig) -> int:
    """Width of the feed-forward parts; 1 where there are none."""
    if isinstance(model, TransducerConfig) and has_feed_forward(model):
        return model.encoder_feed_forward
    return 1


def _with_width(model: ModelConfig, width: int) -> ModelConfig:
    """``model`` with feed-forward parts of this width, if it has such parts."""
    if isinstance(model, TransducerConfig) and has_feed_forward(model):
        return replace(model, encoder_feed_forward=width)
    return model


def _fitting_width(model: ModelConfig, parameters: int, size: int, dims: Mapping[str, int]) -> int:
    """Widest feed-forward parts with which ``model``, of so many parameters, fits; 0 for none."""
    width = _width(model)
    if parameters <= size or width == 1:
        return width if parameters <= size else 0
    # Parameters grow by the same number with every unit.
    less = count_parameters(_with_width(model, width - 1), **dims)
    return max(0, width - -(-(parameters - size) // (parameters - less)))


def _layer_family(dense: ModelConfig) -> list[ModelConfig]:
    """``dense`` with ever fewer layers; those of predictor or decoder fall in proportion."""
    upper = "decoder_layers" if isinstance(dense, LasConfig) else "predictor_layers"
    family: list[ModelConfig] = []
    for count in range(dense.encoder_layers, 0, -1):
        others = getattr(dense, upper)
        kept = others and max(1, round(others * count / dense.encoder_layers))
        try:
            family.append(replace(dense, encoder_layers=count, **{upper: kept}))
        except ValueError:
            break  # the time reduction needs so many
    return family
