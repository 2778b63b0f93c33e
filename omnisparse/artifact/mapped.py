"""The tensors of a safetensors checkpoint, with few of them in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omnisparse.artifact.tensorfile import Array, TensorFile
from omnisparse.errors import FormatError


class MappedState(Mapping[str, Array]):
    """A safetensors file as a state dict whose arrays are views of the file (BF16 as uint16 bits).

    Asking for a tensor gives the memory of the one that the same thread asked for before back to
    the system, so a walk over a checkpoint of any size needs the memory of its largest tensor, or
    of one per thread. Arrays are to be read only: what is written to one is lost.

    Args:
        path: The file.
        order: Names that come first when the state is walked; files are sorted otherwise. The
            order of the model decides which of two matrices gets an odd weight.

    Raises:
        FormatError: If it is not a sound safetensors file, or lacks a name of ``order``.
    """

    def __init__(self, path: Path, order: Sequence[str] = ()) -> None:
        self._file = TensorFile(path)
        missing = [name for name in order if name not in self._file.fields]
        if missing:
            raise FormatError(f"{path}: it has no tensor {missing[0]!r}")
        self._names = tuple(dict.fromkeys([*order, *self._file.fields]))
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
