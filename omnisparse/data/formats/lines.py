"""Lines of the text files that corpora are made of, and the places that they name."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omnisparse.errors import DataError

AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".sph")
"""Endings of sound files, the one that is preferred first."""

_BYTE_ORDER_MARK = "\ufeff"
_MOST_LINE = 16_000_000
"""Bytes of a line, which may come from a small gzip file."""
_MARKS_OF_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered non-blank lines of a text file, gzipped or not, from 1; byte order marks are cut.

    Raises:
        DataError: If the file cannot be read as UTF-8 text.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(_MOST_LINE), b""), start=1):
                if len(raw) == _MOST_LINE:
                    raise DataError(f"cannot read {path}: line {number} has no end")
                if number == 1 and raw.startswith(_MARKS_OF_UTF16):
                    raise DataError(f"cannot read {path}: it is UTF-16 text, not UTF-8")
                # A mark also stands within a file that was joined of several.
                line = raw.decode("utf-8").lstrip(_BYTE_ORDER_MARK).strip()
                if line:
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: line {number} is not UTF-8 text") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: the gzip file is cut short or damaged") from error
    except gzip.BadGzipFile as error:
        raise DataError(f"cannot read {path}: it is no gzip file") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or 'no file'}") from error


def parse_json(line: str) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        ValueError: If there is none; says why.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (at character {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON that can be read (nested too deeply, or too long)") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def read_table(path: Path) -> tuple[dict[str, str], list[str]]:
    """A table of Kaldi's: the first word of each line, and the rest of it.

    Returns:
        The rest by the first word, of its first line where there are several; and the words that
        have several lines.

    Raises:
        DataError: If the file is missing or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    table: dict[str, str] = {}
    repeated = []
    for _, line in read_lines(path):
        name, *rest = line.split(maxsplit=1)
        if name in table:
            repeated.append(name)
        else:
            table[name] = rest[0] if rest else ""
    return table, repeated


def locate(name: str, folder: Path) -> Path:
    """Where a file that a manifest names lies: beside the manifest, or else as it is given.

    Args:
        name: Its path; ``~`` is the user's home.
        folder: Folder of the manifest.

    Returns:
        An absolute path; beside the manifest where the file is in neither place.
    """
    given = os.path.expanduser(name)
    beside = Path(os.path.abspath(folder / given))
    if os.path.isabs(given) or os.path.exists(beside) or not os.path.exists(given):
        return beside
    return Path(os.path.abspath(given))


def listed(folder: Path, pattern: str) -> list[Path]:
    """Files and folders of a pattern, sorted; hidden ones, and those in hidden folders, are not."""
    return sorted(path for path in folder.glob(pattern) if is_visible(path.relative_to(folder)))


def is_visible(path: Path) -> bool:
    """Whether no part of a path begins with a dot, as what systems leave behind does."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def split_name(path: Path) -> str:
    """Name of the split that a manifest file holds: `a/train.jsonl.gz` is `train`."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]
