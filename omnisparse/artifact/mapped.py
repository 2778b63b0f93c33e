"""The tensors of a safetensors checkpoint, with only a few of them in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omnisparse.artifact.tensorfile import Array, TensorFile
from omnisparse.errors import FormatError


class MappedState(Mapping[str, Array]):
    """A safetensors file as a state dict whose arrays are views of the file (BF16 as uint16 bits).

    When a thread gets a tensor, the memory of the tensor that it got before is given back to the
    system. So a pass over a checkpoint of any size needs the memory of its largest tensor (one per
    thread). Arrays are for reading only: changes to them are lost.

    Args:
        path: The file.
        order: Names that come first in iteration; other names follow in sorted order. The order of
            the model decides which of two matrices gets an odd weight.
        without: Names that are left out, if they are there.

    Raises:
        FormatError: If it is not a valid safetensors file, or lacks a name of ``order``.
    """

    def __init__(
        self, path: Path, order: Sequence[str] = (), *, without: Sequence[str] = ()
    ) -> None:
        self._file = TensorFile(path)
        missing = [name for name in order if name not in self._file.fields]
        if missing:
            raise FormatError(f"{path}: it has no tensor {missing[0]!r}")
        hidden = set(without)
        names = dict.fromkeys([*order, *self._file.fields])
        self._names = tuple(name for name in names if name not in hidden)
        self._before = threading.local()

    def __getitem__(self, name: str) -> Array:
        array = self._file.array(name)
        before = getattr(self._before, "name", name)
        if before != name:
            self._file.release(before)
        self._before.name = name
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
