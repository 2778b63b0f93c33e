"""A model of any size from a trained run, without retraining: ``omnisparse extract``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnisparse import runs
from omnisparse.artifact import (
    VALUE_BITS,
    Contents,
    Extraction,
    parse_precision,
    planned_bytes,
    write_extractions,
)
from omnisparse.sparsity.arrays import Array
from omnisparse.sparsity.budget import Budget, Size, parse_sparsity
from omnisparse.sparsity.masks import Allocator, Scope
from omnisparse.sparsity.space import SubnetSpec


def extract(
    run: Path | None = None,
    *,
    size: str | None = None,
    sparsity: float | None = None,
    spec: Path | None = None,
    out: Path | None = None,
    precision: str = "fp32",
    block: str = "1x1",
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
        out: Artifact directory; None for ``<run>/extracted/<what was asked>``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        block: ``1x1``, ``8x1`` or ``16x1``: weights that are kept or dropped together.
        scope: How matrices share the total: ``layer`` (the same sparsity in each, which is what a
            supernet is trained for), ``global`` (one magnitude ranking), ``lamp``.
        format: ``bitmask``, or ``dense`` for loaders that know nothing of masks.
        wer: Known word error rates in percent by test set, for the model card.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds``, and the counts of
        ``SizeReport.summary``: all of what the files hold, so that a kept weight which happens to
        be exactly zero is in none of them.

    Raises:
        ValueError: If the request cannot be met; the message names the legal range.
        OmnisparseError: If the run cannot be read.
    """
    started = time.perf_counter()
    request = _Request(size=size, sparsity=sparsity, spec=spec)
    run = runs.latest_run() if run is None else run
    description = runs.read_description(run)
    weights, step = runs.newest_weights(run)
    shapes = {name: tuple(weights[name].shape) for name in description.parameters}
    budget = Budget(shapes, description.prunable, block=parse_block(block))
    contents = Contents(
        model=description.model,
        features=description.features,
        tokenizer=(run / "tokenizer.model").read_bytes(),
        tokens_txt=(run / "tokens.txt").read_text(encoding="utf-8"),
        dense_parameters=budget.dense_parameters,
        prunable=description.prunable,
        source={"run": run.name, "step": step, "method": description.method},
        precision=precision,
        block=parse_block(block),
        format=format,
        wer=wer,
        buffers=[name for name in weights if name not in shapes],
    )
    kept = request.kept(budget, weights, contents, scope)
    extraction = Extraction(
        out=out or run / "extracted" / request.folder(),
        num_kept=kept,
        contents=replace(contents, spec=SubnetSpec.from_counts(kept, budget.prunable)),
    )
    (info,) = write_extractions(weights, [extraction])
    report = budget.report(info.kept, bits=VALUE_BITS[parse_precision(precision)])
    return {**info.to_dict(), **report.summary(), "seconds": time.perf_counter() - started}


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What the user asked of an extraction."""

    size: str | None
    sparsity: float | None
    spec: Path | None

    def __post_init__(self) -> None:
        given = [v for v in (self.size, self.sparsity, self.spec) if v is not None]
        if len(given) != 1:
            raise ValueError("exactly one of size, sparsity and spec must be given")

    def folder(self) -> str:
        """A folder name for the result."""
        if self.size is not None:
            return self.size.strip().replace("%", "pct")
        return f"sparsity-{self.sparsity}" if self.spec is None else self.spec.stem

    def kept(
        self, budget: Budget, weights: Mapping[str, Array], contents: Contents, scope: Scope
    ) -> dict[str, int]:
        """Number of weights that each prunable matrix keeps."""
        if self.spec is not None:
            kept = _read_spec(self.spec).counts(budget.prunable)
            dead = [name for name, count in kept.items() if count < budget.floors[name]]
            if dead:
                raise ValueError(
                    f"{self.spec}: keeps nothing of {', '.join(dead)}; legal: a sparsity that "
                    "leaves each matrix a weight"
                )
            return kept
        size = parse_sparsity(self.sparsity) if self.sparsity is not None else None
        size = size or budget.parse(self.size or "")
        split = _splitter(budget, weights, contents.block, scope)
        if size.kind == "bytes":
            return _solve_bytes(budget, size, weights, contents, split)
        return split(budget.solve(size))


def _splitter(
    budget: Budget, weights: Mapping[str, Array], block: tuple[int, int], scope: Scope
) -> Callable[[int], dict[str, int]]:
    """How a total is spread over the matrices."""
    if scope == "layer":
        return budget.allocate_uniform
    return Allocator(weights, scope, block=block, names=budget.prunable).counts


def _solve_bytes(
    budget: Budget,
    size: Size,
    weights: Mapping[str, Array],
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


def parse_block(text: str) -> tuple[int, int]:
    """Parse ``8x1`` (8 outputs by 1 input).

    Raises:
        ValueError: If it is not two whole numbers.
    """
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise ValueError(f"block is {text!r}; two whole numbers such as 8x1")
    return int(rows), int(columns)


def _read_spec(path: Path) -> SubnetSpec:
    try:
        return SubnetSpec.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: spec is not UTF-8 text") from error
