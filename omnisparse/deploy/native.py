"""The compiled kernels of ``sparse_kernels.c``: which there are, and how they are called."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from omnisparse.console import Console

LIBRARY = "_sparse_kernels.so"
"""The compiled file, beside this one."""

LEVELS = ("plain", "avx2", "avx512", "neon")
"""Instruction sets, by their number in C."""

CHOICE = "OMNISPARSE_KERNELS"
"""Environment variable: one of LEVELS to take no better ones, or numba or numpy to use none."""

NUMBA = -1
"""Instead of a level, where numba does the products of thin matrices."""


def name_of(library: ctypes.CDLL | None, level: int) -> str:
    """What :func:`kernels` gave, in a word."""
    if library is None:
        return "numba" if level == NUMBA else "numpy"
    return LEVELS[level]


class MatrixStruct(ctypes.Structure):
    """``matrix`` of ``sparse_kernels.c``."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("rows", "columns", "kind", "type", "height", "level")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("offsets", "indices", "counts", "places", "values", "scale", "first")
        ),
    )


class LayerStruct(ctypes.Structure):
    """``layer`` of ``sparse_kernels.c``."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("input", "recurrent", "projection", "bias", "gain", "shift")
        ),
        ("halves", ctypes.c_int64),
    )


class FilterbankStruct(ctypes.Structure):
    """``filterbank`` of ``sparse_kernels.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("shift", "length", "half", "bins")),
        *((name, ctypes.c_void_p) for name in ("window", "turns", "first", "last", "filters")),
    )


class TransducerStruct(ctypes.Structure):
    """``transducer`` of ``sparse_kernels.c``."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in (
                "layers", "context", "context_bias", "table", "table_scale", "projection",
                "output", "output_bias",
            )
        ),
        *((name, ctypes.c_int64) for name in ("count", "type", "width", "relu", "most")),
    )  # fmt: skip


@cache
def kernels() -> tuple[ctypes.CDLL | None, int]:
    """The library and the level to use; ``(None, NUMBA)`` or ``(None, 0)`` without a library.

    What is missing is said on stderr, once.
    """
    wanted = os.environ.get(CHOICE, "").strip().lower()
    if wanted == "numpy":
        return None, 0
    library = None if wanted == "numba" else _load()
    if library is None:
        other = "numba" if _has_numba() else "numpy"
        if wanted != "numba":
            why = "no compiled kernels (was there a C compiler at install?)"
            _say(f"{why}: {other} does it, slower")
        elif other != wanted:
            why = "numba cannot be imported (pip install 'omnisparse[numba]')"
            _say(f"{why}: numpy does it, slower")
        return None, NUMBA if other == "numba" else 0
    best = int(library.omni_level())
    legal = ["plain", "neon"] if LEVELS[best] == "neon" else list(LEVELS[: best + 1])
    if wanted in legal:
        return library, LEVELS.index(wanted)
    if wanted:
        _say(
            f"{CHOICE} is {wanted!r}, which this processor cannot run: {LEVELS[best]} is used "
            f"(legal here: {', '.join(['numpy', 'numba', *legal])})"
        )
    elif best == 0:
        _say("this processor has neither AVX2 nor NEON: plain kernels are used instead")
    return library, best


def _has_numba() -> bool:
    """Whether numba is there and works: many of its versions refuse a newer numpy when imported."""
    try:
        if find_spec("numba") is None:
            return False
        import_module("numba")
    except ImportError:
        return False
    return True


def _load() -> ctypes.CDLL | None:
    """The library with the types of its functions; None where it is absent or cannot be loaded."""
    path = Path(__file__).with_name(LIBRARY)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    signatures: dict[str, tuple[type, ...]] = {
        "product": (pointer,) * 3,
        "products": (pointer, integer, pointer, pointer, pointer),
        "gates": (integer, integer, integer, pointer, pointer, pointer),
        "lstm": (*(pointer,) * 4, integer, *(pointer,) * 6),
        "encoder": (pointer, *(integer,) * 3, *(pointer,) * 6),
        "fbank": (integer, pointer, integer, *(pointer,) * 3),
        "greedy": (pointer, integer, *(pointer,) * 5, *(integer,) * 2, *(pointer,) * 4),
        "norm": (integer, integer, *(pointer,) * 4),
        "columns": (integer, integer, *(pointer,) * 3),
        "panels": (*(integer,) * 4, *(pointer,) * 6),
        "slices": (*(integer,) * 2, *(pointer,) * 8),
    }
    try:
        library = ctypes.CDLL(str(path))
        library.omni_level.restype = ctypes.c_int
        for name, types in signatures.items():
            function = getattr(library, f"omni_{name}")
            function.argtypes, function.restype = types, None
        library.omni_encoder.restype = library.omni_greedy.restype = integer
    except (OSError, AttributeError):  # absent, of another processor, or of an older version
        return None
    return library


def _say(line: str) -> None:
    Console().warn(f"omnisparse: {line}")
