"""On which device a model is measured."""

from __future__ import annotations

import re

import torch

from omnisparse.errors import UsageError

_LEGAL = re.compile(r"cpu|cuda(:\d+)?")


def parse_device(text: str) -> torch.device:
    """The device that a user names.

    Args:
        text: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: If it is none of these, or this machine does not have it.
    """
    if not _LEGAL.fullmatch(text):
        raise UsageError(f"device {text!r} is not known; legal: cpu, cuda, cuda:N")
    device = torch.device(text)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise UsageError(f"device {text}: torch {torch.__version__} finds no CUDA device here")
        if device.index is not None and device.index >= count:
            raise UsageError(f"device {text} is not here; legal: cuda:0 to cuda:{count - 1}")
    return device


def devices_of(text: str, count: int) -> list[torch.device]:
    """A device for each of some processes; those of ``cuda`` share all that there are.

    Args:
        text: As of :func:`parse_device`.
        count: Number of processes, at least 1.

    Raises:
        UsageError: As of :func:`parse_device`.
    """
    device = parse_device(text)
    if device.type == "cuda" and device.index is None:
        present = torch.cuda.device_count()
        return [torch.device("cuda", number % present) for number in range(count)]
    return [device] * count


def prepare_device(device: torch.device) -> None:
    """Let a device compute in float32 throughout, so that a model is heard alike everywhere."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False  # on by default, for LSTMs too
