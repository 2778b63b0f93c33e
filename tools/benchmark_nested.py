"""Costs of a nested file: bytes above the dense net, time to write it and to read a prefix.

    python tools/benchmark_nested.py                 # table on stdout
    python tools/benchmark_nested.py --json --size 32M

The net is the LAS of recipes/configs/las_110m_librispeech.yaml with its initial weights: the bytes
for positions depend on the number of weights in a band, not on which weights these are. The bytes
of the dense net at the same precision come from the plan of its artifact (`--format dense`),
without tokenizer. A time includes everything from the mapped checkpoint, or the nested file, in the
page cache to the last fsync, once each, but not the imports. CPU seconds are those of the process.
Bytes read are those that the reader requested from its source.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from omnisparse.artifact import MappedState, planned_bytes, write_artifact
from omnisparse.config import load_config
from omnisparse.models import LasConfig, build_model
from omnisparse.nested import NestedFile, write_nested
from omnisparse.nested.sources import FileSource
from omnisparse.sparsity.prunable import find_prunable

RECIPE = Path(__file__).parents[1] / "recipes" / "configs" / "las_110m_librispeech.yaml"
PRECISIONS = ("fp32", "fp16", "int8")


class CountingSource(FileSource):
    """A file that counts the requested bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.bytes_read = 0

    def read(self, start: int, stop: int) -> memoryview:
        """Exactly the bytes [start, stop), counted."""
        self.bytes_read += stop - start
        return super().read(start, stop)


def make_checkpoint(path: Path) -> dict[str, Any]:
    """Save the net, and return the contents of its files without weights."""
    config = load_config(RECIPE, [])
    assert isinstance(config.model, LasConfig)
    sizes = {"input_dim": 80 * config.data.features.stack, "vocab_size": config.data.vocab_size}
    torch.manual_seed(0)
    net = build_model(config.model, **sizes)
    save_file(net.state_dict(), path)
    return {
        "model": {**asdict(config.model), **sizes},
        "tokenizer": b"",
        "tokens_txt": "",
        "features": {},
        "prunable": find_prunable(net),
        "source": {},
    }


def measure_nested(
    checkpoint: Path, contents: Mapping[str, Any], folder: Path, precision: str, size: str
) -> dict[str, Any]:
    """Write one nested file, and extract one size from it.

    Args:
        checkpoint: Safetensors file of the dense net.
        contents: Keyword arguments that `write_nested` and `write_artifact` share.
        folder: Output folder; the files are not deleted.
        precision: Precision of the file and of the artifact.
        size: Size to extract.
    """
    state = MappedState(checkpoint)
    started, used = time.perf_counter(), time.process_time()
    info = write_nested(folder / "net.omni", state=state, precision=precision, **contents)
    write_seconds, write_cpu = time.perf_counter() - started, time.process_time() - used
    whole = {name: state[name].size for name in contents["prunable"]}
    options = {**contents, "precision": precision, "dense_parameters": info.parameters}
    dense_bytes = planned_bytes(state, whole, format="dense", **options)

    started, used = time.perf_counter(), time.process_time()
    source = CountingSource(folder / "net.omni")
    nested = NestedFile(source)
    artifact = nested.read(size)
    read_seconds = time.perf_counter() - started
    made = write_artifact(folder / "model", state=artifact.arrays, **options)
    return {
        "parameters": info.parameters,
        "dense_bytes": dense_bytes,
        "bytes": info.bytes,
        "overhead": info.bytes / dense_bytes - 1,
        "write_seconds": write_seconds,
        "write_cpu_seconds": write_cpu,
        "size": size,
        "nonzero": made.nonzero,
        "prefix_bytes": nested.prefix_bytes(size),
        "bytes_read": source.bytes_read,
        "read_seconds": read_seconds,
        "extract_seconds": time.perf_counter() - started,
        "extract_cpu_seconds": time.process_time() - used,
        "artifact_bytes": made.bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", default="16M", help="size to extract")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        checkpoint = Path(temporary) / "checkpoint.safetensors"
        contents = make_checkpoint(checkpoint)
        results = {
            precision: measure_nested(
                checkpoint, contents, Path(temporary), precision, arguments.size
            )
            for precision in PRECISIONS
        }
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print(
        f"| precision | dense net | whole file | over dense | written in (CPU) "
        f"| {arguments.size} prefix | bytes read | read in | extracted in (CPU) | artifact |\n"
        "|---|" + "---:|" * 9
    )
    for precision, row in results.items():
        print(
            f"| {precision} | {row['dense_bytes']:,} | {row['bytes']:,} "
            f"| {100 * row['overhead']:+.2f} % "
            f"| {row['write_seconds']:.1f} s ({row['write_cpu_seconds']:.1f}) "
            f"| {row['prefix_bytes']:,} | {row['bytes_read']:,} | {row['read_seconds']:.2f} s "
            f"| {row['extract_seconds']:.2f} s ({row['extract_cpu_seconds']:.2f}) "
            f"| {row['artifact_bytes']:,} |"
        )


if __name__ == "__main__":
    main()
