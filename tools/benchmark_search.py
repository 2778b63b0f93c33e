"""What it costs a search to measure several subnets: one after the other, or batch by batch.

    python tools/benchmark_search.py runs/latest data/mine/dev.jsonl.gz

One after the other, as `omnisparse search` does: a subnet's masks are written into the one net,
which then takes all batches of the dev set. Batch by batch: a copy of the net for each of four
subnets, and each batch goes through all of them, so that the data is passed over once. Printed are
CPU seconds of the label losses (medians, the ways in turn) and their ratio to the first way; and,
for scale, those of writing the masks alone and of batches four times as large.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from omnisparse.data.corpora import load_manifest
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.pipeline.search_task import SearchConfig, SearchTask

SIZES = ("50%", "37%", "25%", "18%")
PER_ITEM = 8
MOST = 96


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("manifest", type=Path, help=f"the first {MOST} utterances are taken")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = SearchTask(arguments.run, SIZES, SearchConfig())
    loaded, supernet = task.loaded, task.supernet
    cuts = list(load_manifest(arguments.manifest, sampling_rate=loaded.extractor.sampling_rate))
    dev, large = (
        DevSet(
            cuts[:MOST], extractor=loaded.extractor, tokenizer=loaded.tokenizer,
            utterances_per_item=count, cut_above=loaded.cut_above,
        )
        for count in (PER_ITEM, 4 * PER_ITEM)
    )  # fmt: skip
    specs = [supernet.spec_for(size) for size in SIZES]
    copies = []
    for spec in specs:
        with supernet.squashed(spec) as net:
            copies.append(copy.deepcopy(net))

    def one_by_one(of: DevSet) -> list[list[float]]:
        losses = []
        for spec in specs:
            with supernet.squashed(spec) as net:
                losses.append(of.losses(net, range(of.num_items)))
        return losses

    def together() -> list[list[float]]:
        by_item = [[dev.losses(net, [item])[0] for net in copies] for item in range(dev.num_items)]
        return [list(losses) for losses in zip(*by_item, strict=True)]

    def masks() -> None:
        for spec in specs:
            with supernet.squashed(spec):
                pass

    ways: dict[str, Callable[[], object]] = {
        "one after the other": lambda: one_by_one(dev),
        "batch by batch": together,
        "masks alone": masks,
        f"batches of {4 * PER_ITEM}": lambda: one_by_one(large),
    }
    assert one_by_one(dev) == together()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name].append(time.process_time() - started)
    first = seconds["one after the other"]
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, first, strict=True))
        print(f"{name:22} {statistics.median(values):7.3f} s   {ratio:.3f}")


if __name__ == "__main__":
    main()
