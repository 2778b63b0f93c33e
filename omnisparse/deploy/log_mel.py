"""Kaldi's log-mel filterbank by the compiled kernels: the features of training, to 1e-4."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import numpy.typing as npt

from omnisparse.data.fbank import filterbank_tables, log_mel_frames, mirror_edges
from omnisparse.deploy.native import FilterbankStruct, kernels

FloatArray = npt.NDArray[np.float32]


class _Filterbank:
    """The tables of a rate and a number of bins, as C reads them."""

    def __init__(self, sampling_rate: int, num_bins: int) -> None:
        window, filters = filterbank_tables(sampling_rate, num_bins)
        self.half = len(filters)
        angles = np.pi * np.arange(self.half) / self.half
        turns = np.stack([np.cos(angles), -np.sin(angles)], axis=1).astype(np.float32)
        kept = filters > 0
        first = kept.argmax(axis=0).astype(np.int32)
        last = np.where(kept.any(axis=0), self.half - kept[::-1].argmax(axis=0), first)
        last = last.astype(np.int32)
        spans = zip(filters.T, first, last, strict=True)
        weights = np.concatenate([column[start:end] for column, start, end in spans])
        self._arrays = (window, turns, first, last, weights)
        self._struct = FilterbankStruct(
            sampling_rate // 100, len(window), self.half, num_bins,
            *(array.ctypes.data for array in self._arrays),
        )  # fmt: skip
        self.pointer = ctypes.addressof(self._struct)


_filterbank = cache(_Filterbank)


def native_log_mel(samples: FloatArray, *, sampling_rate: int, num_bins: int) -> FloatArray:
    """As :func:`omnisparse.data.fbank.log_mel_frames`, which does it without kernels."""
    library, level = kernels()
    if library is None:
        return log_mel_frames(samples, sampling_rate=sampling_rate, num_bins=num_bins)
    bank = _filterbank(sampling_rate, num_bins)
    padded, count = mirror_edges(samples, sampling_rate // 100, sampling_rate // 40)
    work = np.empty(48 * bank.half + 16, np.float32)
    frames = np.empty((count, num_bins), np.float32)
    library.omni_fbank(
        level, bank.pointer, count, padded.ctypes.data, -(-work.ctypes.data // 64) * 64,
        frames.ctypes.data,
    )  # fmt: skip
    return frames
