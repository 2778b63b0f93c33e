"""How long a training on very many utterances takes to its first step, and how much memory.

    python tools/benchmark_start.py                          # 300,000 utterances, 1,000 hours
    python tools/benchmark_start.py --utterances 30000 --json

Makes a corpus of shards whose metadata are those of a large one: every utterance has its own name,
words, speaker and length, and all archives are one file under many names, with the sound of the
longest utterance in it. Then a training of a small net starts on it as users start it (`train`),
and takes its first steps: cuts are read and judged by their index, word pieces are given, batches
are laid out over 20 classes of length. Reported is the time on the clock and of the CPU up to each
line that the training says, and the largest memory of the process. Nothing is left on the disk.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHARD = 1000
LONGEST = 20.0
MEAN = 12.0
RATE = 16000
STEPS = 3


def main() -> int:
    """Make the corpus, start the training in a process of its own, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=300_000)
    parser.add_argument("--frames", choices=("live", "store"), default="live")
    parser.add_argument("--workers", type=int, default=0, help="data.workers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner is not None:
        print(json.dumps(_start(options.inner, options.frames, options.workers)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        hours = make_corpus(folder, options.utterances)
        made = time.monotonic() - began
        command = [sys.executable, __file__, "--inner", str(folder), "--frames", options.frames]
        command += ["--workers", str(options.workers)]
        environment = {**os.environ, "OMNISPARSE_CACHE": str(folder / "cache")}
        outcome = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, check=True
        )
    report = json.loads(outcome.stdout.splitlines()[-1])
    report = {"utterances": options.utterances, "hours": hours, **report}
    if options.json:
        print(json.dumps(report))
        return 0
    print(f"{options.utterances:,} utterances, {hours:,.0f} h (made in {made:.0f} s)")
    print(f"{'clock s':>8} {'CPU s':>8} {'GB':>6}  after")
    for row in report["stages"]:
        print(
            f"{row['clock']:8.1f} {row['cpu']:8.1f} {row['peak_bytes'] / 1e9:6.2f}  {row['line']}"
        )
    return 0


def make_corpus(folder: Path, count: int) -> float:
    """Write the shards `train` and a tokenizer; returns the hours."""
    from omnisparse.data.formats.shard_index import ShardFacts, cuts_beside, write_index
    from omnisparse.data.members import digest_of, list_members
    from omnisparse.data.sharding import encode
    from omnisparse.data.tokenizer import Tokenizer

    generator = np.random.default_rng(0)
    lengths = np.clip(generator.gamma(6.0, MEAN / 6.0, count), 1.0, LONGEST)
    frames = np.round(lengths * RATE / 160).astype(int) * 160
    letters = np.array(list("abcdefghilmnoprstu"))
    words = ["".join(letters[generator.integers(len(letters), size=n)]) for n in
             generator.integers(2, 9, 20_000)]  # fmt: skip
    noise = np.round(generator.standard_normal(int(LONGEST * RATE)) * 1000) / 32768
    content = encode(noise.astype(np.float32), RATE, "flac")
    train = folder / "train"
    train.mkdir()
    first = train / "recording.000000.tar"
    with tarfile.open(first, "w") as archive:
        info = tarfile.TarInfo("all.flac")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    ((_, offset, size),) = list_members(first)
    digest = digest_of(content)
    shards = []
    texts = []
    for shard, start in enumerate(range(0, count, SHARD)):
        places = range(start, min(count, start + SHARD))
        ids = [f"speaker{n % 2000:04d}-book{n // 97:05d}-{n:07d}" for n in places]
        lines = []
        for n, name in zip(places, ids, strict=True):
            drawn = generator.integers(len(words), size=max(1, round(lengths[n] * 2.6)))
            text = " ".join(words[number] for number in drawn)
            texts.append(text)
            lines.append(json.dumps(_cut(name, int(frames[n]), text, f"s{n % 2000}")))
        tar = train / f"recording.{shard:06d}.tar"
        if shard:
            os.link(first, tar)
        with gzip.open(train / f"cuts.{shard:06d}.jsonl.gz", "wt", compresslevel=1) as file:
            file.write("\n".join(lines) + "\n")
        shards.append(
            ShardFacts(
                tar=tar.name, bytes=tar.stat().st_size, suffix=".flac", ids=ids,
                cuts=digest_of(cuts_beside(tar).read_bytes()),
                offsets=[offset] * len(ids), sizes=[size] * len(ids), digests=[digest] * len(ids),
                rates=[RATE] * len(ids), frames=[int(frames[n]) for n in places],
                heard=["sound"] * len(ids),
            )
        )  # fmt: skip
    write_index(train, shards)
    Tokenizer.train(texts[:5000], 500, folder)
    return float(frames.sum() / RATE / 3600)


def _cut(name: str, frames: int, text: str, speaker: str) -> dict[str, Any]:
    seconds = frames / RATE
    recording = {
        **{"id": name, "sources": [{"type": "shar", "channels": [0], "source": ""}]},
        **{"sampling_rate": RATE, "num_samples": frames, "duration": seconds, "channel_ids": [0]},
    }
    spoken = {
        **{"id": name, "recording_id": name, "start": 0.0, "duration": seconds, "channel": 0},
        **{"text": text, "speaker": speaker},
    }
    return {
        **{"id": name, "start": 0, "duration": seconds, "channel": 0, "supervisions": [spoken]},
        **{"recording": recording, "type": "MonoCut"},
    }


def _start(folder: Path, frames: str, workers: int) -> dict[str, Any]:
    """Start a training; what it said when, from the start of the process."""
    stages: list[dict[str, Any]] = []

    def note(line: str) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        stages.append(
            {
                "clock": time.time() - _began(),
                "cpu": usage.ru_utime + usage.ru_stime,
                "peak_bytes": usage.ru_maxrss * 1024,
                "line": line.replace(str(folder), "CORPUS"),
            }
        )

    from omnisparse.config import config_from_dict
    from omnisparse.pipeline.train import train

    note("imports")
    shape = {"encoder_layers": 2, "encoder_dim": 16, "embedding_dim": 8}
    shape |= {"decoder_dim": 16, "attention_dim": 8, "attention_heads": 2}
    config = config_from_dict(
        {
            "name": "start",
            "corpus": {"train": [str(folder / "train")], "root": str(folder / "data")},
            "data": {
                "tokenizer": str(folder / "tokenizer.model"),
                "frames": frames,
                "workers": workers,
                "batch_seconds": 600,
                "max_batch_size": 100,
            },
            "model": {"kind": "las", **shape},
            "method": {"kind": "dense"},
            "training": {"max_steps": STEPS, "threads": 1},
        }
    )

    def stepped(step: int, max_steps: int, metrics: object) -> None:
        note(f"step {step}")

    result = train(config, out=folder / "run", on_stage=note, on_progress=stepped)
    first = next(row for row in stages if row["line"] == "step 1")
    return {
        "seconds": first["clock"],
        "cpu_seconds": first["cpu"],
        "peak_bytes": stages[-1]["peak_bytes"],
        "steps": result.steps,
        "stages": stages,
    }


def _began() -> float:
    """When this process was started, in seconds of the epoch."""
    import psutil

    return float(psutil.Process().create_time())


if __name__ == "__main__":
    sys.exit(main())
