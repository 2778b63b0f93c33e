"""The real content of a nested file or a prefix of one, counted from its bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.precision import VALUE_BITS
from omnisparse.artifact.stored import StoredTensor, report_of
from omnisparse.artifact.tensorfile import ITEM_BYTES, Array
from omnisparse.errors import FormatError
from omnisparse.nested.format import MAGIC, TABLE
from omnisparse.nested.gaps import low_stream_bytes
from omnisparse.nested.reader import NestedFile
from omnisparse.nested.sources import is_url
from omnisparse.sparsity import arrays


def is_nested(path: Path) -> bool:
    """Whether a file begins like a nested file; the rest is not checked."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def is_nested_place(place: str | Path) -> bool:
    """Whether a place is read as a nested file: an address, or a file that begins like one."""
    return is_url(place) or (Path(place).is_file() and is_nested(Path(place)))


def inspect_nested(path: Path) -> dict[str, Any]:
    """Count the content of a nested file: the largest model that its bytes contain.

    Args:
        path: The file, or a prefix of one.

    Returns:
        ``kind`` (``"nested"``), ``model_kind``, ``precision``, ``parameters``, ``nonzero``,
        ``sparsity`` and ``layers`` of the largest model in it, as of
        :func:`omnisparse.artifact.inspect_artifact` (``packing`` is ``bands``), the counts of
        :func:`band_summary`, ``bytes`` of the file, ``bands`` of the whole file (see
        :func:`band_sizes`, with ``present``), ``unfinished_bytes`` of an incomplete band,
        ``mismatches`` and ``problems``.

    Raises:
        FormatError: If the header is not valid, or the first band is missing.
    """
    nested = NestedFile(path)
    size = nested.source.size_bytes
    present = len(nested.present)
    if present == 0:
        raise FormatError(f"{path}: {size} bytes hold no model; grow it to {nested.stops[2]}")
    state, sound, problems = _largest(nested, present)
    if size > nested.stops[-1]:
        problems.append(f"{path}: {size - nested.stops[-1]} bytes after the last band")
    return {
        "kind": "nested",
        "model_kind": nested.header.config["model"].get("kind"),
        "precision": nested.header.precision,
        "bytes": size,
        **band_summary(nested, sound, state),
        "bands": [
            {**band, "present": index < sound}
            for index, band in enumerate(band_sizes(nested, sound))
        ],
        "unfinished_bytes": min(size, nested.stops[-1]) - nested.stops[present + 1],
        "mismatches": [],
        "problems": problems,
    }


def inspect_header(place: str | Path) -> dict[str, Any]:
    """The content of a nested file's header; no weight is read, or sent by a server.

    Args:
        place: Its ``http(s)://`` address, or path.

    Returns:
        ``kind``, ``model_kind``, ``precision``, ``parameters``, ``nonzero`` (of the largest model),
        ``sparsity`` (0), ``bytes`` of the whole file, ``bands`` as of :func:`inspect_nested`,
        ``has_ranges`` (whether a server sends single ranges of bytes), and ``layers`` with
        ``name, shape, nonzero, sparsity, prunable``.

    Raises:
        FormatError: If the header is not valid.
        OmnisparseError: If a server fails.
    """
    with contextlib.closing(NestedFile(place)) as nested:
        size, budget = nested.source.size_bytes, nested.budget
        buffers = frozenset(nested.header.buffers)
        return {
            "kind": "nested",
            "model_kind": nested.header.config["model"].get("kind"),
            "precision": nested.header.precision,
            "parameters": budget.dense_parameters,
            "nonzero": nested.bands[-1].nonzero,
            "sparsity": 0.0,
            "bytes": size,
            "bands": [{**band, "present": band["bytes"] <= size} for band in band_sizes(nested, 0)],
            "has_ranges": getattr(nested.source, "has_ranges", True),
            "layers": [
                {
                    "name": field.key,
                    "shape": list(field.shape),
                    "nonzero": field.num_items,
                    "sparsity": 0.0,
                    "prunable": field.key in budget.prunable,
                }
                for field in nested.header.tensors
                if field.key not in buffers
            ],
        }


