"""The models that runs give to a comparison, each with its column.

A supernet gives a model of every size by extraction. Any other run gives the one model that it
trained, including its zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnisparse.artifact import SMALLEST, untrained_warnings
from omnisparse.comparison.candidates import Candidate
from omnisparse.errors import OmnisparseError
from omnisparse.runs import directory as runs
from omnisparse.runs.trained_sizes import smallest_trained
from omnisparse.runs.weights import training_folder
from omnisparse.sparsity.keys import parse_block
from omnisparse.sparsity.sizes import parse_count

WHOLE = "100%"
DEFAULT_SIZES = (WHOLE, "50%", "25%", "12%")
"""Columns if no run was trained for a size."""

TOLERANCE = 0.05
"""A run belongs to a column if its non-zeros differ at most by this share, because widths are
whole numbers."""

ABOVE = 0.005
"""A run that is above its column's size by more than this share is told: it has an advantage."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model to measure: its column, and how to make it from its run."""

    candidate: Candidate
    size: str
    request: str | None
    """The size to extract, in the syntax of ``--size``; None for the run's own net."""


def plan_models(
    candidates: Sequence[Candidate], sizes: Sequence[str], warn: Callable[[str], None]
) -> list[Model]:
    """The models of all runs, each with its column.

    Args:
        candidates: The runs.
        sizes: Columns, in the syntax of ``--size``; empty for the sizes of the runs.
        warn: Called with a message about a size that a supernet cannot give, or that is smaller
            than what it trained, and about a run that is larger than its column says.

    Raises:
        OmnisparseError: If a run fits no column, or no run can give any of the sizes.
        ValueError: If a size is not understood, or two are the same.
    """
    dense = max(candidate.parameters for candidate in candidates)
    columns = list(sizes) or _sizes_of(candidates, dense)
    counts = {size: _count(size, dense) for size in columns}
    if len(set(counts.values())) < len(columns):
        raise ValueError(f"sizes {','.join(columns)}: two of them are the same size")
    models = []
    for candidate in candidates:
        if candidate.is_supernet:
            models += [Model(candidate=candidate, size=s, request=s) for s in columns]
            continue
        size = _column_of(candidate, counts)
        if size is None:
            raise OmnisparseError(
                f"{candidate.path}: its {candidate.nonzero:,} non-zeros fit none of the sizes "
                f"{', '.join(f'{size} ({count:,})' for size, count in counts.items())}"
            )
        if candidate.nonzero > (1 + ABOVE) * counts[size]:
            warn(
                f"{candidate.path}: its {candidate.nonzero:,} non-zeros are "
                f"{candidate.nonzero / counts[size] - 1:.1%} above {size} ({counts[size]:,})"
            )
        models.append(Model(candidate=candidate, size=size, request=None))
    reasons = {number: reason for number, model in enumerate(models) if (reason := _refusal(model))}
    if len(reasons) == len(models):
        raise OmnisparseError(f"no model to compare: {'; '.join(reasons.values())}")
    for reason in reasons.values():
        warn(reason)
    planned = [model for number, model in enumerate(models) if number not in reasons]
    for model in planned:
        for line in _remarks(model, counts[model.size]):
            warn(f"{model.candidate.path}: {model.size}: {line}")
    return planned


def require_trainings(models: Sequence[Model]) -> None:
    """Refuse one training twice where a row at a size averages over seeds.

    A training is there twice by other weights of its run, or by a copy of the run.

    Raises:
        OmnisparseError: If one is; the message names both runs.
    """
    cells: dict[tuple[str, str, object], Path] = {}
    for model in models:
        candidate = model.candidate
        for name in (training_folder(candidate.path), candidate.record.training.identity):
            other = cells.setdefault((candidate.row, model.size, name), candidate.path)
            if other != candidate.path:
                hint = ", or compare --by configuration, where other weights are a row of their own"
                raise OmnisparseError(
                    f"{other} and {candidate.path} are both {candidate.row} at {model.size} and "
                    "of one training, so they are not two seeds: leave one out"
                    + (hint if isinstance(name, Path) else "")
                )


def require_seeds(models: Sequence[Model]) -> None:
    """Refuse two trainings with one seed where a row at a size averages over seeds.

    Raises:
        OmnisparseError: If there are two; the message names both runs.
    """
    cells: dict[tuple[str, str, int], Path] = {}
    for model in models:
        candidate = model.candidate
        if candidate.record.seed is None:
            continue  # the seed of an old run is unknown
        cell = (candidate.row, model.size, candidate.record.seed)
        other = cells.setdefault(cell, candidate.path)
        if other != candidate.path:
            raise OmnisparseError(
                f"{other} and {candidate.path} are both {cell[0]} at {cell[1]} with seed "
                f"{cell[2]}, so their mean is not a mean over seeds: leave one out, or compare "
                "--by configuration"
            )


def _sizes_of(candidates: Sequence[Candidate], dense: int) -> list[str]:
    """The sizes for which the runs were trained, the largest first."""
    sizes: dict[int, str] = {}
    for candidate in candidates:
        if candidate.is_supernet:
            sizes.setdefault(dense, WHOLE)
        elif candidate.record.size is not None:
            sizes.setdefault(_count(candidate.record.size, dense), candidate.record.size)
        elif candidate.nonzero == dense:
            sizes.setdefault(dense, WHOLE)
        else:
            sizes.setdefault(candidate.nonzero, str(candidate.nonzero))
    if all(candidate.is_supernet for candidate in candidates):
        sizes = {_count(size, dense): size for size in DEFAULT_SIZES}
    return [sizes[count] for count in sorted(sizes, reverse=True)]


def _count(size: str, dense: int) -> int:
    parsed = parse_count(size)
    return round(parsed.value * dense) if parsed.kind == "fraction" else int(parsed.value)


def _column_of(candidate: Candidate, counts: dict[str, int]) -> str | None:
    """The column nearest to the run's non-zeros, if it is near enough."""
    size = min(counts, key=lambda size: abs(counts[size] - candidate.nonzero))
    close = abs(counts[size] - candidate.nonzero) <= TOLERANCE * counts[size]
    return size if close else None


def _refusal(model: Model) -> str | None:
    """The reason why a supernet cannot give the size; None if it can, and for other runs."""
    if model.request is None:
        return None
    try:
        _budget(model.candidate.path).solve(model.request)
    except ValueError as error:
        return f"{model.candidate.path}: {error}"
    return None


def _remarks(model: Model, column: int) -> list[str]:
    """What speaks against a model of a supernet: nobody trained the size, or it is another's."""
    if model.request is None:
        return []
    run = model.candidate.path
    budget = _budget(run)
    smallest = smallest_trained(run, budget.shapes)
    asked = budget.unprunable + budget.solve(model.request)
    lines = [] if smallest is None else untrained_warnings(asked, {SMALLEST: smallest})
    if abs(asked - column) > TOLERANCE * column:
        lines.append(
            f"its {asked:,} non-zeros are {asked / column:.2f} times those of the column, "
            f"{column:,}: its dense net is another"
        )
    return lines


def _budget(run: Path) -> Any:
    from omnisparse.sparsity.budget import Budget

    description = runs.read_description(run)
    weights, _ = runs.newest_weights(run)
    shapes = {name: tuple(weights[name].shape) for name in description.parameters}
    return Budget(shapes, description.prunable, block=parse_block(description.block))
