"""Reading nested files; :mod:`omnisparse.nested.format` describes the format."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from omnisparse.artifact.precision import FLOAT_DTYPES, FloatArray, restore_values
from omnisparse.artifact.reading import Artifact
from omnisparse.artifact.tensorfile import ITEM_BYTES, NUMPY_DTYPES, Array, Field
from omnisparse.errors import FormatError
from omnisparse.nested.format import (
    MAX_EXPANSION,
    PREAMBLE_BYTES,
    TABLE,
    Header,
    Section,
    parse_header,
    parse_preamble,
)
from omnisparse.nested.gaps import CodedPositions, decode_positions, low_stream_bytes
from omnisparse.nested.sources import Source, open_source
from omnisparse.sparsity.masks import mask_from_count
from omnisparse.sparsity.sizes import Size


class Band(NamedTuple):
    """A size at which a prefix of the file ends: non-zeros of the whole model, and bytes."""

    nonzero: int
    prefix_bytes: int


class NestedFile:
    """A nested file or a prefix of one, local or remote. At first, only the header is read.

    Args:
        place: Path, ``http(s)://`` address, or a source of bytes.

    Raises:
        FormatError: If it is not a valid nested file.
    """

    def __init__(self, place: str | Path | Source) -> None:
        self.source = open_source(place) if isinstance(place, str | Path) else place
        name = self.source.name
        length, digest = parse_preamble(bytes(self.source.read(0, PREAMBLE_BYTES)), name)
        text = bytes(self.source.read(PREAMBLE_BYTES, PREAMBLE_BYTES + length))
        self.header = parse_header(text, digest, name, self.source.size_bytes)
        self.header_digest = digest
        self.budget = self.header.budget()
        # Ends of the sections: first the header, then the base, then each band.
        self.stops = [PREAMBLE_BYTES + length]
        for section in self.header.sections:
            self.stops.append(self.stops[-1] + section.num_bytes)

    @property
    def bands(self) -> list[Band]:
        """The sizes at which a prefix ends, smallest first."""
        return [
            Band(self.budget.unprunable + section.kept, stop)
            for section, stop in zip(self.header.sections[1:], self.stops[2:], strict=True)
        ]

    @property
    def present(self) -> list[Band]:
        """The bands whose bytes are all present, smallest first."""
        there = self.source.size_bytes
        return [band for band in self.bands if band.prefix_bytes <= there]

    @property
    def complete_bytes(self) -> int:
        """Bytes of the complete sections that are present."""
        return max(stop for stop in self.stops if stop <= self.source.size_bytes)

    def prefix_bytes(self, size: Size | str | int) -> int:
        """Bytes to read from the front for a net of ``size``.

        Args:
            size: ``16M``, ``25%`` or a number of non-zeros: the shortest prefix that contains such
                a net. ``2MB``, bytes: the longest prefix that ends with a band and is no longer.

        Raises:
            ValueError: If the size is illegal for this net; names the legal range.
        """
        request = self.budget.parse(size) if not isinstance(size, Size) else size
        if request.kind != "bytes":
            return self.stops[self._sections_for(self.budget.solve(request))]
        fitting = [band.prefix_bytes for band in self.bands if band.prefix_bytes <= request.value]
        if not fitting:
            raise ValueError(
                f"size {request.text!r} is too small for any model of this file; legal: from "
                f"{self.bands[0].prefix_bytes}B"
            )
        return fitting[-1]

    def close(self) -> None:
        """Closes the source of the bytes; nothing can be read afterwards."""
        self.source.close()

    def _sections_for(self, total_kept: int) -> int:
        for index, section in enumerate(self.header.sections):
            if section.kept >= total_kept and index:
                return index + 1
        raise ValueError(
            f"total_kept {total_kept} exceeds the {self.budget.prunable_parameters} weights"
        )

    def meta_state(self) -> dict[str, Array]:
        """The state of any size without its values (one zero for all), enough for a plan.

        Raises:
            FormatError: If the header describes tensors that no memory could hold.
        """
        try:
            return {
                field.key: np.broadcast_to(np.zeros((), self._dtype(field)), field.shape)
                for field in self.header.tensors
            }
        except ValueError:
            message = f"{self.source.name}: describes a net too large for its bytes"
            raise FormatError(message) from None

    def _dtype(self, field: Field) -> type[np.generic]:
        if field.dtype in FLOAT_DTYPES or self.header.is_scaled(field):
            return np.float32
        return NUMPY_DTYPES[field.dtype]

    def read(self, size: Size | str | int | None = None) -> Artifact:
        """The net of ``size``; see :meth:`read_kept`.

        Args:
            size: ``16M`` or ``25%``: exactly this many non-zeros; ``2MB``: the largest model in
                the first 2 MB; None: the largest model that is present.

        Raises:
            ValueError: If the size is illegal for this net.
            FormatError: If bytes are missing or damaged.
        """
        if size is None:
            band = self.present[-1] if self.present else self.bands[0]  # missing then: an error
            return self.read_kept(band.nonzero - self.budget.unprunable)
        request = self.budget.parse(size) if not isinstance(size, Size) else size
        if request.kind == "bytes":
            index = self.stops.index(self.prefix_bytes(request))
            return self.read_kept(self.header.sections[index - 1].kept)
        return self.read_kept(self.budget.solve(request))

    def read_kept(self, total_kept: int) -> Artifact:
        """The net that keeps ``total_kept`` prunable weights, the same share of every matrix.

        Reads the file up to the end of the band that contains this size, and allocates at most 512
        bytes per byte read.

        Raises:
            ValueError: If ``total_kept`` is illegal.
            FormatError: If bytes are missing or damaged.
        """
        needed = self._sections_for(total_kept)
        start, stop = self.stops[0], self.stops[needed]
        name = self.source.name
        self.require(needed)
        dense_bytes = 4 * sum(math.prod(tensor.shape) for tensor in self.header.tensors)
        if dense_bytes > MAX_EXPANSION * stop:
            raise FormatError(f"{name}: describes a net too large for its bytes")
        counts = self.budget.allocate_uniform(total_kept)
        try:
            return self._decode(self.source.read(start, stop), counts, needed)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from None
        except UnicodeDecodeError:
            raise FormatError(f"{name}: tokens are not UTF-8 text") from None

    def require_base(self) -> None:
        """Raises FormatError unless the base section is complete."""
        self.require(1)

    def require(self, sections: int) -> None:
        """Raises FormatError unless the first ``sections`` sections are complete."""
        stop, there = self.stops[sections], self.source.size_bytes
        if stop > there:
            message = f"{self.source.name}: holds {there} bytes, this size needs {stop}; grow it"
            raise FormatError(message)

    def _decode(self, data: memoryview, counts: Mapping[str, int], needed: int) -> Artifact:
        header = self.header
        sections = list(check_sections(data, header.sections[:needed]))
        arrays, tokenizer, tokens = _read_base(header, sections[0])
        bands = [_read_table(header, index, sections[index]) for index in range(1, needed)]
        dense: dict[str, Array] = {}
        rows = {fqn: row for row, fqn in enumerate(header.prunable)}
        for field in header.tensors:
            fqn = field.key
            scales = arrays.get(f"{fqn}.scale") if header.is_scaled(field) else None
            row = rows.get(fqn)
            if row is not None:
                stored, kept = _read_matrix(field, [band[row] for band in bands])
                dense[fqn] = _to_float(field, stored, scales)
                _trim(fqn, dense[fqn], kept, counts[fqn])
            elif field.dtype in FLOAT_DTYPES or scales is not None:
                dense[fqn] = _to_float(field, arrays[fqn], scales)
            else:
                if field.dtype == "BOOL" and (arrays[fqn].view(np.uint8) > 1).any():
                    raise FormatError(f"{fqn}: a boolean value is neither 0 nor 1")
                dense[fqn] = arrays[fqn]
        config = {
            **header.config,
            "precision": header.precision,
            "fqns": list(dense),
            "prunable": list(header.prunable),
            "buffers": list(header.buffers),
            "dense_parameters": self.budget.dense_parameters,
        }
        return Artifact(
            config, dense, tokenizer, tokens.decode(), config["features"], config["model"]
        )


class _Piece(NamedTuple):
    """A tensor's share of a band: coded positions, then values."""

    num_weights: int
    low_bits: int
    low_bytes: int
    unary_bytes: int
    data: memoryview


