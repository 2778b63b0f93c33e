"""The safetensors container: a reader that checks every header, a writer with a planned size.

The ``safetensors`` library can read these files, too (a test checks this). We write them ourselves
because a byte budget needs the exact size of a file before it is packed, and because a packed net
is then written matrix by matrix and is never in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omnisparse.durable import start_sync
from omnisparse.errors import FormatError

Array = npt.NDArray[Any]

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1, "I32": 4, "I64": 8}
"""Legal dtypes of a file and their bytes per item."""

NUMPY_DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16: its bits are stored as uint16
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "I32": np.int32,
    "I64": np.int64,
}

SYNC_BYTES = 16_000_000
"""After this many bytes a file is synced to the disk, while the rest is still being packed."""

WINDOW_BYTES = 1024 * mmap.ALLOCATIONGRANULARITY
"""Bytes of a file that are mapped at a time for hashing."""

MAX_HEADER_BYTES = 8_000_000
MAX_DIMENSION = 2**31 - 1
MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class Field:
    """One array of the file: its key, dtype tag (``F32``, ``U8``, ...) and shape."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_items(self) -> int:
        """Items of the array."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the data, header not counted."""
        return self.num_items * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Layout:
    """Positions of all fields: the header with its length, absolute offsets, the file's bytes."""

    header: bytes
    offsets: Mapping[str, int]
    size_bytes: int


def plan_layout(fields: Iterable[Field], header_bytes: int = 0) -> Layout:
    """Header and offsets of a file holding ``fields``.

    Fields with the widest items come first, so that each is aligned without gaps, as the format
    requires.

    Args:
        fields: All fields of the file.
        header_bytes: Least bytes of the header, including its length; it is padded with spaces.
    """
    ordered = sorted(fields, key=lambda field: -ITEM_BYTES[field.dtype])
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    starts: dict[str, int] = {}
    for field in ordered:
        end = offset + field.num_bytes
        entries[field.key] = _entry(field, offset, end)
        starts[field.key] = offset
        offset = end
    text = _header_text(entries)
    text += b" " * max(-len(text) % 8, header_bytes - 8 - len(text))
    header = len(text).to_bytes(8, "little") + text
    return Layout(
        header, {key: len(header) + at for key, at in starts.items()}, len(header) + offset
    )


def _entry(field: Field, start: int, end: int) -> dict[str, object]:
    return {"dtype": field.dtype, "shape": list(field.shape), "data_offsets": [start, end]}


def _header_text(entries: Mapping[str, object]) -> bytes:
    return json.dumps(entries, separators=(",", ":")).encode()


def longest_header(choices: Iterable[Sequence[Sequence[Field]]]) -> int:
    """Bytes of a header that has room for any choice of fields.

    The size of a file with such a header is the size of its data plus a constant.

    Args:
        choices: Per tensor, the sets of fields that may hold it, each field with its largest size.
    """
    alternatives = list(choices)
    end = sum(max(sum(f.num_bytes for f in fields) for fields in c) for c in alternatives)

    def room(fields: Sequence[Field]) -> int:
        return len(_header_text({field.key: _entry(field, end, end) for field in fields}))

    rest = len(_header_text({"__metadata__": {"format": "pt"}}))
    text = rest + sum(max(room(fields) for fields in choice) for choice in alternatives)
    return 8 + text + -text % 8


class TensorFileWriter:
    """Writes fields in any order to their planned positions, each at once or in pieces.

    Different fields may be written by different threads.

    Args:
        path: File to create; it must not exist.
        fields: All fields of the file.
        header_bytes: Least bytes of the header.
    """

    def __init__(self, path: Path, fields: Sequence[Field], header_bytes: int = 0) -> None:
        self._fields = {field.key: field for field in fields}
        if len(self._fields) != len(fields):
            raise ValueError("names of packed tensors collide; rename the parameters")
        self._layout = plan_layout(fields, header_bytes)
        self._num_bytes = {field.key: field.num_bytes for field in fields}
        self._written = dict.fromkeys(self._fields, 0)
        self._waiting = 0
        self._file = path.open("x+b")
        self._file.truncate(self._layout.size_bytes)
        self._file.write(self._layout.header)
        self._file.flush()

    def append(self, key: str, array: Array) -> None:
        """Store the next items of a field, in row-major order.

        Raises:
            ValueError: If the dtype is not the planned one, or there are more items than planned.
        """
        field = self._fields[key]
        before = self._written[key]
        if array.dtype != NUMPY_DTYPES[field.dtype] or before + array.nbytes > self._num_bytes[key]:
            raise ValueError(
                f"{key}: got {array.dtype} {array.shape} at byte {before}, "
                f"planned {field.dtype} {field.shape}"
            )
        data = np.ascontiguousarray(array)
        at = self._layout.offsets[key] + before
        done = os.pwrite(self._file.fileno(), data.data, at) if data.size else 0
        while done < data.nbytes:
            rest = data.reshape(-1).view(np.uint8)[done:]
            done += os.pwrite(self._file.fileno(), rest.data, at + done)
        self._written[key] = before + done
        self._waiting += done
        if self._waiting > SYNC_BYTES:
            self._waiting = 0
            start_sync(self._file.fileno())

    def finish(self) -> None:
        """Check that the file is complete, and sync it to the disk.

        Raises:
            ValueError: If a field is incomplete.
        """
        missing = [key for key, done in self._written.items() if done != self._num_bytes[key]]
        if missing:
            raise ValueError(f"fields are incomplete: {missing[:3]}")
        os.fsync(self._file.fileno())

    def digest(self) -> str:
        """SHA-256 of the file as it is now, in hex."""
        digest = hashlib.sha256()
        size = self._layout.size_bytes
        for start in range(0, size, WINDOW_BYTES):
            length = min(WINDOW_BYTES, size - start)
            # Mapped: copying every byte would take a fifth of the time of hashing.
            with mmap.mmap(
                self._file.fileno(), length, access=mmap.ACCESS_READ, offset=start
            ) as window:
                digest.update(window)
        return digest.hexdigest()

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from untrusted bytes: no duplicate keys, no NaN.

    Raises:
        FormatError: If it is anything else.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_reject_duplicates,
            parse_constant=_reject_constant,
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise FormatError(f"{what}: expected a JSON object")
    return value


