"""Long recordings are cut at pauses, into pieces that a net has been trained on the length of.

The rule needs no model. The level of each frame of 10 ms is its mean square in dB, over 50 ms. The
floor is the 10th percentile of the levels, the top the 95th; the floor is at most 50 dB below the
top, so that digital silence counts as very quiet and no more. A frame has voice where its level is
above the floor by 30 % of the way to the top; where the two are less than 10 dB apart, nothing
tells voice from noise, and every frame has voice. Voice is taken to begin 0.25 s early and to end
0.25 s late, less where the piece would become too long. So a pause of more than half a second
separates two pieces, and its middle is heard by none; in shorter ones nothing is left out. A piece
that is still too long is cut in the quietest 0.3 s that leave at least 30 % of the allowed length,
there where it is quietest for 50 ms.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
_Levels = npt.NDArray[np.float64]

MIN_PIECE_SECONDS = 1.0
"""No recording is cut into pieces of less."""

_FRAMES_PER_SECOND = 100
_FLOOR_PERCENT, _TOP_PERCENT = 10.0, 95.0
_DEEPEST_DB = 50.0
_LEAST_RANGE_DB = 10.0
_VOICE_SHARE = 0.3
_LEVEL_FRAMES = 5
_EDGE_FRAMES = 25
_PAUSE_FRAMES = 30
_LEAST_SHARE = 0.3
_SILENCE = 1e-12
"""Power of what counts as no sound at all."""


def cut_length(trained_seconds: float | None, *, streams: bool) -> float | None:
    """Length in seconds above which a net's audio must be cut; None where none need be.

    Args:
        trained_seconds: Longest utterance that the net was trained on; None if unknown: of an older
            net nobody knows what it can take.
        streams: Whether it recognises audio while it arrives: then it hears any length.
    """
    if streams or trained_seconds is None:
        return None
    return max(trained_seconds, MIN_PIECE_SECONDS)


def cut_at_pauses(
    samples: FloatArray, sampling_rate: int, max_seconds: float
) -> list[tuple[int, int]]:
    """Pieces of a recording that are at most so long, cut where it is quiet.

    Args:
        samples: [N] float in [-1, 1].
        sampling_rate: In Hz.
        max_seconds: Longest piece; the whole recording is one piece where it is no longer.

    Returns:
        First sample and the one after the last of each piece, in order, without overlap. Long
        pauses are in none; a recording without any voice has no piece.

    Raises:
        ValueError: If ``max_seconds`` is below :data:`MIN_PIECE_SECONDS`.
    """
    if not max_seconds >= MIN_PIECE_SECONDS:
        raise ValueError(f"max_seconds is {max_seconds}; at least {MIN_PIECE_SECONDS:g}")
    frame = sampling_rate / _FRAMES_PER_SECOND
    if len(samples) <= max_seconds * sampling_rate + frame / 2:  # a length may be rounded
        return [(0, len(samples))]
    levels = _levels(samples, sampling_rate)
    longest = int(max_seconds * _FRAMES_PER_SECOND)
    pieces = [
        (_sample(first, sampling_rate), min(_sample(last, sampling_rate), len(samples)))
        for voice in _voiced(levels)
        for first, last in _split(levels, *_with_edges(*voice, longest, len(levels)), longest)
    ]
    return pieces


def _sample(frame: int, sampling_rate: int) -> int:
    return frame * sampling_rate // _FRAMES_PER_SECOND


def _levels(samples: FloatArray, sampling_rate: int) -> _Levels:
    """[T] level of each frame in dB, the last frame possibly incomplete."""
    count = -(-len(samples) * _FRAMES_PER_SECOND // sampling_rate)
    edges = np.array([_sample(frame, sampling_rate) for frame in range(count)])
    power = np.add.reduceat(np.square(samples, dtype=np.float64), edges)
    power /= np.diff(np.append(edges, len(samples)))
    levels: _Levels = 10.0 * np.log10(_mean_over(power, _LEVEL_FRAMES) + _SILENCE)
    return levels


def _mean_over(values: _Levels, width: int) -> _Levels:
    """[T] mean of ``width`` values around each one; at the ends, of those there are."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centres = np.arange(len(values))
    low = np.maximum(0, centres - width // 2)
    high = np.minimum(len(values), centres - width // 2 + width)
    mean: _Levels = (sums[high] - sums[low]) / (high - low)
    return np.maximum(mean, 0.0) if values.min() >= 0 else mean


def _voiced(levels: _Levels) -> list[tuple[int, int]]:
    """Stretches of frames with voice: first frame, and the one after the last."""
    top = float(np.percentile(levels, _TOP_PERCENT))
    floor = max(float(np.percentile(levels, _FLOOR_PERCENT)), top - _DEEPEST_DB)
    if top - floor < _LEAST_RANGE_DB:
        has_sound = top > 10.0 * np.log10(2 * _SILENCE)
        return [(0, len(levels))] if has_sound else []
    voice = levels > floor + _VOICE_SHARE * (top - floor)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], voice, [False]]).astype(np.int8)))
    stretches: list[tuple[int, int]] = []
    for start, end in changes.reshape(-1, 2).tolist():
        if stretches and start - stretches[-1][1] <= 2 * _EDGE_FRAMES:
            stretches[-1] = (stretches[-1][0], end)
        else:
            stretches.append((start, end))
    return stretches


def _with_edges(start: int, end: int, longest: int, count: int) -> tuple[int, int]:
    """A stretch that begins early and ends late, but not so much that it must be cut for it."""
    edge = min(_EDGE_FRAMES, (longest - (end - start)) // 2)
    if edge < 0:
        edge = _EDGE_FRAMES
    return max(0, start - edge), min(count, end + edge)


def _split(levels: _Levels, start: int, end: int, longest: int) -> list[tuple[int, int]]:
    """Parts of a stretch that are at most ``longest`` frames, cut where it is quiet."""
    pieces = []
    while end - start > longest:
        # The rest must not become too short either.
        first = start + max(1, int(_LEAST_SHARE * longest))
        last = max(first + 1, min(start + longest, end - int(_LEAST_SHARE * longest)))
        power = 10.0 ** (levels[first:last] / 10.0)
        pause = int(_mean_over(power, _PAUSE_FRAMES).argmin())
        low = max(0, pause - _PAUSE_FRAMES // 2)
        near = levels[first:last][low : low + _PAUSE_FRAMES]
        # Of equally quiet frames the one in their middle.
        quietest = np.flatnonzero(near <= near.min() + 1e-9)
        cut = first + low + int(quietest[len(quietest) // 2])
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)]
