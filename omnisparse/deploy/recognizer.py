"""Recognises one recording at a time with a loaded model, on the device the model is on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from omnisparse.deploy.streaming import stream
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


FloatArray = npt.NDArray[np.float32]

MIN_SECONDS = 0.01
"""One frame shift: what is shorter has no features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The words of one recording, and what it took to find them."""

    text: str
    """The recognised words."""

    audio_seconds: float
    """Duration of the recording."""

    seconds: float
    """Wall time of features and decoding, without reading the file."""

    @property
    def rtf(self) -> float:
        """Real-time factor; below 1 is faster than real time."""
        return self.seconds / self.audio_seconds if self.audio_seconds > 0 else 0.0


class Recognizer:
    """A model with its tokens and features, ready to transcribe.

    Args:
        model: A speech model with ``decode``; put into eval mode.
        tokenizer: Its tokens.
        extractor: Its features.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, extractor: FeatureExtractor) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.extractor = extractor

    @classmethod
    def from_path(cls, path: str | Path) -> Recognizer:
        """Loads an artifact directory, or a run directory (its dense net).

        Raises:
            FormatError: If the directory is not a whole and valid model.
            OSError: If its files cannot be read.
        """
        # Through the public API: this room stands below the one that knows what a run is.
        import omnisparse

        loaded = omnisparse.load_model(Path(path))
        return cls(loaded.model, loaded.tokenizer, loaded.extractor)

    def transcribe(
        self,
        audio: str | Path | FloatArray,
        *,
        sampling_rate: int | None = None,
        beam: int = 1,
        streaming: bool = False,
    ) -> Transcript:
        """Recognises one recording.

        Args:
            audio: Path of a sound file (WAV, FLAC, OGG, ...), or samples: [N] float in [-1, 1].
            sampling_rate: Rate of the samples in Hz, the extractor's where None. A file knows
                its own.
            beam: Hypotheses kept while decoding; 1 is greedy.
            streaming: Hand the recording over chunk by chunk, as a microphone would.

        Raises:
            DataError: If the recording cannot be read, is empty or holds values not finite.
            ValueError: If ``beam`` or ``sampling_rate`` is below 1, or the model cannot stream
                (with this beam).
        """
        if beam < 1:
            raise ValueError(f"beam: expected at least 1, got {beam}")
        if streaming and beam > 1:
            raise ValueError(f"beam: streaming is greedy (beam 1), got {beam}")
        samples = self.load_samples(audio, sampling_rate)
        start = time.perf_counter()
        if streaming:
            tokens = stream(self.model, self.extractor, samples)
        else:
            tokens = self._decode(samples, beam)
        return Transcript(
            text=self.tokenizer.decode(tokens),
            audio_seconds=len(samples) / self.extractor.sampling_rate,
            seconds=time.perf_counter() - start,
        )

    def _decode(self, samples: FloatArray, beam: int) -> list[int]:
        """Token ids of a whole recording."""
        features = torch.from_numpy(self.extractor(samples))[None]
        device = next(self.model.parameters()).device
        lengths = torch.tensor([features.shape[1]], device=device)
        with torch.inference_mode():
            (tokens,) = self.model.decode(features.to(device), lengths, beam=beam)
        return list(tokens)

    def load_samples(
        self, audio: str | Path | FloatArray, sampling_rate: int | None = None
    ) -> FloatArray:
        """Audio as the extractor wants it: [N] float32 at its rate, one channel.

        Args:
            audio: A path, or samples: [N] float in [-1, 1].
            sampling_rate: Rate of samples in Hz, as in :meth:`transcribe`.

        Raises:
            DataError: As :meth:`transcribe`.
            ValueError: If ``sampling_rate`` is below 1.
        """
        target = self.extractor.sampling_rate
        if isinstance(audio, np.ndarray):
            name, samples, rate = "samples", audio, target
            if sampling_rate is not None:
                rate = sampling_rate
        else:
            name = str(audio)
            samples, rate = read_audio(Path(audio))
        if rate < 1:
            raise ValueError(f"sampling_rate: expected at least 1 Hz, got {rate}")
        _check_samples(samples, name)
        samples = samples.astype(np.float32)
        if rate != target:
            from torchaudio.functional import resample

            samples = resample(torch.from_numpy(samples), rate, target).numpy()
        if len(samples) < MIN_SECONDS * target:
            raise DataError(f"{name}: too short to recognise ({len(samples)} samples)")
        return samples


def read_audio(path: Path) -> tuple[FloatArray, int]:
    """Reads a sound file.

    Returns:
        Samples [N] float32 in [-1, 1] with the channels averaged, and their rate in Hz.

    Raises:
        DataError: If the file is missing or is not audio that can be read.
    """
    import soundfile

    if not path.is_file():
        raise DataError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()).removeprefix(f"Error opening '{path}': ")
        raise DataError(f"{path}: cannot be read as audio ({reason.rstrip('.')})") from error
    return np.asarray(samples, dtype=np.float32).mean(axis=1), int(rate)


def _check_samples(samples: FloatArray, name: str) -> None:
    """Refuses what no features can be computed of."""
    if samples.ndim != 1:
        raise DataError(f"{name}: expected samples of shape [N], got {list(samples.shape)}")
    if samples.size == 0:
        raise DataError(f"{name}: holds no audio (zero samples)")
    if not np.isfinite(samples).all():
        raise DataError(f"{name}: holds samples that are not finite (NaN or infinity)")
