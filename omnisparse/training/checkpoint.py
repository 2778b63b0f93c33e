"""Checkpoints that survive a kill -9 and contain no pickle.

A checkpoint is a folder ``step-00001234`` of safetensors files and one ``state.json``, which is its
manifest, too: it holds the size and CRC-32 of every tensor file, and a CRC-32 of itself. It is
written to a hidden folder beside it, fsynced and renamed, so a reader sees all of it or nothing.
Older checkpoints are deleted only afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from omnisparse.durable import sync_path
from omnisparse.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

_STATE = "state.json"
_FORMAT = 1
_MOST_STATE_BYTES = 64_000_000
_OWN_CHECKSUM = "crc32"
"""Key of the checksum of ``state.json`` itself; checkpoints of earlier versions have none."""
_KEYS = {"format", "step", "files", "state", _OWN_CHECKSUM}
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    root: Path,
    *,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write the checkpoint of ``step`` atomically; keep it and the ``keep - 1`` before it.

    Args:
        root: The run's ``checkpoints`` folder; made if absent.
        step: Optimizer steps done.
        tensors: File stem (``model``, ``optimizer``) to named tensors.
        state: JSON-serialisable state.
        keep: Checkpoints to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written (disk full); earlier checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step-*.partial"):  # of a kill; on a full disk it is in the way
        shutil.rmtree(leftover, ignore_errors=True)
    final = checkpoint_folder(root, step)
    partial = root / f".{final.name}.{os.getpid()}.partial"
    partial.mkdir()
    try:
        files = {}
        for stem, named in tensors.items():
            path = partial / f"{stem}.safetensors"
            _save_tensors(named, path)
            files[path.name] = {"bytes": path.stat().st_size, "crc32": _crc32(path)}
            sync_path(path)
        document = {"format": _FORMAT, "step": step, "files": files, "state": dict(state)}
        text = json.dumps({**document, _OWN_CHECKSUM: _checksum_of(document)})
        (partial / _STATE).write_text(text, encoding="utf-8")
        sync_path(partial / _STATE)
        sync_path(partial)
        _remove(final)
        os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_path(root)
    found = list_checkpoints(root)
    done = found.index(final) + 1
    for other in (*found[done:], *found[: max(0, done - keep)]):
        _remove(other)  # a later one was skipped as damaged and would stay the newest
    return final


def _save_tensors(named: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to a safetensors file.

    Raises:
        OSError: If that fails; safetensors' own error hides the system's number in its text.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def remove_after(root: Path, step: int) -> None:
    """Delete the checkpoints of later steps than ``step``: a run that goes back takes them anew."""
    for path in list_checkpoints(root):
        if path.name > checkpoint_folder(root, step).name:
            _remove(path)


def checkpoint_folder(root: Path, step: int) -> Path:
    """The folder of the checkpoint of ``step`` below ``root``."""
    return root / f"step-{step:08d}"


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; a kill never leaves half of it under its name."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}.old.partial")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is the folder of one complete checkpoint; its content is not read."""
    return _NAME.fullmatch(path.name) is not None and (path / _STATE).is_file()


def list_checkpoints(root: Path) -> list[Path]:
    """Return the complete checkpoints below ``root``, oldest first."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder, every file checked against its recorded CRC-32.

    Raises:
        FormatError: If it is not a checkpoint, or damaged.
    """
    document = verify_checkpoint(path)
    tensors = {
        file.stem: _load_tensors(file)
        for file in (tensor_file(path, name, document) for name in document["files"])
    }
    return Checkpoint(path, document["step"], tensors, document["state"])


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Return the parsed ``state.json`` of a checkpoint whose every file has its CRC-32.

    Raises:
        FormatError: If it is not a checkpoint, or damaged.
    """
    document = read_state(path)
    for name, entry in document["files"].items():
        file = tensor_file(path, name, document)
        if _crc32(file) != entry["crc32"]:
            raise FormatError(f"{file}: content does not match its checksum")
    return document


def load_newest(
    root: Path,
    tell: Callable[[str], None] = lambda line: None,
    *,
    until: int | None = None,
) -> Checkpoint | None:
    """Read the newest checkpoint below ``root`` that is intact, or None if there is none.

    Args:
        root: The run's ``checkpoints`` folder.
        tell: Called with one line if damaged ones are passed over.
        until: Latest step to take; None for any.

    Raises:
        FormatError: If there are checkpoints and all of them are damaged.
    """
    damaged: list[FormatError] = []
    for path in reversed(list_checkpoints(root)):
        if until is not None and path.name > checkpoint_folder(root, until).name:
            continue
        try:
            checkpoint = load_checkpoint(path)
        except FormatError as error:
            damaged.append(error)
            continue
        if damaged:
            tell(
                f"{len(damaged)} damaged checkpoint{'s' if len(damaged) > 1 else ''} passed over "
                f"({damaged[0]}): {path.name} is the newest that is whole"
            )
        return checkpoint
    if damaged:
        raise damaged[0]
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Return the parsed ``state.json`` of the checkpoint folder ``path``.

    Raises:
        FormatError: If there is none or it is not of this format.
    """
    try:
        if (path / _STATE).stat().st_size > _MOST_STATE_BYTES:
            raise FormatError(f"{path / _STATE}: larger than {_MOST_STATE_BYTES:,} bytes")
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not a checkpoint ({_STATE} is missing or not JSON)") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FormatError(f"{path}: not a checkpoint of format {_FORMAT}")
    unknown = set(document) - _KEYS
    own = document.pop(_OWN_CHECKSUM, None)
    if unknown or (own is not None and own != _checksum_of(document)):
        raise FormatError(f"{path / _STATE}: content does not match its checksum")
    files, state = document.get("files", {}), document.get("state")
    sound = isinstance(files, dict) and isinstance(state, dict)
    if not sound or not isinstance(document.get("step"), int):
        raise FormatError(f"{path}: {_STATE} lacks its files, its step or its state")
    for name, entry in files.items():
        if not isinstance(entry, dict) or not {"bytes", "crc32"} <= set(entry):
            raise FormatError(f"{path}: {_STATE} lacks the size or checksum of {name}")
    return document


def tensor_file(path: Path, name: str, document: Mapping[str, Any]) -> Path:
    """Return the path of tensor file ``name``; its size is checked, its content is not read.

    Raises:
        FormatError: If the checkpoint has no such file or its size differs from the recorded one.
    """
    entry = document["files"].get(name)
    file = path / name
    if entry is None or Path(name).name != name or not file.is_file():
        raise FormatError(f"{path}: the checkpoint has no {name}")
    if file.stat().st_size != entry["bytes"]:
        raise FormatError(f"{file}: {file.stat().st_size} bytes instead of {entry['bytes']}")
    return file


def _load_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{file}: not a safetensors file ({error})") from error


def _checksum_of(document: Mapping[str, Any]) -> int:
    """CRC-32 of a document as JSON holds it: the same before it is written and after."""
    plain = json.loads(json.dumps(document))
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
