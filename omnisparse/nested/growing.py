"""Prefixes of nested files: made from the whole file, and extended with the bytes that follow."""

from __future__ import annotations

import os
from pathlib import Path

from omnisparse.atomic import replaced_file
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.nested.inspection import is_nested
from omnisparse.nested.reader import NestedFile, check_sections
from omnisparse.nested.sources import FileSource
from omnisparse.sparsity.sizes import Size


def write_prefix(path: Path, whole: NestedFile, size: Size | str | int) -> int:
    """Write the shortest prefix of a nested file that contains ``size``, checked and atomically.

    Args:
        path: The file to write; an existing nested file is replaced.
        whole: The whole file, or a long enough prefix of it. Only the needed bytes are read.
        size: As of :meth:`NestedFile.prefix_bytes`.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: If the size is illegal for this net; names the legal range.
        FormatError: If bytes are missing or damaged.
        OmnisparseError: If another kind of file is at ``path`` or writing fails; nothing has
            changed then.
    """
    if path.exists() and not is_nested(path):
        raise OmnisparseError(f"{path} exists and is not a nested file; choose another place")
    last = whole.stops.index(whole.prefix_bytes(size))
    whole.require(last)
    with replaced_file(path) as partial, partial.open("xb") as file:
        file.write(whole.source.read(0, whole.stops[0]))
        for index, section in enumerate(whole.header.sections[:last]):
            piece = whole.source.read(whole.stops[index], whole.stops[index + 1])
            try:
                list(check_sections(piece, [section]))
            except FormatError as error:
                raise FormatError(f"{whole.source.name}: {error}") from None
            file.write(piece)
    return whole.stops[last]


def missing_range(path: Path, size: Size | str | int) -> tuple[int, int]:
    """The byte range [start, stop) that a prefix still needs for ``size``; empty if none."""
    nested = NestedFile(path)
    start = nested.complete_bytes
    return start, max(start, nested.prefix_bytes(size))


def grow(path: Path, more: bytes | Path) -> int:
    """Append to a prefix the bytes that follow its last whole section, after checking them.

    If killed half-way, it leaves a prefix with an incomplete section, which readers ignore and the
    next call replaces.

    Args:
        path: A nested file, or a prefix of at least its first section.
        more: The bytes at :func:`missing_range`, or a file with them: complete sections.

    Returns:
        Bytes of the file now.

    Raises:
        FormatError: If these are not the next sections of this file; nothing has changed then.
        OmnisparseError: If writing fails.
    """
    nested = NestedFile(path)
    start = nested.complete_bytes
    data = memoryview(more) if isinstance(more, bytes) else FileSource(more).read_all()
    stop = start + len(data)
    if stop not in nested.stops:
        raise FormatError(
            f"{path}: expected bytes from {start} to one of "
            f"{[at for at in nested.stops if at > start]}, got {len(data)} bytes"
        )
    first = nested.stops.index(start)
    new = nested.header.sections[first : nested.stops.index(stop)]
    try:
        list(check_sections(data, new))
    except FormatError as error:
        raise FormatError(f"{path}: not the bytes that follow: {error}") from None
    del nested  # its memory map must be closed before the truncation below
    try:
        with path.open("r+b") as file:
            file.truncate(start)
            file.seek(start)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OmnisparseError(f"{path}: cannot be written ({error.strerror})") from error
    return stop


def grow_from(path: Path, place: str | Path | NestedFile, size: Size | str | int) -> int:
    """Fetch the bytes that ``path`` lacks for ``size`` from the whole file, and append them.

    If ``path`` does not exist, the whole prefix is fetched.

    Args:
        path: A nested file, or a prefix of at least its first section.
        place: Path or address of the whole file.
        size: As of :meth:`NestedFile.prefix_bytes`.

    Returns:
        Bytes of the file now.

    Raises:
        FormatError: If the two files belong to different nets, or bytes are damaged.
    """
    whole = place if isinstance(place, NestedFile) else NestedFile(place)
    if path.exists():
        if NestedFile(path).header_digest != whole.header_digest:
            raise FormatError(f"{path}: not a prefix of {whole.source.name}")
    else:
        head = bytes(whole.source.read(0, whole.stops[0]))
        base = bytes(whole.source.read(whole.stops[0], whole.stops[1]))
        list(check_sections(memoryview(base), whole.header.sections[:1]))
        with replaced_file(path) as temporary:
            temporary.write_bytes(head + base)
    start, stop = missing_range(path, size)
    return grow(path, bytes(whole.source.read(start, stop))) if stop > start else start
