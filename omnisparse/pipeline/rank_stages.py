"""Factored nets by search as runs: ``method: {kind: rank_search}`` and ``{kind: iterative}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.methods import (
    DenseConfig,
    DistillationConfig,
    IterativeConfig,
    RankSearchMethodConfig,
)
from omnisparse.methods.iterative import Rounds
from omnisparse.models.validation import RankScheme
from omnisparse.pipeline.low_rank import DenseRun, rank_total
from omnisparse.pipeline.rank_search import RankSearch, RankSearchConfig
from omnisparse.pipeline.stages import (
    Stage,
    Stages,
    Tell,
    begun,
    dev_rate,
    part_between,
    part_of,
    part_of_steps,
    place_of,
)
from omnisparse.runs.record import PART
from omnisparse.search.controller import Policy
from omnisparse.sparsity.decomposition import RankBudget


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a round decided."""

    ranks: Mapping[str, int]
    policy: Policy | None
    evaluations: int


def rank_stages(
    config: RunConfig, out: Path | None, *, row: str | None, size: str | None, tell: Tell
) -> Stages:
    """The trainings of a net whose ranks are searched, in one round or in several.

    Args:
        config: With a ``RankSearchMethodConfig`` or an ``IterativeConfig``.
        out: Folder of the last round; the others stand beside it.
        row: Row of a comparison; None for that of the method.
        size: Size that is recorded; None for the parameters that the method's size means.
        tell: Told what was decided.

    Raises:
        OmnisparseError: If the size cannot be reached, or the dense net is no run.
    """
    method = config.method
    assert isinstance(method, RankSearchMethodConfig | IterativeConfig)
    if config.model.ranks or config.init is not None:
        raise OmnisparseError(
            "model.ranks or init is given, but a search chooses the ranks and starts from the "
            "dense net; legal: method.teacher"
        )
    if method.teacher is None:
        first = replace(config, name=f"{config.name}-dense", method=DenseConfig())
        tell("the dense net")
        whole = yield Stage(config=first, out=place_of(out, "dense"), row="base")
    else:
        whole = Path(method.teacher)
    budget, total = _target(whole, str(method.size), method.scheme)
    factorable = budget.dense - budget.fixed
    planned, spare, limit = 1, 0, 0.0
    if isinstance(method, IterativeConfig) and method.rounds > 1:
        planned, spare = method.rounds, method.halvings
        rate = dev_rate(whole, config, tell)
        limit = (1 + method.tolerance) * rate
        tell(f"{whole}: {rate:.2f} % WER on the dev split; accepted up to {limit:.2f} %")
    rounds = Rounds(target=(total - budget.fixed) / factorable, planned=planned, spare=spare)
    current, policy, spent = whole, None, 0
    rejected: list[Path] = []
    while True:
        share, is_last = rounds.next()
        parameters = total if is_last else budget.fixed + int(share * factorable)
        tell(f"round {rounds.begun}: {parameters:,} parameters, from {current}")
        part = _part_of(method, rounds.begun, is_last)
        evaluations = max(1, part_of(method.evaluations, *part))
        found = _find(config, current, parameters, evaluations, policy, tell)
        policy, spent = found.policy, spent + found.evaluations
        suffix = "" if is_last else f"round{rounds.begun}"
        run = yield Stage(
            config=_retrained(config, current, found.ranks, part, whole, suffix),
            out=place_of(out, suffix) if suffix else out,
            row=(row or _row_of(method)) if is_last else PART,
            size=(size or str(total)) if is_last else None,
            is_last=is_last,
            search_evaluations=spent if is_last else 0,
            needed=tuple(rejected) if is_last else (),
        )
        if is_last:
            return
        rate = dev_rate(run, config, tell)
        accepted = rate <= limit
        tell(f"{run}: {rate:.2f} % WER on the dev split, {'' if accepted else 'not '}accepted")
        if accepted:
            rounds.accept(share)
            current = run
        else:
            rounds.halve()
            rejected.append(run)


def _target(whole: Path, size: str, scheme: RankScheme) -> tuple[RankBudget, int]:
    """What ranks of the dense net cost, and the parameters that a size means."""
    dense = DenseRun.open(whole, scheme)
    total = rank_total(dense, size)
    dense.budget.uniform(total)  # names the range where it cannot be reached
    if total >= dense.budget.dense:
        raise OmnisparseError(
            f"size {size!r} is no compression of the {dense.budget.dense:,} parameters of {whole}"
        )
    return dense.budget, total


def _part_of(
    method: RankSearchMethodConfig | IterativeConfig, number: int, is_last: bool
) -> tuple[float, float]:
    """Shares of the steps and evaluations at which a round begins and ends."""
    if isinstance(method, RankSearchMethodConfig):
        return 0.0, 1.0
    return part_of_steps(number, is_last, count=method.rounds, last_share=method.last_share)


def _row_of(method: RankSearchMethodConfig | IterativeConfig) -> str:
    if isinstance(method, IterativeConfig):
        return method.kind
    if method.controller == "uniform" and method.retrain:
        return "rank_uniform"
    return method.kind if method.retrain else "rank_search_untrained"


def _find(
    config: RunConfig, run: Path, parameters: int, evaluations: int, policy: Policy | None,
    tell: Tell,
) -> _Found:  # fmt: skip
    """Ranks of a run for so many parameters."""
    method = config.method
    assert isinstance(method, RankSearchMethodConfig | IterativeConfig)
    dense = DenseRun.open(run, method.scheme)
    if method.controller == "uniform":
        return _Found(ranks=dense.budget.uniform(parameters), policy=None, evaluations=0)
    if method.controller == "energy":
        found = dense.decompositions(dense.budget.shapes)
        ranks = dense.budget.by_energy(parameters, found)
        return _Found(ranks=ranks, policy=None, evaluations=0)
    chosen = RankSearchConfig(
        method=method.controller,
        evaluations=evaluations,
        objective=method.objective,
        utterances=method.utterances,
        scheme=method.scheme,
        seed=config.seed % 2**32,
        # Rounds that share a policy need one grid.
        tolerance=None if isinstance(method, IterativeConfig) else 0.5,
    )
    search = RankSearch(run, [str(parameters)], chosen, on_stage=tell)
    entry, policy = search.find(str(parameters), policy)
    return _Found(ranks=entry["ranks"], policy=policy, evaluations=entry["evaluations"])


def _retrained(
    config: RunConfig, start: Path, ranks: Mapping[str, int], part: tuple[float, float],
    whole: Path, suffix: str,
) -> RunConfig:  # fmt: skip
    """The factored net and its part of the steps."""
    method = config.method
    assert isinstance(method, RankSearchMethodConfig | IterativeConfig)
    one_decay = isinstance(method, IterativeConfig) and method.one_decay
    training = part_between(config.training, *part, one_decay=one_decay)
    if isinstance(method, RankSearchMethodConfig) and not method.retrain:
        training = replace(training, max_steps=0)
    stage = begun(config, start, training, method.learning_rate)
    taught: DenseConfig | DistillationConfig = DenseConfig()
    if method.distillation_weight:
        taught = DistillationConfig(
            teacher=str(whole),
            distillation_weight=method.distillation_weight,
            label_weight=method.label_weight,
        )
    return replace(
        stage,
        name="-".join(filter(None, [config.name, suffix])),
        model=replace(
            config.model, ranks=dict(ranks), rank_scheme=method.scheme if ranks else "stacked"
        ),
        method=taught,
    )
