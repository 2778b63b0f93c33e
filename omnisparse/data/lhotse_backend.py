"""What lhotse reads files with, where it makes a cut out of several or changes one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lhotse.audio.backend import (
    AudioBackend,
    LibsndfileBackend,
    get_current_audio_backend,
    set_current_audio_backend,
)
from lhotse.utils import compute_num_samples

from omnisparse.data.decoding import BadAudioError, FloatArray, read_header, read_stretch

# The choice of a backend is lhotse's global; its own context manager does not restore it after an
# error.
_lock = threading.RLock()


class ExactBackend(LibsndfileBackend):  # type: ignore[misc]
    """Reads stretches as they are in the whole file, and nothing but files.

    lhotse's default tries other readers after libsndfile: one of them leaks the files it refuses,
    another hands the name of the file to a shell.
    """

    def read_audio(
        self,
        path_or_fd: Any,
        offset: float = 0.0,
        duration: float | None = None,
        force_opus_sampling_rate: int | None = None,
    ) -> tuple[FloatArray, int]:
        """A stretch of a file: [C, N] float32 and its rate in Hz."""
        try:
            rate = read_header(path_or_fd).sampling_rate
            start = compute_num_samples(offset, rate)
            count = None if duration is None else compute_num_samples(duration, rate)
            return read_stretch(path_or_fd, start, count).T, rate
        except BadAudioError as error:
            raise BadAudioError(error.reason, f"{error.detail}: {path_or_fd}") from error


# lhotse takes any class that is defined for one to try; this one is chosen here only.
AudioBackend.KNOWN_BACKENDS.pop(ExactBackend.__name__, None)


@contextmanager
def exact_backend() -> Iterator[None]:
    """Let lhotse read files with :class:`ExactBackend`."""
    with _lock:
        previous = get_current_audio_backend()
        set_current_audio_backend(ExactBackend())
        try:
            yield
        finally:
            set_current_audio_backend(previous)