def is_count(value: object, limit: int = 2**62) -> bool:
    """Whether ``value`` is an int (not a bool) in [0, limit]."""
    return type(value) is int and 0 <= value <= limit


def _parse_field(key: str, entry: object, what: str) -> tuple[Field, int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what}: malformed entry {key[:80]!r}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"{what}: {key[:80]!r} has an unknown dtype (known: {list(ITEM_BYTES)})")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(is_count(size, MAX_DIMENSION) for size in shape)
        or (len(shape) > 1 and 0 in shape)
    ):
        raise FormatError(f"{what}: {key[:80]!r} has an illegal shape")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(is_count(at) for at in offsets)
    ):
        raise FormatError(f"{what}: {key[:80]!r} has illegal offsets")
    field = Field(key, dtype, tuple(shape))
    if offsets[1] - offsets[0] != field.num_bytes:
        raise FormatError(f"{what}: {key[:80]!r} has offsets that contradict its shape")
    return field, offsets[0], offsets[1]


class TensorFile:
    """A safetensors file opened for reading; its header is checked against its size.

    Arrays are views of a private memory map: nothing is read until it is used, and the file is
    never written. A :class:`FormatError` names the problem.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        what = path.name
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                length = int.from_bytes(prefix, "little")
                if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                    raise FormatError(f"{what}: truncated, or the header is too long")
                text = file.read(length)
        except OSError as error:
            raise FormatError(f"{what}: cannot be read ({error.strerror})") from None
        if len(text) != length:
            raise FormatError(f"{what}: truncated header")
        self.size_bytes = size
        self.header_bytes = 8 + length
        self.fields = self._parse(text, what)
        with path.open("rb") as file:
            # Copy on write: torch may get writable views, but they never change the file.
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if len(self._pages) != size:
            raise FormatError(f"{what}: changed while it was read")
        self._map: Array = np.frombuffer(self._pages, np.uint8)

    def _parse(self, text: bytes, what: str) -> dict[str, Field]:
        entries = parse_json(text, what)
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            raise FormatError(f"{what}: __metadata__ must map text to text")
        parsed = sorted(
            (_parse_field(key, entry, what) for key, entry in entries.items()),
            key=lambda item: (item[1], item[2]),
        )
        expected = 0
        for field, start, end in parsed:
            if start != expected:
                raise FormatError(f"{what}: {field.key[:80]!r} overlaps or leaves a gap")
            expected = end
        if self.header_bytes + expected != self.size_bytes:
            raise FormatError(
                f"{what}: {self.size_bytes} bytes, but its header describes "
                f"{self.header_bytes + expected}"
            )
        self._starts = {field.key: start for field, start, _ in parsed}
        return {field.key: field for field, _, _ in parsed}

    def array(self, key: str) -> Array:
        """The field as a view (BF16 as its uint16 bits)."""
        field = self.fields[key]
        start = self.header_bytes + self._starts[key]
        raw = self._map[start : start + field.num_bytes]
        if start % ITEM_BYTES[field.dtype]:
            raw = raw.copy()  # other writers may leave items unaligned
        return np.asarray(raw).view(NUMPY_DTYPES[field.dtype]).reshape(field.shape)

    def release(self, key: str) -> None:
        """Free the memory of a field; views stay valid and read the file again."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = self.header_bytes + self._starts[key]
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = start + self.fields[key].num_bytes - first
        if length > 0:
            self._pages.madvise(mmap.MADV_DONTNEED, first, length)
