"""A factored model of a trained run, without retraining: ``extract --low-rank, --rank-spec``."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from omnisparse.artifact import as_tensor, planned_bytes, write_artifact
from omnisparse.errors import UsageError
from omnisparse.models.factored import (
    RankUnit,
    factor_tensors,
    factored_matrices,
    gate_products,
    joined,
    multiplied,
    rank_unit,
    separated,
)
from omnisparse.models.validation import RankScheme, check_ranks
from omnisparse.pipeline.extract import contents_of
from omnisparse.runs import directory as runs
from omnisparse.runs.record import RunRecord, read_record
from omnisparse.sparsity.budget import num_parameters
from omnisparse.sparsity.decomposition import (
    Decomposition,
    RankBudget,
    decompose,
    ranks_from_json,
)
from omnisparse.sparsity.sizes import parse_size

_TIMES = re.compile(r"(\d+(?:\.\d+)?)x")

_DIGITS = 16
"""Bytes by which the header of a file may differ for each matrix, with the digits of its rank."""

FOLDER = "svd"
"""Where a run keeps the decompositions of its matrices."""


@dataclass(frozen=True)
class DenseRun:
    """A trained run whose matrices may become products."""

    run: Path
    description: runs.RunDescription
    record: RunRecord
    stored: Mapping[str, Any]
    """All tensors of the newest checkpoint, as they are there."""
    weights: Mapping[str, Tensor]
    """The same with every factored matrix multiplied out, under its own name."""
    budget: RankBudget
    """What ranks of its prunable matrices cost."""
    scheme: RankScheme = "stacked"
    """What a product is of in an LSTM layer."""
    matrices: tuple[str, ...] = ()
    """Those that ranks may change."""

    @classmethod
    def open(cls, run: Path, scheme: RankScheme = "stacked") -> DenseRun:
        """Read the newest checkpoint of a run.

        Raises:
            OmnisparseError: If it cannot be read.
        """
        description = runs.read_description(run)
        mapped, checkpoint = runs.newest_weights(run)
        products = factored_matrices(mapped)
        weights = multiplied({name: as_tensor(array) for name, array in mapped.items()})
        parameters = [name for name in description.parameters if name in weights]
        parameters += products
        matrices = [
            name
            for name in parameters
            if weights[name].dim() == 2 and name in {*description.prunable, *products}
        ]
        shapes, gates = _shapes(weights, matrices, scheme)
        total = num_parameters((name, weights[name]) for name in parameters)
        factorable = sum(rows * columns for rows, columns in shapes.values())
        return cls(
            run=run,
            description=replace(description, parameters=parameters),
            record=read_record(checkpoint),
            stored=mapped,
            weights=weights,
            budget=RankBudget(
                shapes, total - factorable, gates=gates, limits=_limits(description.model, scheme)
            ),
            scheme=scheme,
            matrices=tuple(matrices),
        )

    def unit(self, name: str) -> RankUnit:
        """What the rank of a matrix decides."""
        return _unit(self.weights, name, self.scheme)

    def products(
        self, ranks: Mapping[str, int], found: Mapping[str, Decomposition]
    ) -> dict[str, Tensor]:
        """The matrices that these ranks change, multiplied out, from their decompositions."""
        changed: dict[str, Tensor] = {}
        for name, rank in ranks.items():
            left, right = found[name].factors(rank)
            whole = left @ right if found[name].gates == 1 else gate_products(left, right)
            changed |= separated(self.weights, name, self.unit(name), whole)
        return changed

    def decompositions(
        self, names: Mapping[str, Any], on_progress: Callable[[int, int], None] = lambda a, b: None
    ) -> dict[str, Decomposition]:
        """The decompositions of matrices, kept beside the run."""
        folder = self.run / FOLDER
        units = {name: self.unit(name) for name in names}
        return decompose(
            {name: joined(self.weights, name, unit) for name, unit in units.items()},
            names, gates={name: unit.gates for name, unit in units.items()},
            folder=folder if self.scheme == "stacked" else folder / self.scheme,
            identity=self.record.training.identity, on_progress=on_progress,
        )  # fmt: skip

    def check(self, ranks: Mapping[str, int], source: Path) -> None:
        """Refuse ranks of matrices that there are not, or beyond the rank that saves.

        Raises:
            ValueError: Naming the matrix and the legal range.
        """
        for name, rank in ranks.items():
            weight = self.weights.get(name)
            if weight is None or weight.dim() != 2:
                known = ", ".join(list(self.budget.shapes)[:3])
                raise ValueError(
                    f"{source}: there is no matrix {name!r}; this net has {known}, ..."
                )
            unit = self.unit(name)
            most = min(weight.shape[0] // unit.gates, weight.shape[1])
            if rank > most:
                raise ValueError(f"{source}: rank of {name} is {rank}; from 1 to {most}")
            if unit.reader in ranks:
                raise ValueError(
                    f"{source}: {unit.reader} shares its projection with {name} in scheme joint; "
                    "leave it out"
                )

    def factored_state(self, ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """All tensors of the factored net, in the order of the dense one."""
        found = self.decompositions(ranks)
        return self._with_factors(ranks, lambda name, rank: found[name].factors(rank))

    def planned_state(self, ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """The same without contents; nothing is decomposed."""

        def empty(name: str, rank: int) -> tuple[Tensor, Tensor]:
            rows, columns = self.budget.shapes[name]
            sizes = ((rows, rank), (self.unit(name).gates * rank, columns))
            return torch.empty(sizes[0], device="meta"), torch.empty(sizes[1], device="meta")

        return self._with_factors(ranks, empty, device="meta")

    def _with_factors(
        self, ranks: Mapping[str, int], factors: Callable[[str, int], tuple[Tensor, Tensor]],
        device: str = "cpu",
    ) -> dict[str, Tensor]:  # fmt: skip
        state = {name: weight.to(device) for name, weight in self.weights.items()}
        made: dict[str, dict[str, Tensor]] = {}
        for name, rank in ranks.items():
            unit, dtype = self.unit(name), self.weights[name].dtype
            found = factor_tensors(state, name, unit, *factors(name, rank))
            made[name] = {part: value.to(dtype).contiguous() for part, value in found.items()}
            if unit.reader is not None:
                made[unit.reader] = {}
        return {
            part: value
            for name, weight in state.items()
            for part, value in made.get(name, {name: weight}).items()
        }


def _limits(model: Mapping[str, Any], scheme: RankScheme) -> dict[str, int]:
    """Ranks that a net has already, in the same scheme."""
    same = model.get("rank_scheme", "stacked") == scheme
    return dict(model.get("ranks") or {}) if same else {}


def _unit(weights: Mapping[str, Tensor], name: str, scheme: RankScheme) -> RankUnit:
    return rank_unit(name, {known: tuple(weights[known].shape) for known in weights}, scheme)


def _shapes(
    weights: Mapping[str, Tensor], matrices: Sequence[str], scheme: RankScheme
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Shape of what each rank decides, and gates; what shares a projection counts once."""
    shapes = {name: (weights[name].shape[0], weights[name].shape[1]) for name in matrices}
    gates = {}
    for name in matrices:
        unit = _unit(weights, name, scheme)
        if unit.gates > 1:
            gates[name] = unit.gates
        if unit.reader is None:
            continue
        rows, columns = shapes.pop(name)
        if unit.reader in shapes:  # else it stays whole, and so does this matrix
            shapes[name] = (rows + unit.copies * shapes.pop(unit.reader)[0], columns)
    return shapes, gates