def _largest(nested: NestedFile, present: int) -> tuple[Mapping[str, Array], int, list[str]]:
    """The largest undamaged model of the present bands, and the problems of the other bands."""
    problems: list[str] = []
    for bands in range(present, 0, -1):
        try:
            return nested.read_kept(nested.header.sections[bands].kept).arrays, bands, problems
        except FormatError as error:
            if str(error) not in problems:
                problems.append(str(error))
    raise FormatError(problems[-1])


def band_summary(
    nested: NestedFile, num_bands: int, state: Mapping[str, Array] | None = None
) -> dict[str, Any]:
    """Counts of the largest model in the first bands.

    Args:
        nested: The file; its tables are read.
        num_bands: Number of bands.
        state: The model, to count its weights (rounding makes no weight zero, so this may be the
            net that was written); None to count the weights that the bands list.

    Returns:
        ``parameters``, ``nonzero``, ``sparsity``, the counts of ``SizeReport.summary`` (the mask
        is the bytes for the positions of weights), and ``layers``.
    """
    header = nested.header
    numbers, place_bits = (totals[:num_bands].sum(axis=0) for totals in _tables(nested, num_bands))
    rows = {fqn: row for row, fqn in enumerate(header.prunable)}
    buffers = set(header.buffers)
    tensors = []
    for field in header.tensors:
        if field.key in buffers:
            continue
        row, scale = rows.get(field.key), 4 * field.shape[0] if header.is_scaled(field) else 0
        nonzero, num_bytes, bits = field.num_items, field.num_bytes, 0
        if row is not None:
            bits = int(place_bits[row])
            nonzero = int(numbers[row])
            num_bytes = nonzero * ITEM_BYTES[field.dtype] + bits // 8
            nonzero = nonzero if state is None else arrays.count_nonzero(state[field.key])
        tensors.append(
            StoredTensor(
                name=field.key,
                shape=field.shape,
                nonzero=nonzero,
                bytes=num_bytes + scale,
                dtype=field.dtype,
                packing="dense" if row is None else "bands",
                mask_bits=bits,
                prunable=row is not None,
            )
        )
    report = report_of(tensors, VALUE_BITS[header.precision])
    return {
        "parameters": report.dense_parameters,
        "nonzero": report.nonzero,
        "sparsity": report.sparsity,
        **report.summary(),
        "layers": [tensor.to_dict() for tensor in tensors],
    }


def band_sizes(nested: NestedFile, num_bands: int) -> list[dict[str, Any]]:
    """``nonzero``, ``nonzero_with_mask`` and ``bytes`` of the model and prefix up to each band.

    Only the tables of the first ``num_bands`` are read; beyond them ``nonzero_with_mask`` is None.
    """
    place_bits: list[int] = []
    if num_bands:
        place_bits = np.cumsum(_tables(nested, num_bands)[1].sum(axis=1)).tolist()
    bits = VALUE_BITS[nested.header.precision]
    return [
        {
            "nonzero": band.nonzero,
            "nonzero_with_mask": (
                band.nonzero + place_bits[index] / bits if index < num_bands else None
            ),
            "bytes": band.prefix_bytes,
        }
        for index, band in enumerate(nested.bands)
    ]


def _tables(
    nested: NestedFile, num_bands: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Weights, and bits for their positions, by band and prunable tensor: int64 [N, tensors]."""
    length = len(nested.header.prunable) * TABLE.itemsize
    numbers, bits = [], []
    for start in nested.stops[1 : num_bands + 1]:
        table = np.frombuffer(bytes(nested.source.read(start, start + length)), TABLE)
        rows = [row.item() for row in table]
        numbers.append([int(count) for count, _, _ in rows])
        bits.append(
            [8 * (TABLE.itemsize + low_stream_bytes(n, low) + unary) for n, low, unary in rows]
        )
    return np.array(numbers, np.int64), np.array(bits, np.int64)
