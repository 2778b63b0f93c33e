"""In which precision a training multiplies, and who may say so."""

from __future__ import annotations

from typing import Literal

import torch

from omnisparse.errors import OmnisparseError

Precision = Literal["fp32", "bf16"]

_OF_LAUNCHER: dict[str, Precision] = {"no": "fp32", "bf16": "bf16"}
"""Values of the launcher's ``--mixed_precision`` that train."""


class PrecisionError(OmnisparseError):
    """Launcher and configuration disagree; every process finds that."""

    on_every_process = True


def choose_precision(configured: Precision | None, launcher: str | None) -> Precision:
    """The precision that is asked for.

    Args:
        configured: ``training.precision``; None leaves it to the launcher.
        launcher: What ``accelerate launch --mixed_precision`` was told; None where it was not.

    Raises:
        PrecisionError: If the launcher asks for one that this loop does not train with, or for
            another one than the configuration.
    """
    if launcher is None:
        return configured or "fp32"
    if launcher not in _OF_LAUNCHER:
        raise PrecisionError(
            f"mixed precision {launcher} is not supported (its loss would need scaling); "
            f"legal: {', '.join(_OF_LAUNCHER)}"
        )
    said = _OF_LAUNCHER[launcher]
    if configured is not None and configured != said:
        raise PrecisionError(
            f"training.precision is {configured}, but the launcher says --mixed_precision "
            f"{launcher}; let both say the same, or leave one of them out"
        )
    return said


def has_bf16(device: torch.device | str) -> bool:
    """Whether a device multiplies bfloat16 in hardware, so that it is quicker than float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "cpu":
        known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in known)
    return False


def check_resumed(recorded: str | None, now: str) -> None:
    """Refuse to continue a run in less precision than it had.

    Args:
        recorded: Of the checkpoint; None in those of before, which do not say.
        now: Of the process that wants to continue.

    Raises:
        OmnisparseError: If the run trained in bf16 and would go on in fp32.
    """
    if recorded == "bf16" and now != "bf16":
        raise OmnisparseError(
            "this run has trained in bf16 and cannot go on in fp32: continue it where bf16 is "
            "(training.precision=bf16, or --mixed_precision bf16, on a device that has it)"
        )
