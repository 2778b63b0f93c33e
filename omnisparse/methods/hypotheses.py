"""The teacher's hypotheses of a training set, decoded once and stored on disk.

A cache is a folder named by a hash of everything that the hypotheses depend on. It is written in
parts of a few hundred utterances, each complete or absent. So a killed decoding continues where it
stopped, and several processes share the work. A damaged part is detected by its checksum and
decoded again.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from omnisparse.data.batching import Batch
from omnisparse.durable import replacing
from omnisparse.errors import DataError
from omnisparse.models import Hypothesis, SpeechModel
from omnisparse.models.operations import counted_operations

_FORMAT = 1
PART_UTTERANCES = 256
"""Utterances of a part: at most so many are lost per process when it is killed."""

Found = dict[str, list[Hypothesis]]


class DecodingCost(NamedTuple):
    """What decoding hypotheses cost, over all processes."""

    utterances: int
    flops: int | None
    """Floating-point operations (:mod:`omnisparse.models.operations`); None where not known."""
    device_seconds: float
    """0 where not known."""


class HypothesisCache:
    """Hypotheses by utterance id, in parts.

    Args:
        root: Folder of all caches.
        key: What the hypotheses depend on, as JSON: teacher, features, tokens, beam.
        ids: Utterances, each once; their order and number are part of the key.

    Raises:
        DataError: If the folder cannot be made.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], ids: Sequence[str]) -> None:
        names = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        document = {"format": _FORMAT, **key, "utterances": [len(ids), names]}
        text = json.dumps(document, sort_keys=True)
        self.folder = root / hashlib.sha256(text.encode()).hexdigest()[:24]
        self.parts = [
            tuple(ids[first : first + PART_UTTERANCES])
            for first in range(0, len(ids), PART_UTTERANCES)
        ]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "key.json", text)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def fill(
        self,
        decode: Callable[[Sequence[str]], Found],
        *,
        rank: int = 0,
        world_size: int = 1,
        note: Callable[[str], None] = lambda line: None,
    ) -> int:
        """Decode this process's share of the missing parts.

        Args:
            decode: Hypotheses of the given utterances.
            rank: Number of this process.
            world_size: Number of processes.
            note: Called with messages about damaged parts and progress.

        Returns:
            Number of decoded utterances.

        Raises:
            DataError: If the folder cannot be written.
        """
        own = range(rank, len(self.parts), world_size)
        missing = [index for index in own if self._read(index, note) is None]
        decoded = 0
        for done, index in enumerate(missing):
            note(f"decoding hypotheses, part {done + 1} of {len(missing)}: {self.folder}")
            started = time.perf_counter()
            with counted_operations() as operations:
                found = decode(self.parts[index])
            cost = DecodingCost(len(found), operations.total, time.perf_counter() - started)
            rows = {name: [[h.tokens, h.log_probability] for h in found[name]] for name in found}
            payload = json.dumps(rows)
            checksum = zlib.crc32(payload.encode())
            try:
                _write(self._cost_path(index), json.dumps(cost._asdict()))
                _write(self._path(index), f"{_FORMAT} {checksum}\n{payload}")
            except OSError as error:
                raise _unwritable(self.folder, error) from error
            decoded += len(found)
        return decoded

    def read(self) -> Found:
        """All hypotheses.

        Raises:
            DataError: If a part is missing or damaged.
        """
        found: Found = {}
        for index in range(len(self.parts)):
            part = self._read(index, lambda line: None)
            if part is None:
                raise DataError(
                    f"{self._path(index)}: missing or damaged; the same command decodes it again"
                )
            found |= part
        return found

    def cost(self) -> DecodingCost:
        """What decoding all parts cost, whenever it was; parts of earlier versions do not say."""
        utterances = sum(map(len, self.parts))
        flops, seconds = 0, 0.0
        for index in range(len(self.parts)):
            try:
                document = json.loads(self._cost_path(index).read_text(encoding="utf-8"))
                part = DecodingCost(**document)
            except (OSError, ValueError, TypeError):
                return DecodingCost(utterances, None, 0.0)
            flops += part.flops or 0
            seconds += part.device_seconds
        return DecodingCost(utterances, flops, seconds)

    def _cost_path(self, index: int) -> Path:
        return self.folder / f"cost-{index:05d}.json"

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:05d}.json"

    def _read(self, index: int, note: Callable[[str], None]) -> Found | None:
        """One part; None if it is absent, or damaged (then ``note`` is called)."""
        path = self._path(index)
        try:
            header, _, payload = path.read_text(encoding="utf-8").partition("\n")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError):
            header = payload = ""
        if header != f"{_FORMAT} {zlib.crc32(payload.encode())}":
            note(f"{path}: content does not match its checksum; decoding it again")
            return None
        rows = json.loads(payload)
        if tuple(rows) != self.parts[index]:
            note(f"{path}: holds other utterances; decoding it again")
            return None
        return {name: [Hypothesis(*entry) for entry in beam] for name, beam in rows.items()}


def decode_hypotheses(
    model: SpeechModel, batches: Iterable[Batch], *, beam: int, device: torch.device
) -> Found:
    """Beam-search every utterance; the best hypothesis first.

    Args:
        model: The teacher, in evaluation mode, on ``device``.
        batches: The utterances, without masking.
        beam: Hypotheses kept, at least 1.
        device: Where to decode.
    """
    found: Found = {}
    for batch in batches:
        moved = batch.to(device)
        beams = model.nbest(moved.features, moved.feature_lengths, beam=beam)
        found |= dict(zip(batch.ids, beams, strict=True))
    return found


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot write hypotheses to {folder}: {error.strerror or error}")
