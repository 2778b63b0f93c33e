"""A model of any size from a trained run, without retraining: ``omnisparse extract``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from omnisparse import runs
from omnisparse.artifact import (
    VALUE_BITS,
    Contents,
    Extraction,
    parse_precision,
    planned_bytes,
    write_extractions,
)
from omnisparse.runs_account import read_record
from omnisparse.search.front import pick, read_front
from omnisparse.sparsity.budget import Budget, Size, num_parameters, parse_sparsity
from omnisparse.sparsity.masks import Scope, allocate
from omnisparse.sparsity.ranking import parse_block
from omnisparse.sparsity.space import SubnetSpec


def extract(
    run: Path | None = None,
    *,
    size: str | None = None,
    sparsity: float | None = None,
    spec: Path | None = None,
    front: Path | None = None,
    out: Path | None = None,
    precision: str = "fp32",
    block: str | None = None,
    scope: Scope = "layer",
    format: str = "bitmask",
    wer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a deployable model of any size from a trained run.

    Args:
        run: Run directory; None for ``runs/latest``.
        size: ``16M`` non-zeros of the whole model, ``20MB``/``20MiB`` bytes of the files, ``25%``
            of the dense net's parameters.
        sparsity: Share of the prunable weights that becomes zero, in [0, 1).
        spec: JSON file with a sparsity for each matrix. Exactly one of these three is given.
        front: With ``size``: file of a search whose spec of that size is taken.
        out: Artifact directory; None for ``<run>/extracted/<what was asked>``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        block: ``1x1``, ``8x1`` or ``16x1``: weights that are kept or dropped together; None for
            what the run was trained with.
        scope: How matrices share the total: ``layer`` (the same sparsity in each, which is what a
            supernet is trained for), ``global`` (one magnitude ranking), ``lamp``.
        format: ``bitmask``, or ``dense`` for loaders that know nothing of masks.
        wer: Known word error rates in percent by test set, for the model card.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds``, and the counts of
        ``SizeReport.summary``.

    Raises:
        ValueError: If the request cannot be met; the message names the legal range.
        OmnisparseError: If the run cannot be read.
    """
    started = time.perf_counter()
    request = _Request(size=size, sparsity=sparsity, spec=spec, front=front)
    run = runs.latest_run() if run is None else run
    description = runs.read_description(run)
    weights, _ = runs.newest_weights(run)
    shapes = {name: tuple(weights[name].shape) for name in description.parameters}
    chosen = parse_block(description.block if block is None else block)
    budget = Budget(shapes, description.prunable, block=chosen)
    contents = contents_of(run, weights, block=chosen, precision=precision, format=format, wer=wer)
    kept = request.kept(budget, weights, contents, scope)
    extraction = Extraction(
        out=out or run / "extracted" / request.folder(),
        num_kept=kept,
        contents=replace(contents, spec=SubnetSpec.from_counts(kept, budget.prunable)),
    )
    (info,) = write_extractions(weights, [extraction])
    report = budget.report(kept, bits=VALUE_BITS[parse_precision(precision)])
    return {**info.to_dict(), **report.summary(), "seconds": time.perf_counter() - started}


def contents_of(
    run: Path,
    weights: Mapping[str, Tensor],
    *,
    block: tuple[int, int],
    precision: str = "fp32",
    format: str = "bitmask",
    wer: Mapping[str, Any] | None = None,
) -> Contents:
    """All of a run's artifact but its spec and weights.

    Args:
        run: The run.
        weights: Its weights, of which names and shapes are read.
        block: Block shape of the masks.
        precision: See :func:`extract`.
        format: See :func:`extract`.
        wer: See :func:`extract`.

    Raises:
        OmnisparseError: If the run cannot be read.
    """
    description = runs.read_description(run)
    return Contents(
        model=description.model,
        features=description.features,
        tokenizer=(run / "tokenizer.model").read_bytes(),
        tokens_txt=(run / "tokens.txt").read_text(encoding="utf-8"),
        dense_parameters=num_parameters((n, weights[n]) for n in description.parameters),
        prunable=description.prunable,
        source={**read_record(run).source_block, "method": description.method},
        precision=precision,
        block=block,
        format=format,
        wer=wer,
        buffers=[name for name in weights if name not in set(description.parameters)],
    )


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What the user asked of an extraction."""

    size: str | None
    sparsity: float | None
    spec: Path | None
    front: Path | None

    def __post_init__(self) -> None:
        if self.front is not None and self.size is None:
            raise ValueError("front is given without the size to take from it")
        given = [v for v in (self.size, self.sparsity, self.spec) if v is not None]
        if len(given) != 1:
            raise ValueError("exactly one of size, sparsity and spec must be given")

    def folder(self) -> str:
        """A folder name for the result."""
        if self.size is not None:
            name = self.size.strip().replace("%", "pct")
            return name if self.front is None else f"{name}-searched"
        return f"sparsity-{self.sparsity}" if self.spec is None else self.spec.stem

    def kept(
        self, budget: Budget, weights: Mapping[str, Tensor], contents: Contents, scope: Scope
    ) -> dict[str, int]:
        """Number of weights that each prunable matrix keeps."""
        if self.spec is not None:
            return _checked(_read_spec(self.spec), budget, self.spec)
        if self.front is not None and self.size is not None:
            nonzero = budget.unprunable + budget.solve(self.size)
            return _checked(pick(read_front(self.front), nonzero).spec, budget, self.front)
        size = parse_sparsity(self.sparsity) if self.sparsity is not None else None
        size = size or budget.parse(self.size or "")
        split = _splitter(budget, weights, contents.block, scope)
        if size.kind == "bytes":
            return _solve_bytes(budget, size, weights, contents, split)
        return split(budget.solve(size))


def _checked(spec: SubnetSpec, budget: Budget, source: Path) -> dict[str, int]:
    """Kept weights of a spec that a file gave; one that kills a matrix is refused."""
    try:
        kept = spec.counts(budget.prunable)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    dead = [name for name, count in kept.items() if count < budget.floors[name]]
    if dead:
        raise ValueError(
            f"{source}: keeps nothing of {', '.join(dead)}; legal: a sparsity that "
            "leaves each matrix a weight"
        )
    return kept


def _splitter(
    budget: Budget, weights: Mapping[str, Tensor], block: tuple[int, int], scope: Scope
) -> Callable[[int], dict[str, int]]:
    """How a total is spread over the matrices."""
    if scope == "layer":
        return budget.allocate_uniform
    prunable = {name: weights[name] for name in budget.prunable}
    return lambda total: allocate(prunable, total, scope, block=block)


def _solve_bytes(
    budget: Budget,
    size: Size,
    weights: Mapping[str, Tensor],
    contents: Contents,
    split: Callable[[int], dict[str, int]],
) -> dict[str, int]:
    """Kept weights of the largest model whose files fit."""
    state = dict(weights)

    def size_of(kept: Mapping[str, int]) -> int:
        spec = SubnetSpec.from_counts(kept, budget.prunable)
        planned = replace(contents, spec=spec)
        return planned_bytes(state, kept, **vars(planned))

    return budget.solve_bytes(size, size_of, split)


def _read_spec(path: Path) -> SubnetSpec:
    try:
        return SubnetSpec.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: spec is not UTF-8 text") from error
