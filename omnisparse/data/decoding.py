"""Sound files decoded so that any stretch equals the same stretch of the whole file.

libsndfile's seeks are exact for plain samples only: after one, an MP3 is wrong for up to a quarter
of a second, and some codecs cannot seek at all. soundfile seeks after every read. So files of
other codecs are decoded from their start, without a seek, and the last ones are kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from omnisparse.data.forking import renewed_by_fork
from omnisparse.data.members import Member, parse_member, read_member

FloatArray = npt.NDArray[np.float32]

BLOCK_FRAMES = 1 << 19
"""Samples of each channel that are decoded at once: half a minute at 16 kHz."""

# Seeks are exact where every sample stands for itself; FLAC names its samples likewise.
_EXACT = {
    *("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"),
}
_UNREADABLE = (soundfile.SoundFileError, RuntimeError, OSError, ValueError, TypeError)
_FORMAT_UNKNOWN = 1  # libsndfile's code for a file that is no audio it knows
_KEPT_BYTES = 1 << 30
_TAG_BYTES = 1 << 16
# What a header says of its data where it was written into a pipe: anything that large.
_PIPED_BYTES = 0x7FFFFF00
_DATA_SIZE = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


class BadAudioError(Exception):
    """A file that is no sound recording, or not a whole one.

    Args:
        reason: One word for counting, such as `missing`.
        detail: What was found, without the name of the file.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Header:
    """What a sound file says of itself."""

    sampling_rate: int
    """In Hz."""
    channels: int
    """Channels, at least 1."""
    frames: int
    """Samples of each channel; 0 where the format leaves that to the decoder."""
    exact: bool
    """Whether a seek is exact."""
    declared: int | None
    """Samples of each channel that the file was to hold, which may be more than are left of it;
    None where ``frames`` is an estimate."""


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read from its start: soundfile seeks after each read of any other."""

    def seekable(self) -> bool:
        """Never, as far as reads are concerned."""
        return False

    @property
    def label(self) -> str:
        """Name of the file, also of one in an archive."""
        return str(getattr(self.name, "name", self.name))


def read_header(path: str | Path) -> Header:
    """What a sound file says of itself.

    Raises:
        BadAudioError: If it is missing or no audio.
    """
    with _opened(path) as (_, header):
        return header


def decode(path: str | Path, frames: int = BLOCK_FRAMES) -> Iterator[FloatArray]:
    """Decode a sound file from its start to its end.

    Args:
        path: The file.
        frames: Samples of each channel that a block holds, at most.

    Yields:
        [N, C] float32, in [-1, 1] unless the file holds floats beyond.

    Raises:
        BadAudioError: If the file is missing, no audio or damaged.
    """
    with decoded(path, frames) as (_, blocks):
        yield from blocks


@contextlib.contextmanager
def decoded(
    path: str | Path, frames: int = BLOCK_FRAMES
) -> Iterator[tuple[Header, Iterator[FloatArray]]]:
    """Open a sound file: what it says of itself, and its blocks as :func:`decode` yields them.

    Raises:
        BadAudioError: If the file is missing, no audio or damaged.
    """
    with _opened(path) as (file, header):
        yield header, _blocks(file, frames)


def decode_content(content: bytes, suffix: str) -> FloatArray:
    """Decode a sound file that is in memory.

    Args:
        content: The file.
        suffix: Ending of its name, as ``flac``.

    Returns:
        [N, C] float32.

    Raises:
        BadAudioError: If it is no audio or damaged.
    """
    source = _Content(content)
    source.name = f"memory.{suffix}"
    try:
        with _quiet(source.name):
            file = _Forward(source)
        with file:
            blocks = list(_blocks(file, BLOCK_FRAMES))
    except _UNREADABLE as error:
        raise BadAudioError("unreadable", _why(error)) from error
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), dtype=np.float32)


def read_stretch(path: str | Path, start: int, count: int | None) -> FloatArray:
    """A stretch of a sound file, equal to the same stretch of the whole file decoded.

    Args:
        path: The file.
        start: First sample, from 0.
        count: Samples of each channel; None for all to the end.

    Returns:
        [N, C] float32; fewer than ``count`` samples where the file ends before.

    Raises:
        BadAudioError: If the file is missing, no audio or damaged.
    """
    with _opened(path) as (file, header):
        if header.exact or start == 0:
            if start:
                file.seek(min(start, header.frames))
            return _take(file, header, 0, count)
        kept = _Kept.get(path)
        if kept is None and header.frames * header.channels * 4 > _KEPT_BYTES:
            return _take(file, header, start, count)
        if kept is None:
            kept = _take(file, header, 0, None)
            _Kept.put(path, kept)
    return kept[start:] if count is None else kept[start : start + count]


def is_cut_short(header: Header, num_decoded: int) -> str | None:
    """Whether a file ends before it says it does.

    Args:
        header: What it says of itself.
        num_decoded: Samples of each channel that could be decoded.

    Returns:
        What is missing, for a person; None where nothing is.
    """
    if header.declared is None:
        return None
    seconds = num_decoded / header.sampling_rate
    wanted = header.declared / header.sampling_rate
    if abs(wanted - seconds) <= max(0.1, 0.01 * wanted):
        return None
    return f"its header says {wanted:.2f} s, {seconds:.2f} s could be decoded"


def _declared(file: _Forward, frames: int) -> int | None:
    if file.format == "MP3" and not _has_length(file.label):
        return None
    found = _DATA_SIZE.search(file.extra_info) if file.format in {"WAV", "WAVEX"} else None
    if found is not None and int(found[2]) < int(found[1]) < _PIPED_BYTES:
        return round(frames * int(found[1]) / max(1, int(found[2])))
    return frames


def _has_length(path: str | Path) -> bool:
    """Whether an MP3 says how long it is."""
    member = parse_member(str(path))
    if member is not None:
        start = read_member(member)[:_TAG_BYTES]
    else:
        with open(path, "rb") as file:
            start = file.read(_TAG_BYTES)
    return any(tag in start for tag in (b"Xing", b"Info", b"VBRI"))


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[_Forward, Header]]:
    name = str(path)
    member = parse_member(name)
    source: str | io.BytesIO = name
    if member is not None:
        source = _of_archive(member)
    elif not os.path.isfile(name):
        raise BadAudioError("missing", "not a file" if os.path.exists(name) else "no such file")
    try:
        if (os.path.getsize(name) if member is None else member.size) == 0:
            raise BadAudioError("empty", "a file of 0 bytes")
        with _quiet(name):
            file = _Forward(source)
    except _UNREADABLE as error:
        raise BadAudioError("unreadable", _why(error)) from error
    with file:
        header = Header(
            sampling_rate=int(file.samplerate),
            channels=int(file.channels),
            frames=max(0, int(file.frames)),
            exact=file.subtype in _EXACT and soundfile.SoundFile.seekable(file),
            declared=_declared(file, max(0, int(file.frames))),
        )
        if header.sampling_rate < 1 or header.channels < 1:
            raise BadAudioError("unreadable", "a header without a sampling rate or channels")
        yield file, header


class _Content(io.BytesIO):
    """The content of a file that lies in an archive."""

    name = ""


def _of_archive(member: Member) -> io.BytesIO:
    if not os.path.isfile(member.tar):
        raise BadAudioError("missing", "no such archive")
    try:
        content = _Content(read_member(member))
    except OSError as error:
        raise BadAudioError("unreadable", _why(error)) from error
    except ValueError as error:
        raise BadAudioError("unreadable", str(error)) from error
    content.name = str(member)
    return content


def _blocks(file: _Forward, frames: int) -> Iterator[FloatArray]:
    while True:
        try:
            with _quiet(file.label):
                block = file.read(frames, dtype="float32", always_2d=True)
        except _UNREADABLE as error:
            raise BadAudioError("unreadable", _why(error)) from error
        if len(block) == 0:
            return
        yield np.asarray(block, dtype=np.float32)


def _take(file: _Forward, header: Header, skip: int, count: int | None) -> FloatArray:
    """Decode from where the file stands: pass over ``skip`` samples, then take ``count``."""
    taken: list[FloatArray] = []
    place, end = 0, None if count is None else skip + count
    while end is None or place < end:
        size = BLOCK_FRAMES if end is None else min(BLOCK_FRAMES, end - place)
        block = next(_blocks(file, size), None)
        if block is None:
            break
        taken.append(block[max(0, skip - place) :])
        place += len(block)
    if not taken:
        return np.zeros((0, header.channels), dtype=np.float32)
    return taken[0] if len(taken) == 1 else np.concatenate(taken)


class _Kept:
    """The files decoded last, for those of whom many stretches are read."""

    _files: OrderedDict[tuple[str, int, int], FloatArray] = OrderedDict()  # noqa: RUF012
    _lock = renewed_by_fork(threading.Lock())

    @classmethod
    def _key(cls, path: str | Path) -> tuple[str, int, int]:
        member = parse_member(str(path))
        if member is not None:  # its name tells its content
            return str(path), 0, 0
        status = os.stat(path)
        return str(path), status.st_size, status.st_mtime_ns

    @classmethod
    def get(cls, path: str | Path) -> FloatArray | None:
        with cls._lock:
            key = cls._key(path)
            if key in cls._files:
                cls._files.move_to_end(key)
            return cls._files.get(key)

    @classmethod
    def put(cls, path: str | Path, samples: FloatArray) -> None:
        with cls._lock:
            cls._files[cls._key(path)] = samples
            while len(cls._files) > 1 and sum(a.nbytes for a in cls._files.values()) > _KEPT_BYTES:
                cls._files.popitem(last=False)


def _why(error: Exception) -> str:
    """Why a file cannot be decoded, in words of our own."""
    if getattr(error, "code", None) == _FORMAT_UNKNOWN:
        return "no audio format that is known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "damaged, or of an encoding that cannot be decoded"


_quiet_lock = renewed_by_fork(threading.RLock())
renewed_by_fork(getattr(soundfile.SoundFile, "_sf_error_lock", None))


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep what libmpg123 writes to the error stream by itself from the user, for MP3 only."""
    if not name.lower().endswith((".mp3", ".mp2", ".mpga")):
        yield
        return
    with _quiet_lock:
        try:
            saved = os.dup(2)
        except OSError:  # there is no error stream
            yield
            return
        silent = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(silent, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(silent)
