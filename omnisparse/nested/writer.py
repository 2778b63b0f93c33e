"""Writing nested files; :mod:`omnisparse.nested.format` describes the format."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from omnisparse import atomic
from omnisparse.artifact.layout import plan_tensor
from omnisparse.artifact.precision import (
    Precision,
    parse_precision,
    restore_values,
    round_values,
    row_scales,
)
from omnisparse.artifact.tensorfile import Array, Field
from omnisparse.artifact.tensors import as_array, tag_of
from omnisparse.errors import OmnisparseError
from omnisparse.nested.format import (
    MAX_EXPANSION,
    TABLE,
    Header,
    Section,
    check_header,
    max_tensors,
)
from omnisparse.nested.gaps import encode_positions
from omnisparse.nested.inspection import is_nested
from omnisparse.nested.reader import Band, NestedFile
from omnisparse.sparsity import arrays
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.ranking import rank

DENSITIES: dict[Precision, tuple[float, ...]] = {
    "fp32": (0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0),
    "fp16": (0.05, 0.1, 0.25, 1.0),
    "bf16": (0.05, 0.1, 0.25, 1.0),
    "int8": (0.05, 0.1, 1.0),
}
"""Default bands. Beyond the values they cost the entropy of a weight's band: 2.4, 1.15 and 0.57
bits per weight, which is within 8 % of 32, 16 and 8 bits."""

MIN_DENSITY = 0.01


@dataclass(frozen=True)
class NestedInfo:
    """The written file; ``bands`` are the sizes at which a prefix of the file ends."""

    path: Path
    parameters: int
    bytes: int
    bands: tuple[Band, ...]


def write_nested(
    path: Path,
    *,
    state: Mapping[str, Any],
    model: Mapping[str, Any],
    tokenizer: bytes,
    tokens_txt: str,
    features: Mapping[str, Any],
    prunable: Sequence[str],
    source: Mapping[str, Any],
    precision: str = "fp32",
    buffers: Sequence[str] = (),
    densities: Sequence[float] | None = None,
    floor: float = 0.0,
) -> NestedInfo:
    """Write the dense net so that every smaller model is a prefix of the file, atomically.

    Args:
        path: The file; an existing nested file is replaced.
        state: The dense state dict, tensors or arrays, read one at a time.
        model: As in :func:`omnisparse.artifact.write_artifact`, also the next arguments.
        tokenizer: See there.
        tokens_txt: See there.
        features: See there.
        prunable: See there.
        source: See there.
        precision: See there.
        buffers: See there.
        densities: Kept shares of the prunable weights at which a band ends, in rising order, in
            [0.01, 1]; 1 is added if it is missing. None for the largest number of bands that cost
            at most 8 % at this precision.
        floor: Least density of any matrix.

    Raises:
        ValueError: If an argument is illegal or a weight is not finite.
        OmnisparseError: If another kind of file is at ``path`` or writing fails; nothing has
            changed then.
    """
    path = Path(path)
    if path.exists() and not is_nested(path):
        raise OmnisparseError(f"{path} exists and is not a nested file; choose another place")
    kind = parse_precision(precision)
    tensors = tuple(_stored_field(fqn, tensor, kind) for fqn, tensor in state.items())
    names = set(prunable)
    tokens = tokens_txt.encode()
    shapes = {field.key: field.shape for field in tensors if field.key not in set(buffers)}
    budget = Budget(shapes, prunable, floor=floor)
    kept = _band_totals(budget, DENSITIES[kind] if densities is None else densities)
    header = Header(
        config={"model": dict(model), "features": dict(features), "source": dict(source)},
        precision=kind,
        tensors=tensors,
        prunable=tuple(fqn for fqn in state if fqn in names),
        buffers=tuple(fqn for fqn in state if fqn in set(buffers)),
        floor=float(floor),
        tokenizer_bytes=len(tokenizer),
        tokens_bytes=len(tokens),
        sections=(),
    )
    counts = [budget.allocate_uniform(total) for total in kept]
    with ExitStack() as stack:
        target = stack.enter_context(atomic.replaced_file(path))
        folder = target.parent
        spools = [
            stack.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in range(len(kept) + 1)
        ]
        tables = _write_sections(header, state, counts, spools)
        spools[0].write(tokenizer + tokens)
        heads = [b"", *(table.tobytes() for table in tables)]
        sections = tuple(
            _section(total, head, spool)
            for total, head, spool in zip((0, *kept), heads, spools, strict=True)
        )
        header = replace(header, sections=sections)
        check_header(header)
        _check_readable(header, budget)
        with target.open("xb") as file:
            file.write(header.render())
            for head, spool in zip(heads, spools, strict=True):
                file.write(head)
                spool.seek(0)
                shutil.copyfileobj(spool, file, 1 << 20)
    nested = NestedFile(path)
    return NestedInfo(path, budget.dense_parameters, nested.source.size_bytes, tuple(nested.bands))


def _stored_field(fqn: str, tensor: Any, precision: Precision) -> Field:
    if tag_of(tensor) == "I8":
        raise ValueError(f"{fqn} has dtype int8, which nested files use only for rounded weights")
    return plan_tensor(fqn, tensor, num_kept=None, precision=precision).fields[0]


def _band_totals(budget: Budget, densities: Sequence[float]) -> list[int]:
    if not densities or not all(MIN_DENSITY <= density <= 1 for density in densities):
        raise ValueError(f"densities {list(densities)} must lie in [{MIN_DENSITY}, 1]")
    if any(a >= b for a, b in pairwise(densities)):
        raise ValueError(f"densities {list(densities)} must rise")
    least = sum(budget.floors.values())
    totals = [max(least, round(d * budget.prunable_parameters)) for d in (*densities, 1.0)]
    return sorted(set(totals))


def _check_readable(header: Header, budget: Budget) -> None:
    """Refuses files that readers refuse: readers limit their memory and work for a file."""
    smallest = len(header.render()) + header.sections[0].num_bytes
    if len(header.tensors) > max_tensors(smallest):
        raise ValueError(
            f"{len(header.tensors)} tensors are too many for a file of small tensors; "
            f"legal: {max_tensors(smallest)}"
        )
    first = sum(section.num_bytes for section in header.sections[:2])
    if 4 * budget.dense_parameters > MAX_EXPANSION * first:
        raise ValueError(f"the first band is below 1/{MAX_EXPANSION} of the net; use more")


def _section(kept: int, head: bytes, spool: IO[bytes]) -> Section:
    digest = hashlib.sha256(head)
    spool.seek(0)
    num_bytes = len(head)
    while piece := spool.read(1 << 20):
        digest.update(piece)
        num_bytes += len(piece)
    return Section(kept, num_bytes, digest.hexdigest())


def _write_sections(
    header: Header,
    state: Mapping[str, Any],
    counts: Sequence[Mapping[str, int]],
    spools: Sequence[IO[bytes]],
) -> list[npt.NDArray[Any]]:
    """Write all sections to their temporary files, and make the tables of the bands."""
    tables = [np.zeros(len(header.prunable), TABLE) for _ in counts]
    scales: list[Array] = []
    row = 0
    for field in header.tensors:
        array = as_array(state[field.key])
        if field.dtype not in ("F32", "F16", "BF16") and not header.is_scaled(field):
            spools[0].write(array.tobytes())
            continue
        try:
            stored, scale = _rounded(field, array, header)
        except ValueError as error:
            raise ValueError(f"{field.key}: {error}") from None
        if scale is not None:
            scales.append(scale)
        if field.key not in header.prunable:
            spools[0].write(stored.tobytes())
            continue
        totals = [count[field.key] for count in counts]
        for band, coded in enumerate(_bands(field, stored, scale, totals)):
            entry, pieces = coded
            tables[band][row] = entry
            for piece in pieces:
                spools[band + 1].write(piece.tobytes())
        row += 1
    for scale in scales:
        spools[0].write(scale.tobytes())
    return tables


def _rounded(field: Field, array: Array, header: Header) -> tuple[Array, Array | None]:
    weight = arrays.as_floats(array, "float32")
    if not np.isfinite(weight).all():
        raise ValueError("a weight is not finite")
    if not header.is_scaled(field):
        precision: Precision = "fp32" if field.dtype == "F32" else header.precision
        return round_values(weight, precision), None
    scale = row_scales(weight.reshape(weight.shape[0], -1))
    shaped = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return round_values(weight, "int8", shaped), scale


def _bands(
    field: Field, stored: Array, scale: Array | None, totals: Sequence[int]
) -> list[tuple[tuple[int, int, int], list[Array]]]:
    """Table row and arrays of one tensor in every band.

    The order of importance is that of the rounded weights, because a reader knows only these.
    """
    restored = np.array(restore_values(stored, field.dtype))
    if scale is not None:
        restored *= scale.reshape(-1, *[1] * (restored.ndim - 1))
    flat = stored.reshape(-1)
    free = np.arange(flat.size, dtype=np.int32 if flat.size < 2**31 else np.int64)
    result: list[tuple[tuple[int, int, int], list[Array]]] = []
    for mask in rank(restored, name=field.key).masks(list(totals)):
        new = mask.reshape(-1)[free]
        places = np.flatnonzero(new)
        coded = encode_positions(places, free.size)
        entry = (places.size, coded.low_bits, coded.unary.size)
        result.append((entry, [coded.low, coded.unary, flat[free[places]]]))
        free = free[~new]
    return result
