"""How fast training data is read: from files, from shards, from stored frames, by several readers.

    python tools/benchmark_shards.py data/books/train.jsonl.gz
    python tools/benchmark_shards.py data/books/train.jsonl.gz --codecs flac,opus --hours 0.5 --json

Takes the first utterances of a corpus, writes them as single FLAC files and as shards, and reads
both in the order of training batches. Reported are hours of audio per second of CPU time, which is
what one core does alone: samples (reading and decoding), features (with log-mel frames and masks),
and the ratio of each to the single files. Every way is read in turn with the others, several times;
the median counts. What is read is in the page cache: a disk or a network comes on top, and there
the shards' large files are what matters. With `--workers` the readers of `data.workers` are timed
on the clock, which on a busy machine says little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omnisparse.data.audio import read_samples
from omnisparse.data.augmentation import SpecAugment
from omnisparse.data.batching import TrainingBatches
from omnisparse.data.corpora import load_manifest
from omnisparse.data.feature_store import FeatureStore
from omnisparse.data.live_features import FrameSource, LiveFeatures
from omnisparse.data.sharding import encode, shard_corpus
from omnisparse.data.tokenizer import Tokenizer

ROUNDS = 5


def main() -> int:
    """Write the corpora, read them in turn, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--hours", type=float, default=0.3, help="audio that is read")
    parser.add_argument("--codecs", default="flac", help="of the shards, joined by commas")
    parser.add_argument("--workers", type=int, default=0, help="also time so many readers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = _measure(options, Path(name))
    if options.json:
        print(json.dumps(report))
        return 0
    print(f"{report['utterances']} utterances, {report['hours']:.2f} h; median of {ROUNDS}")
    print(f"{'':24} {'h per CPU s':>12} {'x files':>8} {'MB':>8}")
    for row in report["rows"]:
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        print(f"{row['name']:24} {row['hours_per_second']:12.4f} {row['ratio']:8.3f} {size:>8}")
    return 0


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cuts = load_manifest(options.manifest, sampling_rate=16000)
    chosen, seconds = [], 0.0
    for cut in cuts:
        if seconds >= options.hours * 3600:
            break
        chosen.append(cut)
        seconds += cut.duration
    (folder / "audio").mkdir()
    lines = []
    for number, cut in enumerate(chosen):
        path = folder / "audio" / f"{number:06d}.flac"
        path.write_bytes(encode(read_samples(cut), cut.sampling_rate, "flac"))
        text = cut.supervisions[0].text
        lines.append({"id": cut.id, "audio_filepath": str(path), "text": text})
    manifest = folder / "files.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = Tokenizer.train([line["text"] for line in lines], 200, folder)
    corpora = {"files": (manifest, folder / "audio")}
    for codec in options.codecs.split(","):
        out = folder / codec
        shard_corpus(manifest, out, codec=codec)
        corpora[f"shards, {codec}"] = (out / "files", out / "files")
    ways: dict[str, Callable[[], None]] = {}
    sizes: dict[str, int | None] = {}
    for name, (place, audio) in corpora.items():
        loaded = load_manifest(place)
        live = LiveFeatures.prepare(loaded, folder / "features", num_jobs=1)
        ways[f"samples, {name}"] = lambda loaded=loaded: [read_samples(cut) for cut in loaded]  # type: ignore[misc,assignment]
        ways[f"features, {name}"] = lambda loaded=loaded, live=live: _epoch(  # type: ignore[misc]
            loaded, live, tokenizer, 0
        )
        sizes[f"samples, {name}"] = sum(path.stat().st_size for path in audio.iterdir())
    store = FeatureStore.build(load_manifest(manifest), folder / "features", num_jobs=1)
    ways["features, stored frames"] = lambda: _epoch(load_manifest(manifest), store, tokenizer, 0)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, read in ways.items():
            began = time.process_time()
            read()
            taken[name].append(time.process_time() - began)
    speeds = {name: seconds / 3600 / statistics.median(one) for name, one in taken.items()}
    rows = [
        {
            "name": name,
            "hours_per_second": speed,
            "ratio": speed / speeds[f"{name.split(',')[0]}, files"],
            "bytes": sizes.get(name),
        }
        for name, speed in speeds.items()
    ]
    if options.workers:
        loaded = load_manifest(manifest)
        live = LiveFeatures.prepare(loaded, folder / "features", num_jobs=1)
        for workers in (0, options.workers):
            began = time.monotonic()
            _epoch(loaded, live, tokenizer, workers)
            speed = seconds / 3600 / (time.monotonic() - began)
            name = f"features, clock, {workers} readers"
            ratio = speed / speeds["features, files"]
            rows.append({"name": name, "hours_per_second": speed, "ratio": ratio, "bytes": None})
    return {"utterances": len(chosen), "hours": seconds / 3600, "rows": rows}


def _epoch(cuts: Any, source: FrameSource, tokenizer: Tokenizer, workers: int) -> None:
    """Read an epoch of training batches."""
    batches = TrainingBatches(
        cuts, features=source, extractor=source.extractor(4), tokenizer=tokenizer,
        batch_seconds=120.0, max_batch_size=64, spec_augment=SpecAugment(), workers=workers,
        prefetch=2 if workers else 0,
    )  # fmt: skip
    stream = iter(batches)
    for _ in itertools.islice(stream, batches.steps_per_epoch):
        pass
    stream.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
