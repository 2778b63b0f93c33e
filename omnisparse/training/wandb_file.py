"""What a W&B run has brought to the disk, read from its own file.

W&B's process keeps up to 32 KiB of rows in memory and loses them when the training is killed
(wandb 0.31.0, offline: of 4 rows logged 3 s before a ``kill -9``, none was in the file). So only
the file says what was kept. W&B's own reader of it is no longer a part of its package.

Source: a log in blocks of 32 KiB as LevelDB's (github.com/google/leveldb, doc/log_format.md), each
record a ``Record`` of W&B's protocol; the first 7 bytes are W&B's head.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAGIC = b":W&B"
_BLOCK, _HEAD = 1 << 15, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_history(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and metrics of every whole row in a ``.wandb`` file, in order; W&B's own keys left out.

    Args:
        path: The file; what a kill cut short, or what is no such file, ends the list.
    """
    rows = []
    for record in _records(path):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            metrics = {key: value for key, value in values.items() if not key.startswith("_")}
            rows.append((int(record.history.step.num), metrics))
    return rows


def is_ended(path: Path) -> bool:
    """Whether W&B has ended the file, as it does some time behind ``finish``."""
    return any(record.WhichOneof("record_type") == "exit" for record in _records(path))


def _records(path: Path) -> Iterator[Any]:
    try:
        from google.protobuf.message import DecodeError
        from wandb.proto.wandb_internal_pb2 import Record

        data = path.read_bytes()
    except (ImportError, OSError):
        return
    if not data.startswith(_MAGIC):
        return
    place, whole = _HEAD, b""
    while place + _HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:  # no head fits: the rest of a block is empty
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEAD])
        part = data[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length
        if not _FULL <= kind <= _LAST or len(part) < length:
            return
        whole = whole + part if kind in (_MIDDLE, _LAST) else part
        if kind in (_FULL, _LAST):
            record = Record()
            try:
                record.ParseFromString(whole)
            except DecodeError:
                return
            yield record
