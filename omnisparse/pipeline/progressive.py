"""The stages of a progressive compression as runs: ``method: {kind: progressive}``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.methods import (
    DenseConfig,
    DistillationConfig,
    GradualPruningConfig,
    MethodConfig,
    ProgressiveConfig,
)
from omnisparse.methods.progressive import StageModel, plan_models
from omnisparse.pipeline.stages import (
    Stage,
    Stages,
    Tell,
    begun,
    dev_rate,
    part_between,
    part_of_steps,
    place_of,
)
from omnisparse.runs.record import PART


def progressive_stages(
    config: RunConfig, out: Path | None, *, row: str | None, size: str | None, tell: Tell
) -> Stages:
    """The trainings of a progressive compression, or of one of its rivals.

    Args:
        config: With a ``ProgressiveConfig``.
        out: Folder of the last stage; the others stand beside it.
        row: Row of a comparison; None for the plan's.
        size: Size that is recorded; None for that of the method.
        tell: Told what was decided.

    Raises:
        OmnisparseError: If a size cannot be reached, before anything is trained.
    """
    method = config.method
    assert isinstance(method, ProgressiveConfig)
    if config.init is not None and method.plan != "scratch":
        raise OmnisparseError(
            f"init is {config.init}, but a progressive compression starts from its first teacher; "
            "legal: method.teacher"
        )
    row = row or row_of(method)
    size = size or str(method.size)
    data = config.data
    try:
        models = plan_models(
            method, config.model, vocab_size=data.vocab_size,
            input_dim=data.features.num_bins * data.features.stack,
        )  # fmt: skip
    except ValueError as error:
        raise OmnisparseError(f"method: {error}") from error
    last = len(models) - 1
    if method.plan == "scratch":
        final = replace(config, model=models[0].model, method=_alone(method, models[0]))
        yield Stage(config=final, out=out, row=row, size=size, is_last=True)
        return
    nets = [Path(method.teacher)] if method.teacher else []
    if not nets:
        first = replace(config, name=f"{config.name}-dense", method=DenseConfig())
        tell("first teacher: the dense net")
        nets = [(yield Stage(config=first, out=place_of(out, "dense"), row="base"))]
    for index, stage in enumerate(models):
        teacher, seen = _teacher(config, method, nets, tell)
        tell(
            f"stage {index + 1} of {len(models)}: {stage.size:,} parameters, from {nets[-1]}, "
            f"teacher {teacher}"
        )
        suffix = "" if index == last else f"stage{index + 1}"
        begin, end = part_of_steps(
            index + 1, index == last, count=len(models), last_share=method.last_share
        )
        part = part_between(config.training, begin, end)
        chosen = replace(
            begun(config, nets[-1], part, method.learning_rate),
            name="-".join(filter(None, [config.name, suffix])),
            model=stage.model,
            method=_taught(method, models, index, teacher),
        )
        run = yield Stage(
            config=chosen,
            out=place_of(out, suffix) if suffix else out,
            row=row if index == last else PART,
            size=size if index == last else None,
            is_last=index == last,
            search_evaluations=seen if index == last else 0,
        )
        nets.append(run)


def row_of(method: ProgressiveConfig) -> str:
    """The row of a comparison of a plan."""
    return "progressive" if method.plan == "progressive" else f"progressive_{method.plan}"


def _teacher(
    config: RunConfig, method: ProgressiveConfig, nets: Sequence[Path], tell: Tell
) -> tuple[Path, int]:
    """The teacher of the next stage, and how many nets were evaluated to choose it."""
    if method.plan != "progressive" or len(nets) == 1:
        return nets[0], 0
    if method.promote == "last":
        return nets[-1], 0
    rates = [dev_rate(net, config, tell) for net in nets]
    for net, rate in zip(nets, rates, strict=True):
        tell(f"{net}: {rate:.2f} % WER on the dev split")
    # Of equal ones the newest, which is the smallest.
    best = min(range(len(nets)), key=lambda index: (rates[index], -index))
    return nets[best], len(nets)


def _taught(
    method: ProgressiveConfig, models: Sequence[StageModel], index: int, teacher: Path
) -> MethodConfig:
    """Distillation; while the net is pruned from the size of the stage before, if it is."""
    distillation = DistillationConfig(
        teacher=str(teacher),
        distillation_weight=method.distillation_weight,
        label_weight=method.label_weight,
    )
    before = models[index - 1].sparsity if index else None
    alone = _alone(method, models[index], initial_sparsity=before or 0.0)
    if isinstance(alone, GradualPruningConfig):
        return replace(alone, distillation=distillation)
    return distillation


def _alone(
    method: ProgressiveConfig, stage: StageModel, *, initial_sparsity: float = 0.0
) -> DenseConfig | GradualPruningConfig:
    """Training on the labels; with pruning, if the stage is pruned."""
    if not stage.pruned:
        return DenseConfig()
    return GradualPruningConfig(
        size=str(stage.size), initial_sparsity=initial_sparsity, prunable=method.prunable,
        begin=0.0, end=0.6,
    )  # fmt: skip
