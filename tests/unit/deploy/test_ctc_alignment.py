"""The best path of CTC, against every path there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from omnisparse.deploy.alignment import ctc_alignment


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in itertools.groupby(path) if label]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [2, 2], [1, 2, 1]])
@pytest.mark.parametrize("seed", range(4))
def test_the_path_is_the_best_of_all(tokens: list[int], seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((6, 3)).astype(np.float32) * 2
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    paths = [p for p in itertools.product(range(3), repeat=6) if collapsed(p) == tokens]
    best = max(
        paths, key=lambda path: sum(log_probs[time, label] for time, label in enumerate(path))
    )
    starts = [t for t in range(6) if best[t] and (t == 0 or best[t - 1] != best[t])]
    assert ctc_alignment(log_probs, tokens) == starts


def test_too_few_frames_have_no_path() -> None:
    log_probs = np.zeros((2, 4), np.float32)
    assert ctc_alignment(log_probs, [1, 1]) is None
    assert ctc_alignment(log_probs, [1, 2]) == [0, 1]
    assert ctc_alignment(log_probs, []) == []