def check_sections(data: memoryview, sections: Iterable[Section]) -> Iterator[memoryview]:
    """The sections in ``data``, each compared with its checksum.

    Raises:
        FormatError: Naming the section that does not match.
    """
    at = 0
    for section in sections:
        piece = data[at : at + section.num_bytes]
        at += section.num_bytes
        if hashlib.sha256(piece).hexdigest() != section.sha256:
            raise FormatError(f"section with {section.kept} weights: checksum does not match")
        yield piece


def _array(data: memoryview, dtype: str) -> Array:
    return np.frombuffer(bytes(data), NUMPY_DTYPES[dtype]).copy()


def _read_base(header: Header, data: memoryview) -> tuple[dict[str, Array], bytes, bytes]:
    arrays: dict[str, Array] = {}
    at = 0
    for field in header.base_fields():
        piece = data[at : at + field.num_bytes]
        arrays[field.key] = _array(piece, field.dtype).reshape(field.shape)
        at += field.num_bytes
    middle = at + header.tokenizer_bytes
    return arrays, bytes(data[at:middle]), bytes(data[middle:])


def _to_float(field: Field, stored: Array, scales: Array | None) -> FloatArray:
    values = np.array(restore_values(stored, field.dtype), np.float32)
    if scales is not None:
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            raise FormatError(f"{field.key}: a scale is not positive and finite")
        with np.errstate(over="ignore"):
            values *= scales.reshape(-1, *[1] * (values.ndim - 1))
    if not np.isfinite(values).all():
        raise FormatError(f"{field.key}: a value is not finite")
    return values


