"""A model of any size from a trained run, without retraining: ``omnisparse extract``."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnisparse.artifact import (
    Contents,
    Extraction,
    planned_bytes,
    untrained_warnings,
    write_artifact,
    write_extractions,
)
from omnisparse.errors import UsageError
from omnisparse.pipeline.folder_names import folder_name
from omnisparse.pipeline.kept import nearest_kept
from omnisparse.runs import directory as runs
from omnisparse.runs.record import RunRecord, read_record
from omnisparse.runs.trained_sizes import source_of
from omnisparse.search.front import FrontEntry, read_front
from omnisparse.sparsity.allocation import Allocator, Scope
from omnisparse.sparsity.arrays import Array, count_nonzero
from omnisparse.sparsity.budget import Budget, num_parameters
from omnisparse.sparsity.keys import Norm, parse_block
from omnisparse.sparsity.sizes import Size, parse_size, parse_sparsity, seconds_of
from omnisparse.sparsity.space import SubnetSpec


def extract(
    run: Path | str | None = None,
    *,
    size: str | None = None,
    sparsity: float | None = None,
    spec: Path | str | None = None,
    front: Path | str | None = None,
    out: Path | str | None = None,
    precision: str = "fp32",
    block: str | None = None,
    norm: Norm = "l1",
    scope: Scope = "layer",
    floor: float = 0.0,
    format: str = "bitmask",
    times: bool = False,
    wer: Mapping[str, Any] | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a deployable model of any size from a trained run.

    Args:
        run: Run directory; None for ``runs/latest``.
        size: ``16M`` non-zeros of the whole model, ``20MB``/``20MiB`` bytes of the files, ``25%``
            of the dense net's parameters.
        sparsity: Share of the prunable weights that becomes zero, in [0, 1).
        spec: JSON file with a sparsity for each matrix. Exactly one of these three is given.
        front: With ``size``: file (or folder) of a search; its spec of that size is used. For a
            size in bytes, or a time such as ``5ms``, the best spec that fits is used.
        out: Artifact directory; None for ``<run>/extracted/<request>``, such as ``25pct`` or
            ``25pct-int8-8x1``: options that differ from the default are in the name. If a file
            gives the sparsities, their digest is in the name, so that two files have two folders.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        block: ``1x1``, ``8x1``, ``16x1`` or ``4x4``: weights (outputs by inputs) that are kept or
            dropped together; None for the block shape of the training.
        norm: Score of a block: ``l1``, the sum of its magnitudes, or ``l2``, of their squares.
        scope: How matrices share the total: ``layer`` (the same sparsity in each, as in the
            training of a supernet), ``global`` (one magnitude ranking), ``lamp``.
        floor: Least share of its weights that any matrix keeps, in [0, 1]; at least one weight (or
            block) always stays.
        format: ``bitmask``, or ``dense`` for loaders that do not support masks.
        times: Keep, and count, the CTC layer that only training needs: it tells the word times of
            a LAS.
        wer: Known word error rates in percent by test set, for the model card.
        warn: Called with each line of ``warnings`` in the result.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds``, ``warnings`` (a size that was not
        trained, a run with fewer non-zero weights than requested), the counts of
        ``SizeReport.summary``, and ``layers`` as in :func:`omnisparse.runs.inspect`. All are counts
        of the files, so a kept weight that is exactly zero is not counted.

    Raises:
        ValueError: If the request cannot be met; the message names the legal range.
        OmnisparseError: If the run cannot be read.
    """
    started = time.perf_counter()
    request = _Request(size=size, sparsity=sparsity, spec=_path(spec), front=_path(front))
    request.check(block=block, norm=norm, scope=scope, floor=floor)
    asked = _path(run) or runs.latest_run()
    run = nearest_kept(asked, size)
    description = runs.read_description(run)

    def place(name: str) -> Path:
        return _path(out) or asked / "extracted" / folder_name(
            name, description, precision=precision, block=block, norm=norm, scope=scope,
            floor=floor, format=format, times=times,
        )  # fmt: skip

    if description.model.get("ranks") and not description.prunable:
        wanted = parse_size(size or "0%")
        if sparsity != 0 and not (wanted.kind == "fraction" and wanted.value == 1):
            raise UsageError(
                f"all matrices of {run} are products of factors, none can be pruned; legal: "
                "--size 100%, or --low-rank with a smaller size"
            )
        return write_own_net(run, place("100pct"), precision=precision, times=times, wer=wer)
    weights, checkpoint = runs.newest_weights(run, with_heads=times)
    description = description.with_heads() if times else description
    shapes = {name: tuple(weights[name].shape) for name in description.parameters}
    # Another block is asked of all matrices.
    single = description.single if block is None else []
    shape = parse_block(description.block if block is None else block)
    budget = Budget(shapes, description.prunable, floor=floor, block=shape)
    record = read_record(checkpoint)
    contents = contents_of(
        run, description, weights, record, block=shape, single=single, precision=precision,
        format=format, wer=wer,
    )  # fmt: skip
    allocator = Allocator(weights, scope, floor, shape, norm, names=budget.prunable)
    entry = request.entry(budget, record, weights, contents)
    if entry is not None:
        contents = searched(contents, entry)
    kept = request.kept(budget, allocator, weights, contents, entry)
    extraction = Extraction(
        out=place(request.name(kept)),
        num_kept=kept,
        contents=replace(contents, spec=SubnetSpec.from_counts(kept, budget.prunable)),
    )
    (info,) = write_extractions(weights, [extraction], norm=norm)
    warnings = untrained_warnings(info.nonzero, contents.source)
    if info.nonzero < budget.unprunable + sum(kept.values()):  # otherwise no weight is missing
        warnings += missing_warnings({n: count_nonzero(weights[n]) for n in kept}, kept, budget)
    for line in warnings:
        warn(line)
    return {**info.to_dict(), "warnings": warnings, "seconds": time.perf_counter() - started}


