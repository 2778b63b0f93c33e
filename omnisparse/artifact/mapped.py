"""The tensors of a safetensors checkpoint, with at most one of them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from omnisparse.artifact.tensorfile import TensorFile
from omnisparse.errors import FormatError


class MappedState(Mapping[str, Tensor]):
    """A safetensors file as a state dict whose tensors are views of the file.

    Asking for a tensor gives the memory of the one before back to the system, so a walk over a
    checkpoint of any size needs the memory of its largest tensor. Tensors are to be read only:
    what is written to one is lost.

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
        self._last: str | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is not None and self._last != name:
            self._file.release(self._last)
        tensor = torch.from_numpy(self._file.array(name))
        self._last = name
        return tensor.view(torch.bfloat16) if self._file.fields[name].dtype == "BF16" else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