def _read_table(header: Header, index: int, data: memoryview) -> list[_Piece]:
    fields = {field.key: field for field in header.tensors}
    at = len(header.prunable) * TABLE.itemsize
    if len(data) < at:
        raise FormatError(f"section {index}: too short")
    pieces: list[_Piece] = []
    for fqn, row in zip(header.prunable, np.frombuffer(data[:at], TABLE), strict=True):
        count, low_bits, unary = (int(value) for value in row.item())
        low = low_stream_bytes(count, low_bits)
        stop = at + low + unary + count * ITEM_BYTES[fields[fqn].dtype]
        if stop > len(data):
            raise FormatError(f"section {index}: too short for {fqn}")
        pieces.append(_Piece(count, low_bits, low, unary, data[at:stop]))
        at = stop
    new = header.sections[index].kept - header.sections[index - 1].kept
    if at != len(data) or sum(piece.num_weights for piece in pieces) != new:
        raise FormatError(f"section {index}: its size or count contradicts the header")
    return pieces


def _trim(fqn: str, weight: FloatArray, kept: Array, count: int) -> None:
    """Set all but the ``count`` most important weights at the positions ``kept`` to zero."""
    if kept.size < count:
        raise FormatError(f"{fqn} has {kept.size} of {count} weights")
    if kept.size > count:
        # Ranking only the kept weights, in index order, resolves ties like a ranking of all.
        flat = weight.reshape(-1)  # a view: the weights are contiguous
        flat[kept[~mask_from_count(flat[kept], count)]] = 0


def _read_matrix(field: Field, pieces: Iterable[_Piece]) -> tuple[Array, Array]:
    """The stored tensor, with zeros where no piece has a value, and the positions with a value."""
    numel = math.prod(field.shape)
    empty = np.ones(numel, np.bool_)
    dense = np.zeros(numel, NUMPY_DTYPES[field.dtype])
    free = np.arange(numel, dtype=np.int32 if numel < 2**31 else np.int64)
    for count, low_bits, low_bytes, unary_bytes, data in pieces:
        middle = low_bytes + unary_bytes
        coded = CodedPositions(
            low_bits,
            np.frombuffer(data[:low_bytes], np.uint8),
            np.frombuffer(data[low_bytes:middle], np.uint8),
        )
        try:
            places = decode_positions(coded, count, free.size)
        except FormatError as error:
            raise FormatError(f"{field.key}: {error}") from None
        dense[free[places]] = _array(data[middle:], field.dtype)
        empty[free[places]] = False
        left = np.ones(free.size, np.bool_)
        left[places] = False
        free = free[left]
    return dense.reshape(field.shape), np.flatnonzero(~empty)


def read_nested(place: str | Path | Source, size: Size | str | int | None = None) -> Artifact:
    """The net of ``size`` from a nested file or address: :meth:`NestedFile.read`."""
    with contextlib.closing(NestedFile(place)) as nested:
        return nested.read(size)
