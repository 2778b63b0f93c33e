"""The compiled kernels of ``bf16_kernels.c``, for training in bfloat16 on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

LIBRARY = "_bf16_kernels.so"
"""The compiled file, beside this one."""

MAX_THREADS = 4
"""Threads up to which they are used: a kernel runs on one, torch's own on all."""

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

_SIGNATURES: dict[str, tuple[type, ...]] = {
    "lstm_forward": (*(_INTEGER,) * 2, *(_POINTER,) * 4),
    "lstm_backward": (*(_INTEGER,) * 2, *(_POINTER,) * 7),
    "lstm_pack": (_INTEGER, *(_POINTER,) * 2),
    "lstm_pack_back": (_INTEGER, *(_POINTER,) * 2),
    "lstm_layer_forward": (*(_INTEGER,) * 6, *(_POINTER,) * 4),
    "lstm_layer_backward": (*(_INTEGER,) * 6, *(_POINTER,) * 6),
    "join": (*(_INTEGER,) * 4, _POINTER, _INTEGER, _POINTER, _INTEGER, _POINTER),
    "join_backward": (
        *(_INTEGER,) * 4, *(_POINTER,) * 3, _INTEGER, _POINTER, _INTEGER,
    ),
    "collapse": (*(_INTEGER,) * 4, *(_POINTER,) * 2, _INTEGER, _FLOAT, *(_POINTER,) * 2),
    "collapse_backward": (*(_INTEGER,) * 4, *(_POINTER,) * 2, _INTEGER, *(_POINTER,) * 3),
}  # fmt: skip


def kernels() -> ctypes.CDLL | None:
    """The library; None where it was not built, and where torch has more threads than MAX_THREADS.

    Its functions check nothing: every tensor must be contiguous, of the type that C names, and held
    by a name until the call is over (of ``made().data_ptr()`` the memory is free again at once).
    """
    return _load() if torch.get_num_threads() <= MAX_THREADS else None


@cache
def has_pairs() -> bool:
    """Whether the library computes a whole LSTM layer on this processor."""
    library = _load()
    return library is not None and bool(library.omni_has_pairs())


@cache
def has_tiles() -> bool:
    """Whether the processor multiplies tiles of bfloat16 (AMX), as oneDNN's products do."""
    tiles: Callable[[], bool] = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return tiles()


@cache
def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name(LIBRARY)))
        for name, types in _SIGNATURES.items():
            function = getattr(library, f"omni_{name}")
            function.argtypes, function.restype = types, None
        for question in (library.omni_has_pairs, library.omni_float_mode):
            question.argtypes, question.restype = (), _INTEGER
    except (OSError, AttributeError):  # absent, of another processor, or of an older version
        return None
    return library
