"""The largest model that is fast enough here: ``omnisparse extract --latency`` and ``--rtf``."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.deploy.recognizer import Recognizer
from omnisparse.errors import OmnisparseError
from omnisparse.pipeline.extract import extract
from omnisparse.pipeline.folder_names import folder_name
from omnisparse.runs import directory as runs
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.keys import parse_block

CHUNK_SECONDS = 0.04
"""Audio whose time is the latency."""

AUDIO_SECONDS = 4.0
REPETITIONS = 5
TRIALS = 9
"""Models that are made and measured at most."""


def latency_of(recognizer: Recognizer) -> float:
    """Processor seconds that 40 ms of audio take, features and search too: the least of some.

    A transducer streams it in chunks of 40 ms; of LAS it is the share of a whole recording.
    """
    rate = recognizer.extractor.sampling_rate
    rng = np.random.default_rng(0)
    count = int(AUDIO_SECONDS * rate)
    pitches = np.repeat(rng.uniform(100, 0.4 * rate, count // 1280 + 1), 1280)[:count]
    samples = (0.3 * np.sin(np.cumsum(2 * np.pi * pitches / rate))).astype(np.float32)
    size, times = int(CHUNK_SECONDS * rate), []
    for _ in range(REPETITIONS):
        start = time.process_time()
        if recognizer.engine.kind == "transducer":
            stream = recognizer.stream()
            for at in range(0, count, size):
                stream.accept(samples[at : at + size])
            stream.finish()
        else:
            recognizer.transcribe(samples)
        times.append(time.process_time() - start)
    return min(times) * CHUNK_SECONDS / AUDIO_SECONDS


def extract_in_time(
    run: Path | str | None,
    *,
    seconds: float,
    note: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> dict[str, Any]:
    """Write the largest model of a run whose measured latency stays below a limit.

    Models are made and measured with the kernels of this machine, one thread: the smallest, then
    by halving what is left between one that is fast enough and one that is not.

    Args:
        run: As of :func:`omnisparse.pipeline.extract.extract`.
        seconds: Most seconds for 40 ms of audio.
        note: Told what was measured, a line each.
        warn: As of ``extract``, of the model that is written.
        **options: As of ``extract``, but for the size.

    Returns:
        What ``extract`` returns, with ``latency_ms`` and ``rtf`` as measured and ``trials``.

    Raises:
        OmnisparseError: If no model is fast enough; names the fastest time.
    """
    run = Path(run) if run is not None else runs.latest_run()
    out = options.pop("out", None)
    description = runs.read_description(run)
    weights, _ = runs.newest_weights(run, with_heads=True)
    if options.get("times"):
        description = description.with_heads()
    shapes = {name: tuple(weights[name].shape) for name in description.parameters}
    block = parse_block(options.get("block") or description.block)
    budget = Budget(shapes, description.prunable, floor=options.get("floor", 0.0), block=block)
    smallest = budget.unprunable + sum(budget.floors.values())
    largest = budget.dense_parameters
    trials: list[dict[str, float]] = []

    def measured(nonzero: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            extract(run, size=str(nonzero), out=Path(folder) / "model", **options)
            taken = latency_of(Recognizer.from_path(Path(folder) / "model", runtime="sparse"))
        trials.append({"nonzero": nonzero, "latency_ms": 1000 * taken})
        note(f"{nonzero:,} non-zero parameters: {1000 * taken:.3f} ms for 40 ms of audio")
        return taken

    fastest = measured(smallest)
    if fastest > seconds:
        raise OmnisparseError(
            f"{run}: no model takes {1000 * seconds:g} ms for 40 ms of audio here; the smallest "
            f"({smallest:,} non-zero parameters) takes {1000 * fastest:.3f} ms (real-time factor "
            f"{fastest / CHUNK_SECONDS:.4f})"
        )
    best, time_of_best = smallest, fastest
    taken = measured(largest)
    if taken <= seconds:
        best, time_of_best = largest, taken
    low, high = best, largest
    while low < high and len(trials) < TRIALS:
        middle = (low + high) // 2
        taken = measured(middle)
        if taken <= seconds:
            low, best, time_of_best = middle, middle, taken
        else:
            high = middle
    name = folder_name(f"latency-{1000 * seconds:g}ms", description, **options)
    folder = out or run / "extracted" / name
    result = extract(run, size=str(best), out=folder, warn=warn, **options)
    return {
        **result,
        "latency_ms": 1000 * time_of_best,
        "rtf": time_of_best / CHUNK_SECONDS,
        "trials": trials,
    }
