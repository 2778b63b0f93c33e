"""The bytes of a nested file: one file with every size of a net; smaller models are prefixes.

* preamble, 48 bytes: ``OMNINEST``, format version and length of the header (uint32 each), SHA-256
  of the header;
* header, JSON: the model, all tensors, and the sections with their bytes, SHA-256 and ``kept``, the
  number of prunable weights that are known after reading the section;
* base section: the tensors that are never pruned, row scales (int8), ``tokenizer.model``,
  ``tokens.txt``;
* band sections, in order of falling importance. Each has one table row per prunable tensor (weights
  in the band: uint64, low bits of the gap code: uint8, bytes of its unary stream: uint64). Then
  follow, per tensor, the positions of these weights among the weights of no earlier band
  (:mod:`omnisparse.nested.gaps`) and their values, in index order.

Numbers are little-endian. The ranking is that of the weights *as rounded to the precision of the
file*, and counts per tensor are the budget's uniform counts. So the net of any size read from the
file is exactly the net of that size of the (rounded) supernet. For a size inside a band, the whole
band is read and its least important weights are dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from omnisparse.artifact.precision import VALUE_DTYPES, Precision
from omnisparse.artifact.tensorfile import (
    ITEM_BYTES,
    MAX_DIMENSION,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    Field,
    is_count,
    parse_json,
)
from omnisparse.errors import FormatError
from omnisparse.sparsity.budget import Budget
from omnisparse.version import __version__

MAGIC = b"OMNINEST"
FORMAT_VERSION = 1
PREAMBLE_BYTES = 48
MAX_EXPANSION = 512
"""Largest ratio of bytes of the dense float32 net to bytes of the file; more is refused."""

FREE_TENSORS = 256
BYTES_PER_TENSOR = 256
"""A file may list this many tensors, plus one for each further number of bytes in the file.
Dividing a size among millions of tensors would take minutes. A header and its base section have
enough bytes."""

TABLE = np.dtype([("count", "<u8"), ("low_bits", "u1"), ("unary", "<u8")])


@dataclass(frozen=True)
class Section:
    """A run of bytes that is read and checked as a whole."""

    kept: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """Content of the header. ``tensors`` have their names in the state dict and stored dtypes."""

    config: dict[str, Any]
    precision: Precision
    tensors: tuple[Field, ...]
    prunable: tuple[str, ...]
    buffers: tuple[str, ...]
    floor: float
    tokenizer_bytes: int
    tokens_bytes: int
    sections: tuple[Section, ...]

    def budget(self) -> Budget:
        """The size budget of this net."""
        buffers = frozenset(self.buffers)  # a malicious header may name hundreds of thousands
        shapes = {t.key: t.shape for t in self.tensors if t.key not in buffers}
        return Budget(shapes, self.prunable, floor=self.floor)

    def base_fields(self) -> tuple[Field, ...]:
        """Arrays of the base section, without the tokenizer files."""
        prunable = frozenset(self.prunable)
        fields = [field for field in self.tensors if field.key not in prunable]
        scaled = [field for field in self.tensors if self.is_scaled(field)]
        return (*fields, *(Field(f"{t.key}.scale", "F32", t.shape[:1]) for t in scaled))

    def is_scaled(self, field: Field) -> bool:
        """Whether a tensor is int8 with a scale per row."""
        return self.precision == "int8" and field.dtype == "I8"

    def render(self) -> bytes:
        """Preamble and header."""
        text = json.dumps(
            {
                **self.config,
                "version": __version__,
                "precision": self.precision,
                "tensors": [[t.key, t.dtype, list(t.shape)] for t in self.tensors],
                "prunable": list(self.prunable),
                "buffers": list(self.buffers),
                "floor": self.floor,
                "tokenizer_bytes": self.tokenizer_bytes,
                "tokens_bytes": self.tokens_bytes,
                "sections": [[s.kept, s.num_bytes, s.sha256] for s in self.sections],
            },
            separators=(",", ":"),
            allow_nan=False,
        ).encode()
        numbers = FORMAT_VERSION.to_bytes(4, "little") + len(text).to_bytes(4, "little")
        return MAGIC + numbers + hashlib.sha256(text).digest() + text


def parse_preamble(data: bytes, what: str) -> tuple[int, bytes]:
    """Length and digest of the header.

    Raises:
        FormatError: If this is not a nested file, or its version is unknown.
    """
    if len(data) != PREAMBLE_BYTES or data[:8] != MAGIC:
        raise FormatError(f"{what}: not a nested file")
    version = int.from_bytes(data[8:12], "little")
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{what}: nested format version {version} is not known to omnisparse {__version__} "
            f"(known: {FORMAT_VERSION})"
        )
    length = int.from_bytes(data[12:16], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{what}: the header is too long")
    return length, data[16:]


def max_tensors(file_bytes: int) -> int:
    """Most tensors that a file or prefix of this many bytes may list."""
    return FREE_TENSORS + file_bytes // BYTES_PER_TENSOR


def parse_header(text: bytes, digest: bytes, what: str, file_bytes: int) -> Header:
    """The header, checked for internal consistency.

    Args:
        text: Its JSON.
        digest: Its expected SHA-256.
        what: Name of the file, for messages.
        file_bytes: Bytes of the existing file or prefix.

    Raises:
        FormatError: If the header is inconsistent or lists too many tensors for the file.
    """
    if hashlib.sha256(text).digest() != digest:
        raise FormatError(f"{what}: header checksum does not match")
    config = parse_json(text, what)
    listed, most = config.get("tensors"), max_tensors(file_bytes)
    if isinstance(listed, list) and len(listed) > most:
        raise FormatError(f"{what}: lists {len(listed)} tensors; a file of its size at most {most}")
    try:
        header = _header_of(config)
        check_header(header)
        return header
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{what}: malformed header ({error!r:.120})") from None


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError("names expected")
    if len(set(value)) != len(value):
        raise ValueError("a name is repeated")
    return tuple(value)


def _count(value: object) -> int:
    if not is_count(value):
        raise ValueError("count expected")
    assert isinstance(value, int)
    return value


def _field(entry: Sequence[Any]) -> Field:
    key, dtype, shape = entry
    if not isinstance(key, str) or not key or dtype not in ITEM_BYTES or type(shape) is not list:
        raise ValueError("tensor expected")
    if len(shape) > MAX_DIMENSIONS or not all(is_count(n, MAX_DIMENSION) and n for n in shape):
        raise ValueError("illegal shape")
    return Field(key, dtype, tuple(shape))


def _section(entry: Sequence[Any]) -> Section:
    kept, num_bytes, digest = entry
    if not isinstance(digest, str) or len(digest) != 64:
        raise ValueError("digest expected")
    return Section(_count(kept), _count(num_bytes), digest)


def _header_of(config: Mapping[str, Any]) -> Header:
    precision = config["precision"]
    if precision not in VALUE_DTYPES:
        raise ValueError("unknown precision")
    floor = config["floor"]
    if type(floor) is not float or not 0 <= floor <= 1:
        raise ValueError("illegal floor")
    if not all(isinstance(config[key], dict) for key in ("model", "features", "source")):
        raise ValueError("model, features and source must be objects")
    return Header(
        config={key: config[key] for key in ("model", "features", "source")},
        precision=precision,
        tensors=tuple(_field(entry) for entry in config["tensors"]),
        prunable=_names(config["prunable"]),
        buffers=_names(config["buffers"]),
        floor=floor,
        tokenizer_bytes=_count(config["tokenizer_bytes"]),
        tokens_bytes=_count(config["tokens_bytes"]),
        sections=tuple(_section(entry) for entry in config["sections"]),
    )


def check_header(header: Header) -> None:
    """Raises ValueError if the header contradicts itself."""
    tensors = {field.key: field for field in header.tensors}
    if len(tensors) != len(header.tensors):
        raise ValueError("a tensor is repeated")
    if not set(header.prunable) | set(header.buffers) <= set(tensors):
        raise ValueError("a name is not among the tensors")
    prunable = frozenset(header.prunable)
    if set(header.prunable) & set(header.buffers) or not header.prunable:
        raise ValueError("prunable and buffers overlap, or nothing is prunable")
    for field in header.tensors:
        vector = len(field.shape) < 2
        if field.dtype == "I8" and (vector or header.precision != "int8"):
            raise ValueError(f"{field.key} is int8 without scales")
        expected = "F32" if header.precision == "int8" and vector else ""
        if field.key in prunable and field.dtype != (expected or VALUE_DTYPES[header.precision]):
            raise ValueError(f"{field.key} is not stored as {header.precision}")
    _check_sections(header)


def _check_sections(header: Header) -> None:
    kept = [section.kept for section in header.sections]
    if len(kept) < 2 or kept[0] != 0 or any(a >= b for a, b in pairwise(kept)):
        raise ValueError("sections do not grow")
    budget = header.budget()
    if kept[-1] != budget.prunable_parameters or kept[1] < sum(budget.floors.values()):
        raise ValueError("sections do not contain every size")
    fields = header.base_fields()
    if len({field.key for field in fields}) != len(fields):
        raise ValueError("names of tensors and scales collide")
    base = sum(field.num_bytes for field in fields)
    if header.sections[0].num_bytes != base + header.tokenizer_bytes + header.tokens_bytes:
        raise ValueError("base section has the wrong length")
    prunable = frozenset(header.prunable)
    stored = sum(field.num_bytes for field in header.tensors if field.key in prunable)
    if sum(section.num_bytes for section in header.sections[1:]) < stored:
        raise ValueError("sections are too short for the weights")