def rank_total(dense: DenseRun, size: str, *, precision: str = "fp32") -> int:
    """Parameters of the whole net that a size means.

    Args:
        dense: The net.
        size: ``16M`` parameters, ``25%`` of the dense net's, or ``3x``: a third of the weights that
            may be factored, and all of the others; ``2MB`` of the files written.
        precision: Of these files.

    Raises:
        UsageError: If it is none of these; names the legal forms.
    """
    if _TIMES.fullmatch(size.strip()):
        budget = dense.budget
        return budget.fixed + int((budget.dense - budget.fixed) / parse_times(size))
    parsed = parse_size(size)
    if parsed.kind == "bytes":
        return _total_of_bytes(dense, int(parsed.value), precision)
    budget = dense.budget
    total = round(parsed.value * (budget.dense if parsed.kind == "fraction" else 1))
    if not budget.least <= total <= budget.dense:
        raise ValueError(
            f"size {size!r} cannot be reached by low rank; legal: {budget.least:,} (rank 1 in "
            f"every matrix) to {budget.dense:,} parameters"
        )
    return total


def parse_times(size: str) -> float:
    """The number of ``3x``.

    Raises:
        UsageError: If it is anything else, or below 1.
    """
    match = _TIMES.fullmatch(size.strip())
    if not match or float(match[1]) < 1:
        raise UsageError(f"size {size!r} is no compression; legal: 1x or more, such as 3x")
    return float(match[1])


