"""Nested files: every size of a run in one file; smaller models are prefixes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.artifact import (
    SMALLEST,
    Artifact,
    Contents,
    untrained_warnings,
    write_artifact,
)
from omnisparse.errors import OmnisparseError
from omnisparse.nested import (
    NestedFile,
    band_sizes,
    band_summary,
    grow_from,
    write_nested,
    write_prefix,
)
from omnisparse.pipeline.extract import missing_warnings, solve_bytes
from omnisparse.pipeline.folder_names import folder_name
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record
from omnisparse.runs.trained_sizes import source_of
from omnisparse.sparsity.allocation import Allocator
from omnisparse.sparsity.sizes import parse_sparsity
from omnisparse.sparsity.space import SubnetSpec

SUFFIX = ".nested"


def write_nested_run(
    run: Path | None = None,
    *,
    out: Path | None = None,
    precision: str = "fp32",
    floor: float = 0.0,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes every size of a trained run into one file.

    Args:
        run: Run directory; None for ``runs/latest``.
        out: The file; None for ``<run>/extracted/<run>.nested``, other options than the default
            in its name.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        floor: Least share of its weights that any matrix keeps in any size, in [0, 1].
        warn: Told in a line each what ``warnings`` of the result hold.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds`` of the whole, the counts of
        ``SizeReport.summary``, ``layers``, ``warnings``, and ``prefixes``: the sizes at which a
        prefix of the file ends, as ``{nonzero, nonzero_with_mask, bytes}``.

    Raises:
        ValueError: If ``precision`` or ``floor`` is not legal.
        OmnisparseError: If the run cannot be read, was trained with blocks, or the file cannot be
            written.
    """
    started = time.perf_counter()
    run = runs.latest_run() if run is None else run
    description = runs.read_description(run)
    if description.block != "1x1":  # a prefix keeps single weights, which was not trained
        raise OmnisparseError(
            f"{run}: trained with block {description.block}; legal for --nested: 1x1"
        )
    weights, checkpoint = runs.newest_weights(run)
    record = read_record(checkpoint)
    buffers = [name for name in weights if name not in set(description.parameters)]
    source = source_of(run, record, {n: tuple(weights[n].shape) for n in description.parameters})
    name = folder_name(run.name, description, precision=precision, floor=floor)
    path = out or run / "extracted" / f"{name}{SUFFIX}"
    info = write_nested(
        path,
        state=weights,
        model=description.shipped_model,
        tokenizer=(run / "tokenizer.model").read_bytes(),
        tokens_txt=(run / "tokens.txt").read_text(encoding="utf-8"),
        features=description.features,
        prunable=description.prunable,
        source=source,
        precision=precision,
        buffers=buffers,
        floor=floor,
    )
    nested = NestedFile(info.path)
    smallest = source.get(SMALLEST, 0)
    warnings = untrained_warnings(nested.budget.dense_parameters, source)
    if any(band.nonzero < smallest for band in info.bands):
        warnings.append(f"sizes below {smallest:,} non-zero parameters were never trained")
    for line in warnings:
        warn(line)
    return {
        "path": str(info.path),
        **band_summary(nested, len(info.bands), weights),
        "bytes": info.bytes,
        "prefixes": band_sizes(nested, len(info.bands)),
        "warnings": warnings,
        "seconds": time.perf_counter() - started,
    }


