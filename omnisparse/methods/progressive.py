"""Compression over several stages: each student starts from the stage before, and learns from one.

The dense net is the first stage. The sizes between it and the target fall in equal ratios. Each
stage takes over what fits of the stage before (:mod:`omnisparse.methods.handover`) and trains with
the transducer loss and the divergence from a teacher on the collapsed lattice
(:mod:`omnisparse.methods.distillation`); its teacher is the best stage so far.

In the style of Rathod et al. 2022 (arXiv:2210.00169), multi-stage progressive compression of a
Conformer transducer: the teacher is replaced by the student of the stage before. Only the abstract
was readable, so everything beyond it is our choice:

Deviation: equal ratios between sizes, and half of the steps in the last stage; layers are dropped
as in arXiv:2312.09842 of the same group, and what a layer is too much is taken from the
feed-forward parts; the loss on the lattice is that of Panchapagesan et al. 2020 (arXiv:2011.06110)
with weight 1 and temperature 1; of all stages so far the teacher is the one with the lowest word
error rate on the dev split (``promote: last`` takes the newest student in any case, as the abstract
says).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from omnisparse.errors import NonNegativeFloat, PositiveFloat, PositiveInt, Share, check_ranges
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
    if config.by == "rank" and dense.ranks:
        raise ValueError("model.ranks is given, but by=rank chooses the ranks; legal: no ranks")
    whole = count_parameters(dense, **dims)
    parsed = parse_count(config.size)
    target = round(parsed.value * whole if parsed.kind == "fraction" else parsed.value)
    sizes = stage_sizes(whole, target, config.num_stages)
    if config.by == "sparsity":
        return _pruned(dense, sizes, config.prunable, dims)
    make = {"layers": _with_fewer_layers, "width": _narrower, "rank": _with_ranks}[config.by]
    models = _falling([make(dense, size, config.prunable, dims) for size in sizes])
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
    dense: ModelConfig, size: int, prunable: Sequence[str], dims: Mapping[str, int]
) -> ModelConfig:
    """The most layers that fit; with feed-forward parts one more, these made narrower to fit."""
    counts: list[int] = []
    wide: ModelConfig | None = None
    for model in _layer_family(dense):
        try:
            counts.append(count_parameters(model, **dims))
        except ValueError:
            break  # ranks name a matrix of a layer that is gone
        if counts[-1] > size:
            wide = model
            continue
        narrow = None if wide is None else _with_narrow_parts(wide, counts[-2], size, dims)
        return model if narrow is None else narrow
    narrow = None if wide is None else _with_narrow_parts(wide, counts[-1], size, dims)
    if narrow is None:
        raise ValueError(
            f"{size:,} parameters cannot be reached with fewer layers; legal: {counts[-1]:,} to "
            f"{counts[0]:,}, or by=width, rank or sparsity"
        )
    return narrow


def _with_narrow_parts(
    wide: ModelConfig, parameters: int, size: int, dims: Mapping[str, int]
) -> ModelConfig | None:
    """``wide``, of so many parameters, with feed-forward parts that fit; None if none do."""
    if not isinstance(wide, TransducerConfig) or not has_feed_forward(wide):
        return None
    width = wide.encoder_feed_forward
    if width == 1:
        return None
    # Parameters grow by the same number with every unit.
    less = count_parameters(replace(wide, encoder_feed_forward=width - 1), **dims)
    left = width - -(-(parameters - size) // (parameters - less))
    return replace(wide, encoder_feed_forward=left) if left > 0 else None


def _falling(models: Sequence[ModelConfig]) -> list[ModelConfig]:
    """The same with feed-forward parts that never grow from a stage to the next.

    A net of one layer less may have room for wider parts, which the stage before could not hand
    over. Stages between give way, so that the last net is the one that one stage would have made;
    they may be larger than was asked for.
    """
    last = models[-1]
    if not isinstance(last, TransducerConfig) or not has_feed_forward(last):
        return list(models)
    falling: list[ModelConfig] = []
    width = None
    for model in models:
        assert isinstance(model, TransducerConfig)
        own = model.encoder_feed_forward
        width = max(last.encoder_feed_forward, own if width is None else min(own, width))
        falling.append(replace(model, encoder_feed_forward=width))
    return falling


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