def _total_of_bytes(dense: DenseRun, limit: int, precision: str) -> int:
    """The most parameters whose file is within so many bytes, whatever the ranks.

    Raises:
        UsageError: If no ranks, or the dense net, have so few; names the range.
    """
    budget = dense.budget
    least = sum(min(budget.cost(name, 1), budget.cost(name, None)) for name in budget.shapes)
    low, high = budget.fixed + least, budget.dense
    # The header of another allocation may have a few more digits.
    room = limit - _DIGITS * len(budget.shapes)

    width = 4 if precision == "fp32" else 2  # of int8 one and its scales

    def size_of(total: int) -> int:
        # Uniform ranks are whole numbers and leave some parameters unused; others may use them.
        ranks = budget.uniform(total)
        unused = width * (total - budget.parameters(ranks))
        return planned_size(dense, ranks, precision=precision) + unused

    smallest, largest = size_of(low), size_of(high)
    if not smallest <= room or limit >= largest:
        raise UsageError(
            f"{limit:,} bytes cannot be reached by low rank; legal: "
            f"{smallest + _DIGITS * len(budget.shapes):,} to {largest:,} bytes"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if size_of(middle) <= room:
            low = middle
        else:
            high = middle
    return low


def extract_low_rank(
    run: Path | None = None,
    *,
    size: str | None = None,
    rank_spec: Path | None = None,
    scheme: RankScheme = "stacked",
    out: Path | None = None,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Write a model whose matrices are products of two factors, from a trained run.

    Args:
        run: Run directory; None for ``runs/latest``.
        size: ``16M`` parameters of the factored model, or ``25%`` of the dense net's: one ratio of
            the break-even rank for every prunable matrix, as large as fits.
        rank_spec: JSON file with the rank of each matrix that is factored, and the scheme where it
            is not ``stacked``. One of the two is given.
        scheme: What a product is of in an LSTM layer; with ``size``.
        out: Artifact directory; None for a folder in ``<run>/extracted``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.

    Returns:
        As :func:`omnisparse.pipeline.extract.extract`, and ``ranks``.

    Raises:
        ValueError: If the request cannot be met; the message names the legal range.
        OmnisparseError: If the run cannot be read.
    """
    started = time.perf_counter()
    if (size is None) == (rank_spec is None):
        raise UsageError("a factored model is of one size or one rank spec; give one of the two")
    run = runs.latest_run() if run is None else run
    if size is not None:
        dense = DenseRun.open(run, scheme)
        ranks = dense.budget.uniform(rank_total(dense, size, precision=precision))
        name = f"{size.strip().replace('%', 'pct')}-low-rank"
        name += "" if scheme == "stacked" else f"-{scheme}"
    else:
        assert rank_spec is not None
        try:
            ranks, named = ranks_from_json(rank_spec.read_text(encoding="utf-8-sig"))
            check_ranks(ranks, named)
        except (UnicodeDecodeError, ValueError) as error:
            raise ValueError(f"{rank_spec}: {error}") from error
        dense = DenseRun.open(run, cast(RankScheme, named))
        dense.check(ranks, rank_spec)
        digest = hashlib.sha256(repr(sorted(ranks.items())).encode()).hexdigest()[:8]
        name = f"{rank_spec.stem}-{digest}"
    name += "" if precision == "fp32" else f"-{precision}"
    return {
        **write_factored(dense, ranks, out or run / "extracted" / name, precision=precision),
        "seconds": time.perf_counter() - started,
    }


def write_factored(
    dense: DenseRun, ranks: Mapping[str, int], out: Path, *, precision: str = "fp32"
) -> dict[str, Any]:
    """Write the artifact of a factored net.

    Args:
        dense: Where it comes from.
        ranks: Rank of every matrix that becomes a product.
        out: Artifact directory.
        precision: See :func:`extract_low_rank`.

    Returns:
        The counts of what was written, and ``ranks``.
    """
    with torch.no_grad():
        state = dense.factored_state(ranks)
    info = write_artifact(out, state=state, **_contents(dense, ranks, state, precision))
    return {**info.to_dict(), "ranks": dict(ranks), "warnings": []}


def planned_size(dense: DenseRun, ranks: Mapping[str, int], *, precision: str = "fp32") -> int:
    """Bytes of the files that :func:`write_factored` would write; nothing is decomposed."""
    state = dense.planned_state(ranks)
    return planned_bytes(state, {}, **_contents(dense, ranks, state, precision))


def _contents(
    dense: DenseRun, ranks: Mapping[str, int], state: Mapping[str, Tensor], precision: str
) -> dict[str, Any]:
    """All of the artifact of a factored net but its tensors."""
    buffers = set(dense.weights) - set(dense.description.parameters)
    contents = replace(
        contents_of(
            dense.run,
            runs.read_description(dense.run),  # of the tensors as they are stored
            dense.stored,
            dense.record,
            block=(1, 1),
            precision=precision,
        ),
        model={
            **dense.description.shipped_model,
            "ranks": dict(ranks),
            "rank_scheme": dense.scheme if ranks else "stacked",
        },
        dense_parameters=num_parameters((n, state[n]) for n in state if n not in buffers),
        buffers=[name for name in state if name in buffers],
        prunable=[],
    )
    return vars(contents)
