"""What a recogniser gives for one recording."""

from __future__ import annotations

from dataclasses import dataclass

from omnisparse.deploy.tokens import Word


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The words of one recording, and what it took to find them."""

    text: str
    """The recognised words."""

    audio_seconds: float
    """Duration of the recording."""

    seconds: float
    """Wall time of features and decoding, without reading the file."""

    words: tuple[Word, ...] | None = None
    """The words with their times and confidences; None where the model runs in torch, which does
    not tell them."""

    pieces: int = 1
    """Pieces that the recording was cut into at pauses; 0 where no voice was found."""

    @property
    def rtf(self) -> float:
        """Real-time factor; below 1 is faster than real time."""
        return self.seconds / self.audio_seconds if self.audio_seconds > 0 else 0.0
