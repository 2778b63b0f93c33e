"""Files inside of tar archives, named so that all of the package reads them like any other file.

The name of a member says where it lies and what it holds:
``/data/recording.000000.tar::1536+20480:DIGEST.flac`` is 20,480 bytes from byte 1,536, of that
content. A member is read without touching the rest of its archive, and is compared with its digest
each time, so that a damaged or exchanged archive is an error and never other sound.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from omnisparse.data.forking import renewed_by_fork

DIGEST_BYTES = 20
"""Length of the digest of a file's content."""
MAX_BYTES = 1 << 31
"""Largest member that is read."""

_NAME = re.compile(
    r"(?P<tar>.+\.tar)::(?P<offset>\d{1,15})\+(?P<size>\d{1,10}):(?P<digest>[0-9a-f]{40})"
    r"(?P<suffix>\.[A-Za-z0-9]{1,8})?",
    re.DOTALL,
)
_OPEN_FILES = 64


class Member(NamedTuple):
    """A file inside of a tar archive."""

    tar: str
    """Path of the archive."""
    offset: int
    """First byte of the content."""
    size: int
    """Bytes."""
    digest: str
    """Hash of the content: :func:`digest_of`."""
    suffix: str = ""
    """Ending of its name, as ``.flac``."""

    def __str__(self) -> str:
        """Its name, for :func:`parse_member`."""
        return f"{self.tar}::{self.offset}+{self.size}:{self.digest}{self.suffix}"


def digest_of(content: bytes) -> str:
    """Hash of the content of a file."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def parse_member(name: str) -> Member | None:
    """The member that a name names; None where it is the name of a plain file."""
    found = _NAME.fullmatch(name) if "::" in name else None
    if found is None:
        return None
    tar, offset, size, digest, suffix = found.groups(default="")
    return Member(tar, int(offset), int(size), digest, suffix)


def read_member(member: Member) -> bytes:
    """The content of a member.

    Raises:
        OSError: If the archive cannot be read.
        ValueError: If it does not hold this content there; says so.
    """
    if member.size > MAX_BYTES:
        raise ValueError(f"a member of {member.size:,} bytes; legal: up to {MAX_BYTES:,}")
    content = _Archives.read(member.tar, member.offset, member.size)
    if digest_of(content) != member.digest:
        raise ValueError("the archive is damaged, or another one than when it was listed")
    return content


def list_members(tar: Path) -> list[tuple[str, int, int]]:
    """Name, offset and size of every file of an archive, in order.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no plain tar archive, is cut short, or holds anything but files.
    """
    total = tar.stat().st_size
    members = []
    try:
        with tarfile.open(tar, mode="r:", ignore_zeros=False) as archive:
            for info in archive:
                if not info.isreg() or info.issparse():
                    raise ValueError(f"{info.name[:80]} in it is no file")
                if not 0 <= info.size <= total - info.offset_data:
                    raise ValueError("it is cut short")
                members.append((info.name, info.offset_data, info.size))
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError("it is no tar archive, or a damaged one") from error
    return members


class _Archives:
    """The archives read last, held open: opening one for every member would cost more than it."""

    _files: OrderedDict[tuple[int, str], int] = OrderedDict()  # noqa: RUF012
    _lock = renewed_by_fork(threading.Lock())

    @classmethod
    def read(cls, tar: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer where the archive ends before."""
        with cls._lock:  # no other thread may close the file in between
            descriptor = cls._descriptor(tar)
            # Memory for as many bytes as a stranger's name asks for is not laid out.
            return os.pread(descriptor, min(size, os.fstat(descriptor).st_size), offset)

    @classmethod
    def _descriptor(cls, tar: str) -> int:
        status = os.stat(tar)
        # An archive that was replaced is another file of the same name.
        known = cls._files.get((status.st_ino, tar))
        if known is not None:
            cls._files.move_to_end((status.st_ino, tar))
            return known
        descriptor = os.open(tar, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        cls._files[(status.st_ino, tar)] = descriptor
        if len(cls._files) > _OPEN_FILES:
            os.close(cls._files.popitem(last=False)[1])
        return descriptor
