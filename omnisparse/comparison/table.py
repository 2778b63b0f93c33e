"""Tables of rows by sizes: models combined to cells, and rows compared with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from omnisparse.comparison.rows import METHODS, TableRows
from omnisparse.evaluation.account import TrainingAccount, sum_known
from omnisparse.evaluation.clusters import num_speakers
from omnisparse.evaluation.confidence import (
    confidence_interval,
    mean_relative_difference,
    paired_difference,
)
from omnisparse.evaluation.wer import ErrorCounts, corpus_wer


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One model of one run on one test set."""

    row: str
    """Row of the table."""
    size: str
    """Column of the table: the requested size."""
    test: str
    """Name of the test set."""
    run: str
    parameters: int
    """Parameters of the dense net."""
    nonzero: int
    bytes: int
    counts: tuple[ErrorCounts, ...]
    """Word errors of every utterance of the test set, in its order."""
    characters: tuple[ErrorCounts, ...]
    """Character errors of every utterance of the test set, in its order."""
    account: TrainingAccount
    speakers: tuple[str | None, ...] | None = None
    """Speaker of every utterance; None if the test set names none."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers on one level, ready for JSON and CSV."""
        low, high, method = confidence_interval(self.counts, speakers=self.speakers)
        cer_low, cer_high, _ = confidence_interval(self.characters, speakers=self.speakers)
        return {
            "row": self.row,
            "size": self.size,
            "test": self.test,
            "run": self.run,
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "bytes": self.bytes,
            "wer": corpus_wer(self.counts),
            "wer_low": low,
            "wer_high": high,
            "interval": method,
            "cer": corpus_wer(self.characters),
            "cer_low": cer_low,
            "cer_high": cer_high,
            **self.account.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SummedCosts:
    """Total cost of models: sums over their trainings."""

    utterance_passes: float
    optimizer_steps: int
    device_seconds: float
    search_evaluations: int
    teacher_utterance_passes: float
    """Part of ``utterance_passes`` that teachers and initialisations took."""
    teacher_device_seconds: float
    flops: float | None = None
    """Floating-point operations; None where a training did not count them."""
    teacher_flops: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON: first the described item, then its costs."""
        whole = asdict(self)
        costs = {item.name: whole.pop(item.name) for item in fields(SummedCosts)}
        return {**whole, **costs}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell(SummedCosts):
    """A row at a size on a test set, over all seeds; rates in percent.

    The models of a supernet share their costs.
    """

    row: str
    label: str
    """Displayed name of the row."""
    size: str
    test: str
    nonzero: int
    """Most non-zeros of any seed's model."""
    bytes: int
    """Most bytes of any seed's files."""
    wer: float
    """Mean over seeds."""
    wer_low: float | None
    """Lower end of the 95 % interval over speakers, and over seeds if there are several; None if
    there is no interval."""
    wer_high: float | None
    interval: str | None
    """What the interval leaves out in turn, ``speakers`` or ``utterances``, or ``wilson``; None if
    there is no interval."""
    speakers: int
    """Speakers that the test set names; 0 if it names none."""
    cer: float
    """Character error rate, mean over seeds."""
    cer_low: float | None
    cer_high: float | None
    wer_of_seeds: tuple[float, ...]
    seeds: tuple[int | None, ...]
    commits: tuple[str | None, ...]
    difference: float | None = None
    """WER minus that of the rival row at this size, in points; None if not compared."""
    difference_low: float | None = None
    difference_high: float | None = None
    relative: float | None = None
    """``difference`` in percent of the rival's WER; None also where that is 0."""
    p_value: float | None = None
    """Two-sided p-value: the probability that equal rows differ at least this much; None if not
    compared, or for one utterance. With one seed, that of two trained nets."""
    significant: bool | None = None
    """Whether p is below 0.05, with three seeds and ten speakers or more; None if not compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCost(SummedCosts):
    """Total cost of all models of a row; every training is counted once."""

    row: str
    models: int
    """Number of models of the row, over sizes and seeds."""
    trainings: int
    """Number of their trainings, including those of teachers and initialisations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanDifference:
    """Difference of a row from the rival on a test set, over all sizes that both have."""

    row: str
    label: str
    test: str
    sizes: tuple[str, ...]
    relative: float
    """Mean over sizes of the relative difference in WER, in percent."""
    relative_low: float | None
    """Lower end of the 95 % interval; speakers and seeds are the same at every size."""
    relative_high: float | None
    p_value: float | None
    significant: bool
    """Whether p is below 0.05, with three seeds and ten speakers or more."""
    seeds: int
    """Fewest seeds of the two rows at any size."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def make_cells(measurements: Sequence[Measurement], rows: TableRows = METHODS) -> list[Cell]:
    """Combine the seeds of every cell, and compare rows with their rival.

    Args:
        measurements: What was measured.
        rows: The rows of the table.

    Returns:
        Cells by test set, row and size, the largest size first.

    Raises:
        ValueError: If the models of one test set were not measured on the same utterances.
    """
    groups = _groups(measurements)
    order = {size: number for number, size in enumerate(sizes_of(measurements))}
    cells = []
    for test, row, size in sorted(
        groups, key=lambda key: (key[0], rows.number(key[1]), order[key[2]])
    ):
        rival = groups.get((test, rows.rival, size)) if row in rows.compared else None
        cells.append(_cell(rows.labels[row], groups[test, row, size], rival))
    return cells


def mean_differences(
    measurements: Sequence[Measurement], rows: TableRows = METHODS
) -> list[MeanDifference]:
    """Compare rows with their rival over all sizes together, if they have several in common.

    Args:
        measurements: What was measured.
        rows: The rows of the table.

    Raises:
        ValueError: If the models of one test set were not measured on the same utterances.
    """
    groups = _groups(measurements)
    sizes = sizes_of(measurements)
    means = []
    for test in sorted({item.test for item in measurements}):
        for row in [row for row in rows.labels if row in rows.compared]:
            shared = [
                size
                for size in sizes
                if (test, row, size) in groups and (test, rows.rival, size) in groups
            ]
            if len(shared) < 2:
                continue
            pairs = [(groups[test, rows.rival, s], groups[test, row, s]) for s in shared]
            found = mean_relative_difference(
                [(_counts(first), _counts(second)) for first, second in pairs],
                speakers=pairs[0][0][0].speakers,
            )
            if found is None:
                continue
            means.append(
                MeanDifference(
                    row=row,
                    label=rows.labels[row],
                    test=test,
                    sizes=tuple(shared),
                    relative=found.difference,
                    relative_low=found.low,
                    relative_high=found.high,
                    p_value=found.p_value,
                    significant=found.is_significant,
                    seeds=found.seeds,
                )
            )
    return means


def _groups(
    measurements: Sequence[Measurement],
) -> dict[tuple[str, str, str], list[Measurement]]:
    """The seeds by test set, row and size, in order.

    Raises:
        ValueError: If the models of one test set were not measured on the same utterances.
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    words: dict[str, list[int]] = {}
    for item in sorted(measurements, key=_seed_of):
        groups.setdefault((item.test, item.row, item.size), []).append(item)
        said = [count.words for count in item.counts]
        if words.setdefault(item.test, said) != said:
            raise ValueError(f"{item.test}: the models were measured on different utterances")
    return groups


def _seed_of(item: Measurement) -> tuple[int, str]:
    seed = item.account.seed
    return (-1 if seed is None else seed, item.run)


def _counts(group: Sequence[Measurement]) -> list[tuple[ErrorCounts, ...]]:
    """Word errors of each seed."""
    return [item.counts for item in group]


def sizes_of(measurements: Iterable[Measurement | Cell]) -> list[str]:
    """The columns, the largest first."""
    largest: dict[str, int] = {}
    for item in measurements:
        largest[item.size] = max(item.nonzero, largest.get(item.size, 0))
    return sorted(largest, key=lambda size: (-largest[size], size))


def _cell(label: str, group: Sequence[Measurement], rival: Sequence[Measurement] | None) -> Cell:
    speakers = group[0].speakers
    letters = [item.characters for item in group]
    low, high, method = confidence_interval(*_counts(group), speakers=speakers)
    cer_low, cer_high, _ = confidence_interval(*letters, speakers=speakers)
    accounts = [item.account for item in group]
    return Cell(
        row=group[0].row,
        label=label,
        size=group[0].size,
        test=group[0].test,
        nonzero=max(item.nonzero for item in group),
        bytes=max(item.bytes for item in group),
        wer=_mean_wer(_counts(group)),
        wer_low=low,
        wer_high=high,
        interval=method,
        speakers=num_speakers(speakers),
        cer=_mean_wer(letters),
        cer_low=cer_low,
        cer_high=cer_high,
        wer_of_seeds=tuple(corpus_wer(item.counts) for item in group),
        seeds=tuple(account.seed for account in accounts),
        commits=tuple(account.commit for account in accounts),
        utterance_passes=sum(account.utterance_passes for account in accounts),
        optimizer_steps=sum(account.optimizer_steps for account in accounts),
        device_seconds=sum(account.device_seconds for account in accounts),
        search_evaluations=sum(account.search_evaluations for account in accounts),
        teacher_utterance_passes=sum(account.teacher_utterance_passes for account in accounts),
        teacher_device_seconds=sum(account.teacher_device_seconds for account in accounts),
        flops=sum_known(account.flops for account in accounts),
        teacher_flops=sum_known(account.teacher_flops for account in accounts),
        **({} if rival is None else _compared(rival, group)),
    )


def _mean_wer(seeds: Sequence[Sequence[ErrorCounts]]) -> float:
    return sum(map(corpus_wer, seeds)) / len(seeds)


def _compared(rival: Sequence[Measurement], group: Sequence[Measurement]) -> dict[str, Any]:
    """WER minus that of the rival, paired by utterance, averaged over seeds."""
    found = paired_difference(_counts(rival), _counts(group), speakers=group[0].speakers)
    wer = _mean_wer(_counts(rival))
    return {
        "difference": found.difference,
        "difference_low": found.low,
        "difference_high": found.high,
        "relative": 100.0 * found.difference / wer if wer else None,
        "p_value": found.p_value,
        "significant": found.is_significant,
    }
