"""espeak-ng through ctypes: text to samples. No state is kept from one utterance to the next.

The shared library and its data come with the ``espeakng-loader`` wheel, so nothing is installed on
the system. The C library has one global synthesizer per process: use one thread at a time.

Source: espeak-ng 1.52, ``src/include/espeak-ng/speak_lib.h``.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import espeakng_loader
import numpy as np
import numpy.typing as npt

from omnisparse.errors import DataError

# speak_lib.h: espeak_AUDIO_OUTPUT, initialisation flags, espeak_PARAMETER, espeak_ERROR.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
PARAMETER_RATE, PARAMETER_VOLUME, PARAMETER_PITCH, PARAMETER_RANGE = 1, 2, 3, 4
POSITION_CHARACTER = 1
CHARS_UTF8 = 1
ERROR_OK = 0

VOLUME = 40
"""Volume in percent. At espeak's default of 100, half of the variants clip the 16-bit output."""

MAX_DATA_PATH = 120
"""Bytes. espeak-ng keeps its data path in a buffer of 160 bytes; longer paths get a short link."""

_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Speech(NamedTuple):
    """Output of espeak-ng."""

    samples: npt.NDArray[np.float64]
    """``[N]`` in [-1, 1]."""
    sampling_rate: int
    """In Hz."""


def data_path() -> Path:
    """Folder of the espeak-ng data that the ``espeakng-loader`` wheel carries."""
    return Path(espeakng_loader.get_data_path())


def list_variants() -> list[str]:
    """Names of the voice variants (files of ``voices/!v``), sorted."""
    return sorted(path.name for path in (data_path() / "voices" / "!v").iterdir())


def speak(
    text: str, *, voice: str, rate_wpm: int = 175, pitch: int = 50, pitch_range: int = 50
) -> Speech:
    """Speak ``text``: a pure function of the arguments, independent of earlier calls.

    The library is loaded again for every call (about 3 ms). The phases of flutter, echo and
    waveform are static variables, and neither a new voice nor ``espeak_Terminate`` resets them.

    Args:
        text: What to say.
        voice: Language and variant, such as ``en-us+f3``.
        rate_wpm: Words per minute, 80 to 450.
        pitch: Base pitch relative to the voice's own, 0 to 100 (50 = unchanged).
        pitch_range: Range of the intonation, 0 (monotone) to 100.

    Returns:
        Samples and their rate (22050 Hz with the bundled data).

    Raises:
        DataError: If espeak-ng cannot be loaded, does not know the voice, or cannot speak.
    """
    chunks: list[bytes] = []

    def receive(samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples > 0:
            chunks.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    callback = _Callback(receive)
    with _library() as (library, sampling_rate):
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode()) != ERROR_OK:
            raise DataError(f"espeak-ng has no voice {voice!r}")
        # Initialisation seeds the noise source of breath and Klatt voices with the time of day.
        library.espeak_ng_SetRandSeed(1)
        for parameter, value in (
            (PARAMETER_RATE, rate_wpm),
            (PARAMETER_VOLUME, VOLUME),
            (PARAMETER_PITCH, pitch),
            (PARAMETER_RANGE, pitch_range),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        status = library.espeak_Synth(
            encoded,
            ctypes.c_size_t(len(encoded) + 1),
            0,
            POSITION_CHARACTER,
            0,
            CHARS_UTF8,
            None,
            None,
        )
        if status != ERROR_OK:
            raise DataError(f"espeak-ng cannot speak {text!r} (error {status})")
        library.espeak_Synchronize()
    samples = np.frombuffer(b"".join(chunks), dtype=np.int16).astype(np.float64)
    return Speech(samples / 32768.0, sampling_rate)


@contextmanager
def _library() -> Iterator[tuple[Any, int]]:
    """A freshly loaded and initialised library, and its sampling rate in Hz."""
    with _short_data_path() as path:
        try:
            library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise DataError(f"espeak-ng cannot be loaded: {error}") from error
        try:
            rate = library.espeak_Initialize(
                AUDIO_OUTPUT_SYNCHRONOUS, 0, path, INITIALIZE_DONT_EXIT
            )
            if rate <= 0:
                raise DataError(f"espeak-ng cannot read its data at {data_path()} (error {rate})")
            yield library, rate
            library.espeak_Terminate()
        finally:
            _unload(library)


def _unload(library: Any) -> None:
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


@contextmanager
def _short_data_path() -> Iterator[bytes]:
    path = data_path()
    if len(os.fsencode(path)) <= MAX_DATA_PATH:
        yield os.fsencode(path)
        return
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        link = Path(folder) / path.name
        link.symlink_to(path, target_is_directory=True)
        yield os.fsencode(link)
