"""The tensors of a safetensors checkpoint, with at most one of them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from omnisparse.artifact.tensorfile import TensorFile


class MappedState(Mapping[str, Tensor]):
    """A safetensors file as a state dict whose tensors are views of the file.

    Asking for a tensor gives the memory of the one before back to the system, so a walk over a
    checkpoint of any size needs the memory of its largest tensor. Tensors are to be read only:
    what is written to one is lost.

    Args:
        path: The file.

    Raises:
        FormatError: If it is not a sound safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)
        self._last: str | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._last is not None and self._last != name:
            self._file.release(self._last)
        tensor = torch.from_numpy(self._file.array(name))
        self._last = name
        return tensor.view(torch.bfloat16) if self._file.fields[name].dtype == "BF16" else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.fields)

    def __len__(self) -> int:
        return len(self._file.fields)
