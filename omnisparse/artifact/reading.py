"""Reading an artifact from an untrusted source."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.artifact.contents import (
    CONFIG,
    FORMAT_VERSION,
    MODULE_KIND,
    NO_DIGEST,
    TOKENIZER,
    TOKENS,
    WEIGHTS,
    files_of,
)
from omnisparse.artifact.decoding import decode, keys_of
from omnisparse.artifact.tensorfile import Array, TensorFile, parse_json
from omnisparse.artifact.tensors import as_tensor
from omnisparse.errors import FormatError
from omnisparse.version import __version__

if TYPE_CHECKING:
    from torch import Tensor

TRAINED_SECONDS = "trained_seconds"
"""Where a source says how long the longest training utterance was."""
MAX_CONFIG_BYTES = 16_000_000
MAX_TOKENIZER_BYTES = 256_000_000


@dataclass(frozen=True)
class Artifact:
    """An artifact that was read: ``config`` is our block, ``arrays`` are dense, in float32."""

    config: dict[str, Any]
    arrays: dict[str, Array]
    tokenizer: bytes
    tokens_txt: str
    features: dict[str, Any]
    model: dict[str, Any]

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The arrays as tensors that share their memory."""
        return {fqn: as_tensor(array) for fqn, array in self.arrays.items()}


def require_recogniser(model: Mapping[str, Any], path: Path) -> None:
    """Refuse a packed net that is no recogniser.

    Raises:
        FormatError: If the description is of a net of any other kind.
    """
    if model.get("kind") == MODULE_KIND:
        raise FormatError(
            f"{path}: no recogniser, but a packed {model.get('class')!s:.80}; "
            "omnisparse.load_packed(path, model) loads it"
        )


def read_recogniser(path: Path) -> Artifact:
    """:func:`read_artifact` of a recogniser.

    Raises:
        FormatError: If a check fails, or the net is none.
    """
    artifact = read_artifact(path)
    require_recogniser(artifact.model, path)
    return artifact


def is_artifact(path: Path) -> bool:
    """Whether a directory looks like an artifact; its content is not checked."""
    config = path / CONFIG
    try:
        if not (path / WEIGHTS).is_file() or config.stat().st_size > MAX_CONFIG_BYTES:
            return False
        return isinstance(parse_json(config.read_bytes(), CONFIG).get("omnisparse"), dict)
    except (OSError, FormatError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Our block of ``config.json``, and the problems of the file's checksum.

    Raises:
        FormatError: If the file cannot be read, or has an unknown format version.
    """
    data = _read_file(path / CONFIG, MAX_CONFIG_BYTES)
    ours = parse_json(data, CONFIG).get("omnisparse")
    if not isinstance(ours, dict):
        raise FormatError(f"{path}: config.json has no omnisparse block; not an artifact")
    version = ours.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise FormatError(
            f"{path}: artifact format version {str(version)[:20]!r} is not known to omnisparse "
            f"{__version__} (known: {FORMAT_VERSION})"
        )
    digest = ours.get("config_sha256")
    problems = []
    if not isinstance(digest, str) or len(digest) != 64:
        problems.append("config.json: no checksum of its own")
    else:
        zeroed = data.replace(digest.encode(), NO_DIGEST.encode())
        if hashlib.sha256(zeroed).hexdigest() != digest:
            problems.append("config.json: checksum does not match")
    _check_config(ours, path)
    return ours, problems


def _check_config(ours: Mapping[str, Any], path: Path) -> None:
    expected: dict[str, type] = {
        "model": dict,
        "features": dict,
        "sha256": dict,
        "fqns": list,
        "prunable": list,
        "buffers": list,
        "num_nonzero": int,
        "dense_parameters": int,
    }
    for key, kind in expected.items():
        if type(ours.get(key)) is not kind:
            raise FormatError(f"{path}: config.json: {key} is missing or not a {kind.__name__}")
    for key in ("fqns", "prunable", "buffers", "single"):
        names = ours.get(key, [])  # a net without single weights beside blocks names none
        if not isinstance(names, list) or not all(
            isinstance(name, str) and 0 < len(name) <= 512 for name in names
        ):
            raise FormatError(f"{path}: config.json: {key} must be a list of names")
        if len(set(names)) != len(names) or not set(names) <= set(ours["fqns"]):
            raise FormatError(f"{path}: config.json: {key} has a repeated or unknown name")


def _read_file(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            # Python allocates the requested number of bytes: request only what the file has.
            data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise FormatError(f"{path}: larger than {limit} bytes")
    return data


def check_files(path: Path, ours: Mapping[str, Any]) -> tuple[bytes, bytes, list[str]]:
    """The tokenizer's two files (empty where a net has none), and what does not match.

    Raises:
        FormatError: If a file cannot be read.
    """
    texts = {
        name: _read_file(path / name, MAX_TOKENIZER_BYTES)
        for name in files_of(ours["model"])
        if name in (TOKENIZER, TOKENS)
    }
    try:
        weights = file_digest(path / WEIGHTS)
    except OSError as error:
        raise FormatError(f"{path / WEIGHTS}: cannot be read ({error.strerror})") from None
    digests = {
        WEIGHTS: weights,
        **{name: hashlib.sha256(data).hexdigest() for name, data in texts.items()},
    }
    problems = [
        f"{name}: checksum does not match"
        for name, digest in digests.items()
        if ours["sha256"].get(name) != digest
    ]
    return texts.get(TOKENIZER, b""), texts.get(TOKENS, b""), problems


def check_names(file: TensorFile, ours: Mapping[str, Any]) -> None:
    """Check that the file holds exactly the named tensors.

    Raises:
        FormatError: Naming the first tensor that is missing or unknown.
    """
    known = {key for fqn in ours["fqns"] for key in keys_of(fqn, file.fields)}
    unknown = sorted(set(file.fields) - known)
    if unknown:
        raise FormatError(f"{WEIGHTS}: unknown tensor {unknown[0][:80]!r}")


def read_artifact(path: Path) -> Artifact:
    """Read an artifact from an untrusted source.

    Checksums, header, names, shapes, masks and values are all verified before use. Memory: the
    dense net in float32, at most 32 bytes per byte of the file (512 with 16x1 blocks).

    Raises:
        FormatError: If any check fails; the message is one line.
    """
    path = Path(path)
    ours, problems = read_config(path)
    tokenizer, tokens, more = check_files(path, ours)
    if problems + more:
        raise FormatError(f"{path}: {(problems + more)[0]}")
    try:
        file = TensorFile(path / WEIGHTS)
        check_names(file, ours)
        arrays = {fqn: decode(file, fqn).array for fqn in ours["fqns"]}
        tokens_txt = tokens.decode()
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path}: {TOKENS} is not UTF-8 text") from None
    return Artifact(ours, arrays, tokenizer, tokens_txt, ours["features"], ours["model"])


def trained_seconds_of(config: Mapping[str, Any]) -> float | None:
    """Longest utterance that a net was trained on, as its files say; None if they do not.

    Args:
        config: Our block of the description, which may come from anyone.
    """
    source = config.get("source")
    found = source.get(TRAINED_SECONDS) if isinstance(source, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if 0 < found < math.inf else None
