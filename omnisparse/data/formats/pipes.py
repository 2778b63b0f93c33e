"""Commands in Kaldi's `wav.scp` that only decode a file: the file is read, no command is run.

A manifest is data, and may be a stranger's. A command is understood where every word of it is: one
word that could change the sound, and it is refused.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

_SHELL = set("|&;<>()$`*?[]{}!\n")
_ADVICE = (
    "a command, which is never run; write its output to a file and name that in wav.scp "
    "(where flac, sox, ffmpeg, sph2pipe, mpg123, lame, oggdec, opusdec or cat only decode a file, "
    "the file itself is read)"
)
_NUMBER = re.compile(r"^\d+(\.\d+)?k?$")
_LEAST_RATE = 16000  # below, a changed rate takes sound away


class UnreadablePipeError(Exception):
    """A recording that is no file that can be read; says what to do."""


def read_pipe(command: str) -> tuple[str, int | None]:
    """What a command reads.

    Args:
        command: Of `wav.scp`, with the `|` at its end.

    Returns:
        The sound file, and the channel that alone is taken of it, from 0; None for all.

    Raises:
        UnreadablePipeError: If it is anything but a decoder of one file to its output.
    """
    text = command.strip().removesuffix("|").strip()
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or _SHELL & set(text):
        raise UnreadablePipeError(f"{command[:200]}: {_ADVICE}")
    reader = _READERS.get(words[0].rsplit("/", 1)[-1])
    found = None if reader is None else reader(words[1:])
    if found is None:
        raise UnreadablePipeError(f"{command[:200]}: {_ADVICE}")
    return found


_Found = tuple[str, int | None] | None
Reader = Callable[[list[str]], _Found]
"""Words of a command after its name -> file and channel; None where they are not understood."""


def _flac(words: list[str]) -> _Found:
    short, long, files = set(), set(), []
    for word in words:
        if word.startswith("--"):
            long.add(word)
        elif word.startswith("-") and len(word) > 1:
            short |= set(word[1:])
        else:
            files.append(word)
    decodes = "d" in short or "--decode" in long
    to_output = "c" in short or "--stdout" in long
    known = short <= set("cdsF") and long <= {
        *("--decode", "--stdout", "--silent", "--totally-silent", "--decode-through-errors"),
    }
    return (files[0], None) if len(files) == 1 and decodes and to_output and known else None


def _cat(words: list[str]) -> _Found:
    return (words[0], None) if len(words) == 1 and not words[0].startswith("-") else None


def _sox(words: list[str]) -> _Found:
    """`sox [-V1] [-t TYPE] IN [-t wav] [-b 16] [-e TYPE] [-r RATE] [-c 1] -`, without an effect."""
    files: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else ""
        if re.fullmatch(r"-V\d?|-q|-D|-G|--no-dither", word):
            position += 1
        elif word in {"-t", "-b", "-e"} and value:
            if word == "-t" and files and value not in {"wav", "wavpcm"}:
                return None
            if (word == "-b" and value == "8") or (word == "-t" and value == "raw"):
                return None
            position += 2
        elif files and ((word == "-r" and _keeps_band(value)) or (word == "-c" and value == "1")):
            position += 2
        elif word.startswith("-") and word != "-":
            return None
        else:
            files.append(word)
            position += 1
    return (files[0], None) if len(files) == 2 and files[1] == "-" and files[0] != "-" else None


def _ffmpeg(words: list[str]) -> _Found:
    """`ffmpeg [-v LEVEL] -i IN [-f wav] [-acodec pcm_s16le] [-ar RATE] [-ac 1] -`."""
    file = ""
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else ""
        if word in {"-nostdin", "-hide_banner", "-y", "-vn"}:
            position += 1
            continue
        if word in {"-", "pipe:", "pipe:1"}:
            return (file, None) if file and position == len(words) - 1 else None
        allowed = (
            (word == "-i" and not file)
            or word in {"-v", "-loglevel", "-threads", "-ab", "-b:a"}
            or (word == "-f" and value == "wav" and file)
            or (word in {"-acodec", "-c:a", "-codec:a"} and value in {"pcm_s16le", "pcm_f32le"})
            or (word == "-ar" and _keeps_band(value))
            or (word == "-ac" and value == "1")
        )
        if not allowed or not value or value.startswith("-"):
            return None
        file = value if word == "-i" else file
        position += 2
    return None


def _sph2pipe(words: list[str]) -> _Found:
    """`sph2pipe -f wav [-p] [-c CHANNEL] IN [OUT]`; its channels count from 1."""
    channel: int | None = None
    files: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else ""
        if word == "-p":
            position += 1
        elif word == "-f" and value in {"wav", "rif", "sph"}:
            position += 2
        elif word == "-c" and value in {"1", "2"}:
            channel = int(value) - 1
            position += 2
        elif word.startswith("-"):
            return None
        else:
            files.append(word)
            position += 1
    return (files[0], channel) if len(files) == 1 else None


def _decoder(*options: str, needed: str = "") -> Reader:
    """A reader of `TOOL OPTIONS FILE`, with a `-` for the output anywhere."""

    def read(words: list[str]) -> _Found:
        files = [word for word in words if word not in options and word != "-"]
        fits = len(files) == 1 and not files[0].startswith("-") and needed in ("", *words)
        return (files[0], None) if fits else None

    return read


def _keeps_band(rate: str) -> bool:
    """Whether sound at this rate holds all that a recogniser hears."""
    if not _NUMBER.match(rate):
        return False
    hertz = float(rate.removesuffix("k")) * (1000 if rate.endswith("k") else 1)
    return hertz >= _LEAST_RATE


_READERS: dict[str, Reader] = {
    "flac": _flac,
    "cat": _cat,
    "sox": _sox,
    "ffmpeg": _ffmpeg,
    "sph2pipe": _sph2pipe,
    "mpg123": _decoder("-q", "--quiet", "-w", needed="-w"),
    "lame": _decoder("--decode", "--quiet", "--silent", "-S", needed="--decode"),
    "oggdec": _decoder("-Q", "--quiet", "-o", needed="-o"),
    "opusdec": _decoder("--quiet", "--force-wav"),
}