def extract_nested(
    place: str,
    *,
    size: str | None,
    sparsity: float | None,
    out: Path,
    precision: str | None = None,
    format: str = "bitmask",
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes the artifact of any size from a nested file, or from a prefix that holds it.

    Args:
        place: Path or ``http(s)://`` address of the file; only the prefix that is needed is read.
        size: ``16M`` non-zeros of the whole model, ``20MB``/``20MiB`` bytes of the files written,
            ``25%`` of the dense net's parameters.
        sparsity: Share of the prunable weights that becomes zero. Exactly one of the two is given.
        out: Artifact directory.
        precision: As of :func:`omnisparse.pipeline.extract.extract`; None for that of the file.
        format: As there.
        warn: As there.

    Returns:
        As :func:`omnisparse.pipeline.extract.extract`.

    Raises:
        ValueError: If the request cannot be met; the message names the legal range.
        FormatError: If the file is damaged, or too short for this size.
    """
    if (size is None) == (sparsity is None):
        raise ValueError("exactly one of size and sparsity must be given")
    started = time.perf_counter()
    with contextlib.closing(NestedFile(place)) as nested:
        contents, counts, artifact = _read(nested, size, sparsity, precision, format)
    budget = nested.budget
    spec = SubnetSpec.from_counts(counts, budget.prunable)
    known = {"tokenizer": artifact.tokenizer, "tokens_txt": artifact.tokens_txt, "spec": spec}
    # Counts of the file, so that a kept weight of exactly zero is not counted.
    held = {fqn: int(np.count_nonzero(artifact.arrays[fqn])) for fqn in budget.prunable}
    info = write_artifact(out, state=artifact.arrays, num_kept=held, **{**vars(contents), **known})
    warnings = untrained_warnings(info.nonzero, contents.source)
    warnings += missing_warnings(held, counts, budget)
    for line in warnings:
        warn(line)
    return {**info.to_dict(), "warnings": warnings, "seconds": time.perf_counter() - started}


def _read(
    nested: NestedFile, size: str | None, sparsity: float | None, precision: str | None, format: str
) -> tuple[Contents, dict[str, int], Artifact]:
    """The contents of an artifact, the weights that each matrix keeps, and the net."""
    nested.require_base()  # its lengths are used below
    budget = nested.budget
    request = budget.parse(size) if size is not None else parse_sparsity(sparsity or 0.0)
    header = nested.header
    contents = Contents(
        model=header.config["model"],
        features=header.config["features"],
        # A plan needs only their lengths.
        tokenizer=bytes(header.tokenizer_bytes),
        tokens_txt="\0" * header.tokens_bytes,
        precision=precision or header.precision,
        format=format,
        dense_parameters=budget.dense_parameters,
        prunable=header.prunable,
        buffers=header.buffers,
        source=header.config["source"],
    )
    state = nested.meta_state()
    allocator = Allocator(state, "layer", budget.floor, names=budget.prunable)
    if request.kind == "bytes":
        counts = solve_bytes(budget, request, state, contents, allocator)
    else:
        counts = allocator.counts(budget.solve(request))
    return contents, counts, nested.read_kept(sum(counts.values()))


def extract_prefix(place: str, *, size: str, out: Path) -> dict[str, Any]:
    """Writes the prefix of a nested file that contains a size; it is a smaller nested file.

    Args:
        place: Path or ``http(s)://`` address of the file; only the prefix is read.
        size: ``16M`` or ``25%``: the shortest prefix that contains such a model; ``2MB``: the
            longest prefix within this size that ends with a band.
        out: The file to write; an existing nested file is replaced.

    Returns:
        ``path``, ``parameters``, ``nonzero`` and ``sparsity`` of the largest model in it, ``bytes``
        of it, ``bands`` as of ``inspect_header``, ``warnings``, ``seconds``.

    Raises:
        ValueError: If ``size`` is not legal for this net.
        FormatError: If the file is damaged, or too short for this size.
        OmnisparseError: If the file cannot be written.
    """
    started = time.perf_counter()
    with contextlib.closing(NestedFile(place)) as nested:
        num_bytes = write_prefix(out, nested, size)
    budget = nested.budget
    bands = [{**band, "present": band["bytes"] <= num_bytes} for band in band_sizes(nested, 0)]
    nonzero = max(band["nonzero"] for band in bands if band["present"])
    return {
        "path": str(out),
        "parameters": budget.dense_parameters,
        "nonzero": nonzero,
        "sparsity": 1 - (nonzero - budget.unprunable) / budget.prunable_parameters,
        "bytes": num_bytes,
        "bands": bands,
        "warnings": untrained_warnings(nonzero, nested.header.config["source"]),
        "seconds": time.perf_counter() - started,
    }


def grow(path: Path, place: str, *, size: str) -> dict[str, Any]:
    """Fetches the bytes that a prefix lacks for a size from the whole file, and appends them.

    Args:
        path: The prefix; made if it does not exist.
        place: Path or ``http(s)://`` address of the whole file.
        size: As in :func:`extract_prefix`.

    Returns:
        ``path``, ``bytes`` now, ``added`` bytes, and ``nonzero``: the largest model now in it.

    Raises:
        ValueError: If ``size`` is not legal for this net.
        FormatError: If the two files belong to different nets, or bytes are damaged.
        OmnisparseError: If the file cannot be written.
    """
    before = path.stat().st_size if path.exists() else 0
    with contextlib.closing(NestedFile(place)) as whole:
        whole.prefix_bytes(size)  # an illegal size must not leave a new file behind
        now = grow_from(path, whole, size)
    nested = NestedFile(path)
    there = [band.nonzero for band in nested.bands if band.prefix_bytes <= now]
    return {
        "path": str(path),
        "bytes": now,
        "added": max(0, now - before),
        "nonzero": max(there, default=0),
    }
