"""Reads what a W&B run has written, without W&B's own reader (it has none in Python any more).

Source: W&B's file format, a log in blocks of 32 KiB as LevelDB's; the first 7 bytes are its head.
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEAD = 1 << 15, 7


def records_of(path: Path) -> list[Any]:
    """The records of a ``.wandb`` file; one that a kill cut short is left out."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", "not a file of W&B"
    place, whole, records = _HEAD, b"", []
    while place + _HEAD <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEAD:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEAD])
        part = data[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length
        if kind == 0 or len(part) < length:
            break
        whole = whole + part if kind in (3, 4) else part
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(whole)
            records.append(record)
    return records


def history_of(run: Path, *, patience: float = 60.0) -> list[tuple[int, dict[str, Any]]]:
    """Step and metrics of every row that went to W&B, from all its files below ``run``.

    Args:
        run: The run directory.
        patience: Seconds to wait for W&B's own process to end each file.
    """
    deadline = time.monotonic() + patience
    rows = []
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        records = records_of(path)
        while not any(map(_is_end, records)) and time.monotonic() < deadline:
            time.sleep(0.05)
            records = records_of(path)
        for record in records:
            if record.WhichOneof("record_type") == "history":
                values = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                metrics = {key: value for key, value in values.items() if key[0] != "_"}
                rows.append((int(record.history.step.num), metrics))
    return rows


def _is_end(record: Any) -> bool:
    return bool(record.WhichOneof("record_type") == "exit")
