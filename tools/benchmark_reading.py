"""Measure how long corpora take to be read and checked, the first time and the second.

    python tools/benchmark_reading.py [--hours 1] [--utterances 10000]

Noise is written as WAV and as FLAC, 5 s a file, and read with one thread; then many short files.
The floor is what `soundfile.read` takes to decode the same files. Processor seconds are given
beside those of the clock, which other work on the machine stretches.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from omnisparse.data.content import ENVIRONMENT
from omnisparse.data.corpora import read_manifest

RATE = 16000


def write_corpus(folder: Path, count: int, seconds: float, suffix: str) -> Path:
    """Write so many files of noise, and a manifest."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    noise = (0.1 * generator.standard_normal(round((seconds + 1) * RATE))).astype(np.float32)
    lines = []
    for index in range(count):
        start = int(generator.integers(RATE))
        name = f"{index:05d}{suffix}"
        soundfile.write(folder / name, noise[start : start + round(seconds * RATE)], RATE)
        record = {"audio_filepath": name, "duration": seconds, "text": f"words {index}"}
        lines.append(json.dumps(record))
    manifest = folder / "train.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def measure(action: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


def decode(files: Sequence[Path]) -> None:
    """Decode files, and no more."""
    for path in files:
        soundfile.read(path, dtype="float32")


def rows(hours: float, utterances: int, folder: Path) -> Iterator[tuple[str, float, float]]:
    """What was measured: name, seconds of the clock, seconds of the processor."""
    for suffix in (".wav", ".flac"):
        manifest = write_corpus(folder / suffix[1:], round(hours * 720), 5.0, suffix)
        title = f"{hours:g} h of {suffix[1:]}"
        files = sorted(manifest.parent.glob(f"*{suffix}"))
        yield f"{title}: decoded, no more", *measure(partial(decode, files))
        yield from readings(title, manifest)
    manifest = write_corpus(folder / "many", utterances, 0.3, ".wav")
    yield from readings(f"{utterances:,} utterances", manifest)


def readings(title: str, manifest: Path) -> Iterator[tuple[str, float, float]]:
    """A manifest read twice."""
    for time_ in ("first", "second"):
        read = partial(read_manifest, manifest, num_jobs=1)
        yield f"{title}: read the {time_} time", *measure(read)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--utterances", type=int, default=10_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-reading-") as name:
        folder = Path(name)
        os.environ[ENVIRONMENT] = str(folder / "cache")
        print(f"{'':<45}{'clock s':>9}{'cpu s':>9}")
        for title, clock, processor in rows(arguments.hours, arguments.utterances, folder):
            print(f"{title:<45}{clock:>9.2f}{processor:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
