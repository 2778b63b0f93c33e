"""When tokens were said, from a CTC layer on the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.tokens import BLANK


def ctc_alignment(log_probs: npt.NDArray[np.float32], tokens: Sequence[int]) -> list[int] | None:
    """The most probable frames of known tokens.

    Args:
        log_probs: ``[T, V]`` log-probabilities of CTC, blank being 0.
        tokens: U token ids.

    Returns:
        The frame in which each token begins, rising; None where there are too few frames.

    Source: Graves et al. 2006, "Connectionist temporal classification", section 4.1: the best
    path through the tokens with blanks between, by Viterbi.
    """
    count, length = len(tokens), len(log_probs)
    repeats = sum(one == other for one, other in pairwise(tokens))
    if not count or length < count + repeats:
        return None if count else []
    labels = np.full(2 * count + 1, BLANK)
    labels[1::2] = tokens
    may_skip = np.zeros(len(labels), np.bool_)  # from the token before, over the blank between
    may_skip[2:] = (labels[2:] != BLANK) & (labels[2:] != labels[:-2])
    emitted = log_probs[:, labels]
    score = np.full(len(labels), -np.inf)
    score[:2] = emitted[0, :2]
    came = np.zeros((length, len(labels)), np.int8)
    for time in range(1, length):
        candidates = np.full((3, len(labels)), -np.inf)
        candidates[0] = score
        candidates[1, 1:] = score[:-1]
        candidates[2, 2:] = np.where(may_skip[2:], score[:-2], -np.inf)
        came[time] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + emitted[time]
    place = len(labels) - 1 if score[-1] >= score[-2] else len(labels) - 2
    frames = [0] * count
    for time in range(length - 1, -1, -1):
        if place % 2:
            frames[place // 2] = time
        place -= int(came[time, place])
    return frames