def write_own_net(
    run: Path, out: Path, *, precision: str = "fp32", times: bool = False,
    wer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the net of a run as it is, its factors as factors.

    Args:
        run: Run directory.
        out: Artifact directory.
        precision: This and the following as of :func:`extract`.
        times: Keep the CTC layer.
        wer: For the card.

    Returns:
        As :func:`extract`.

    Raises:
        OmnisparseError: If the run cannot be read.
    """
    started = time.perf_counter()
    weights, checkpoint = runs.newest_weights(run, with_heads=times)
    description = runs.read_description(run)
    contents = contents_of(
        run, description.with_heads() if times else description, weights, read_record(checkpoint),
        block=(1, 1), precision=precision, wer=wer,
    )  # fmt: skip
    info = write_artifact(out, state=weights, **vars(replace(contents, prunable=[])))
    return {**info.to_dict(), "warnings": [], "seconds": time.perf_counter() - started}


def missing_warnings(
    held: Mapping[str, int], asked: Mapping[str, int], budget: Budget
) -> list[str]:
    """Warning about matrices with fewer non-zero weights than requested, as in a pruned net.

    Args:
        held: Existing non-zero weights, by matrix.
        asked: Weights to keep, by matrix.
        budget: Budget of the net.

    Returns:
        One line, if there are such matrices.
    """
    there = sum(min(count, held[name]) for name, count in asked.items())
    wanted = sum(asked.values())
    if there >= wanted:
        return []
    return [
        f"asked for {budget.unprunable + wanted:,} non-zero parameters, the run holds "
        f"{budget.unprunable + there:,} of them: it was pruned, or has weights of exactly zero"
    ]


def _path(place: Path | str | None) -> Path | None:
    return None if place is None else Path(place)


def contents_of(
    run: Path,
    description: runs.RunDescription,
    weights: Mapping[str, Array],
    record: RunRecord,
    *,
    block: tuple[int, int],
    single: Sequence[str] = (),
    precision: str = "fp32",
    format: str = "bitmask",
    wer: Mapping[str, Any] | None = None,
) -> Contents:
    """Everything in a run's artifact except its spec and weights.

    Args:
        run: The run.
        description: Its net.
        weights: Its weights; only names and shapes are read.
        record: The record in their checkpoint.
        block: Block shape of the masks.
        single: Names of the matrices whose masks are of single weights nevertheless.
        precision: See :func:`extract`.
        format: See :func:`extract`.
        wer: See :func:`extract`.

    Raises:
        OmnisparseError: If the run cannot be read.
    """
    return Contents(
        model=description.shipped_model,
        features=description.features,
        tokenizer=(run / "tokenizer.model").read_bytes(),
        tokens_txt=(run / "tokens.txt").read_text(encoding="utf-8"),
        dense_parameters=num_parameters((n, weights[n]) for n in description.parameters),
        prunable=description.prunable,
        source=source_of(run, record, {n: tuple(weights[n].shape) for n in description.parameters}),
        precision=precision,
        block=block,
        single=single,
        format=format,
        wer=wer,
        buffers=[name for name in weights if name not in set(description.parameters)],
    )


def searched(contents: Contents, entry: FrontEntry) -> Contents:
    """Contents of the artifact of a subnet from a search; its cost includes the search."""
    source = dict(contents.source)
    source["search_evaluations"] = source.get("search_evaluations", 0) + entry.evaluations
    return replace(contents, source=source)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The request of an extraction."""

    size: str | None
    sparsity: float | None
    spec: Path | None
    front: Path | None

    def __post_init__(self) -> None:
        if self.front is not None and self.size is None:
            raise UsageError("front is given, but no size to take from it")
        given = [v for v in (self.size, self.sparsity, self.spec) if v is not None]
        if len(given) != 1:
            raise UsageError("exactly one of size, sparsity and spec must be given")

    def name(self, kept: Mapping[str, int]) -> str:
        """What was asked for as a part of a folder's name.

        Args:
            kept: Weights that each matrix keeps; in the name if they come from a file.
        """
        if self.size is not None:
            name = self.size.strip().replace("%", "pct")
            name = name if self.front is None else f"{name}-searched"
        else:
            name = f"sparsity-{self.sparsity}" if self.spec is None else self.spec.stem
        if self.front is not None or self.spec is not None:
            name += "-" + hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()[:8]
        return name

    def check(self, *, block: str | None, norm: str, scope: str, floor: float) -> None:
        """Refuse options that choose weights if a spec has already chosen them.

        Raises:
            UsageError: If there is such an option.
        """
        named = "front" if self.front is not None else "spec"
        if self.front is None and self.spec is None:
            return
        if scope != "layer":
            raise UsageError(
                f"scope {scope} is not legal with a {named}, which gives all sparsities"
            )
        if self.front is not None and (block is not None or norm != "l1" or floor):
            raise UsageError(
                "block, norm and floor are not legal with a front, which was searched without them"
            )

    def entry(
        self, budget: Budget, record: RunRecord, weights: Mapping[str, Array], contents: Contents
    ) -> FrontEntry | None:
        """The front's entry of the size; None if no front is given."""
        if self.front is None or self.size is None:
            return None
        front = read_front(self.front)
        if front.identity != record.training.identity:
            raise ValueError(
                f"{self.front}: searched in other weights ({front.identity}) than those of "
                f"{record.training.run} ({record.training.identity}); search again, or use only "
                "the sparsities: --spec with a file of the folder specs beside it"
            )
        seconds = seconds_of(self.size)
        if seconds is not None:
            return front.pick_time(seconds)
        size = budget.parse(self.size)
        if size.kind != "bytes":
            return front.pick(budget.unprunable + budget.solve(size))
        path, state = self.front, dict(weights)

        def bytes_of(entry: FrontEntry) -> int:
            spec = SubnetSpec.from_counts(_checked(entry.spec, budget, path), budget.prunable)
            told = replace(searched(contents, entry), spec=spec)
            return planned_bytes(state, spec.counts(budget.prunable), **vars(told))

        return front.pick_bytes(math.floor(size.value), bytes_of)

    def kept(
        self,
        budget: Budget,
        allocator: Allocator,
        weights: Mapping[str, Array],
        contents: Contents,
        entry: FrontEntry | None,
    ) -> dict[str, int]:
        """Number of weights that each prunable matrix keeps."""
        if self.spec is not None:
            return _checked(_read_spec(self.spec), budget, self.spec)
        if entry is not None and self.front is not None:
            return _checked(entry.spec, budget, self.front)
        size = parse_sparsity(self.sparsity) if self.sparsity is not None else None
        size = size or budget.parse(self.size or "")
        if size.kind == "bytes":
            return solve_bytes(budget, size, weights, contents, allocator)
        return allocator.counts(budget.solve(size))


def _checked(spec: SubnetSpec, budget: Budget, source: Path) -> dict[str, int]:
    """Kept weights of a spec from a file; a spec that keeps too little of a matrix is refused."""
    try:
        kept = spec.counts(budget.prunable)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    dead = [name for name, count in kept.items() if count < budget.floors[name]]
    if dead:
        raise ValueError(
            f"{source}: keeps too little of {', '.join(dead)}; legal: a sparsity that leaves each "
            f"matrix a weight (or block), and a share of {budget.floor:g}"
        )
    return kept


def solve_bytes(
    budget: Budget,
    size: Size,
    state: Mapping[str, Array],
    contents: Contents,
    allocator: Allocator,
) -> dict[str, int]:
    """Kept weights of the largest model whose files fit.

    Args:
        budget: Budget of the net.
        size: A request in bytes.
        state: Names, shapes and dtypes of all tensors.
        contents: Contents of the artifact beside its weights.
        allocator: Divides a total among the matrices.

    Raises:
        ValueError: If no model fits; the message names the legal range.
    """
    state = dict(state)

    def size_of(kept: Mapping[str, int]) -> int:
        spec = SubnetSpec.from_counts(kept, budget.prunable)
        return planned_bytes(state, kept, **vars(replace(contents, spec=spec)))

    return budget.solve_bytes(size, size_of, allocator.counts, milestones=allocator.milestones)


def _read_spec(path: Path) -> SubnetSpec:
    try:
        return SubnetSpec.from_json(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: spec is not UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
