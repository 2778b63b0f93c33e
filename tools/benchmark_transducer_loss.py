#!/usr/bin/env python3
"""Processor time of the transducer loss: torchaudio's kernel, and ours in torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from omnisparse.models import losses
from omnisparse.models.torchaudio import find_torchaudio

SHAPES = ((16, 60, 12), (32, 120, 30), (16, 400, 80), (8, 1000, 200))
"""Utterances, encoder frames and tokens of a batch."""

TURNS = 9


def milliseconds(compute: Callable[[], object]) -> float:
    """Median processor milliseconds of a call."""
    compute()
    found = []
    for _ in range(TURNS):
        start = time.process_time()
        compute()
        found.append(time.process_time() - start)
    return 1e3 * statistics.median(found)


def main() -> None:
    torch.set_num_threads(1)
    package, reason = find_torchaudio()
    print(f"torch {torch.__version__}, torchaudio {getattr(package, '__version__', reason)}\n")
    print("| utterances | frames | tokens | torchaudio ms | ours ms | values differ |")
    print("|---|---|---|---|---|---|")
    for batch, frames, tokens in SHAPES:
        generator = torch.Generator().manual_seed(0)
        lattice = torch.randn(batch, frames, tokens + 1, 3, generator=generator).log_softmax(-1)
        lengths = [
            torch.randint(longest // 2, longest + 1, (batch,), generator=generator)
            for longest in (frames, tokens)
        ]
        lengths[0][0], lengths[1][0] = frames, tokens
        ours = milliseconds(lambda: losses._loss_in_torch(lattice, *lengths))  # noqa: B023
        theirs, difference = "-", "-"
        if package is not None:
            spent = milliseconds(
                lambda: losses._loss_in_torchaudio(package, lattice, *lengths)  # noqa: B023
            )
            exact, _ = losses._loss_in_torch(lattice, *lengths)
            value, _ = losses._loss_in_torchaudio(package, lattice, *lengths)
            theirs, difference = f"{spent:.1f}", f"{abs(float(value / exact) - 1):.0e}"
        print(f"| {batch} | {frames} | {tokens} | {theirs} | {ours:.1f} | {difference} |")


if __name__ == "__main__":
    main()
