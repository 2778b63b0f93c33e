"""What a training step costs: a dense one, a sandwich, and both of an earlier revision beside them.

    python tools/benchmark_training.py --config recipes/configs/transducer_books.yaml
    python tools/benchmark_training.py --config recipes/configs/transducer_books.yaml \
        --against f1feb7c --json
    python tools/benchmark_training.py --config recipes/configs/las_110m_librispeech.yaml \
        --against f1feb7c --memory --steps 20 --batch 3 --seconds 4
    python tools/benchmark_training.py --config recipes/configs/transducer_emformer_76m.yaml \
        --device cuda --batch 64 --seconds 12 --tokens 45

Each step is one of the real loop: losses, backward, clipping, optimizer. Both nets learn from one
random batch, or with `--lengths N` from N of different lengths in turn, from half of `--seconds` to
all: a training seldom sees a shape twice, and some kernels prepare for each. With `--against` a
second process runs the other revision, from a git worktree that is made for it and removed
afterwards, with the configuration file of that revision, in float32; the steps of the two processes
take turns, in changing order. Reported are medians of seconds, and as speedups and ratios the
medians over neighbouring steps (which need not be those of the medians). Seconds are CPU time (all
threads) on a CPU, which a busy machine stretches less than the clock, and time on the clock, the
device waited for, on a GPU. Peaks are of the whole process.

With `--memory` the processes run one after the other, both in the wanted precision, and nothing is
timed: what is reported of each is the peak of its memory and what is in it. `rest` is that of the
peak which is neither there before nor held between steps: activations, and copies made on the way.
`--between S` saves time where batches are large: the first step and the last two have `--seconds`,
the others S. Sizes are drawn, and kept masks grow, with the steps, whatever the batches.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omnisparse.training.precision import has_bf16

ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).with_name("training_step_worker.py")
NETS = ("dense", "sandwich")
STEPS_OF_GROWTH = 2  # the first ones allocate


class Side:
    """A process that takes steps with one revision of the package."""

    def __init__(self, tree: Path, order: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        if order.get("launcher"):  # as `accelerate launch --mixed_precision` hands it on
            environment["ACCELERATE_MIXED_PRECISION"] = order["launcher"]
        environment["OMP_NUM_THREADS"] = str(order["threads"])
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tree,
        )
        self.built = json.loads(self._ask(json.dumps(order)))

    def step(self, net: str, number: int) -> float:
        """Seconds of one step on batch ``number``."""
        return float(self._ask(f"{net} {number}"))

    def held(self) -> dict[str, int]:
        """Bytes of what it holds between two steps."""
        return dict(json.loads(self._ask("memory")))

    def close(self) -> int:
        """End it; bytes at its peak."""
        answer, _ = self.process.communicate()
        return int(answer)

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a process that takes steps has failed; its message is above")
        return answer


@contextmanager
def revision(name: str) -> Iterator[Path]:
    """A worktree of a git revision, as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run(
            [*git, "add", "--detach", str(tree), name], capture_output=True, text=True, check=False
        )
        if added.returncode:
            raise SystemExit(f"--against {name}: {added.stderr.strip().splitlines()[-1]}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)


def measure(sides: list[Side], nets: list[str], steps: int) -> dict[str, list[list[float]]]:
    """Seconds of each net, a list per side, step by step."""
    seconds: dict[str, list[list[float]]] = {net: [[] for _ in sides] for net in nets}
    for index in range(steps + STEPS_OF_GROWTH):
        numbers = list(range(len(sides)))
        for net in nets:
            for number in numbers if index % 2 else reversed(numbers):
                taken = sides[number].step(net, index)
                if index >= STEPS_OF_GROWTH:
                    seconds[net][number].append(taken)
    return seconds


def lengths_of(count: int) -> list[float]:
    """Lengths of batches as shares of the longest, from 1 down to 1/2, in a mixed order."""
    stride = next(n for n in range(count // 2 + 1, count + 2) if math.gcd(n, count) == 1)
    return [1 - 0.5 * (index * stride % count) / max(1, count - 1) for index in range(count)]


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over neighbouring steps."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def config_of(tree: Path, config: Path | None) -> str | None:
    """The configuration file of a revision; where it has none of that name, the file itself."""
    if config is None:
        return None
    file = config.resolve()
    if file.is_relative_to(ROOT):
        for own in (tree / file.relative_to(ROOT),):
            if own.exists():
                return str(own)
    return str(file)


def report(arguments: argparse.Namespace, sides: list[Side], nets: list[str]) -> dict[str, Any]:
    """Measure, end the processes, and put the numbers together."""
    seconds = measure(sides, nets, arguments.steps)
    audio = arguments.batch * arguments.seconds * statistics.mean(lengths_of(arguments.lengths))
    built = sides[0].built
    result: dict[str, Any] = {
        **{key: built[key] for key in ("model", "parameters", "device")},
        "precision": "bf16" if built["mixed_precision"] == "bf16" else "fp32",
        "threads": arguments.threads,
        "batch": arguments.batch,
        "audio_seconds": audio,
        "lengths": arguments.lengths,
        "steps": arguments.steps,
    }
    for net, (own, *_) in seconds.items():
        result[f"{net}_seconds"] = statistics.median(own)
        result[f"{net}_audio_seconds_per_second"] = audio / statistics.median(own)
    if len(nets) > 1:
        result["sandwich_ratio"] = median_ratio(seconds["sandwich"][0], seconds["dense"][0])
    names = {"dense": "speedup", "sandwich": "sandwich_speedup"}
    if arguments.against:
        result["against"] = arguments.against
        for net, (own, other) in seconds.items():
            result[f"against_{net}_seconds"] = statistics.median(other)
            result[names[net]] = median_ratio(other, own)
    peaks = [side.close() for side in sides]
    result["peak_bytes"] = dict(zip(("new", "against"), peaks, strict=False))
    return result


def memory_of(tree: Path, order: dict[str, Any], steps: int, between: bool) -> dict[str, Any]:
    """Bytes of one revision at its peak, by what they are."""
    side = Side(tree, order)
    for number in range(steps):
        is_between = between and 0 < number < steps - 2
        side.step(order["nets"][-1], int(is_between) if between else number)
    held, before = side.held(), int(side.built["bytes_before"])
    peak = side.close()
    parts = {"before": before, **held, "rest": peak - before - sum(held.values())}
    return {"peak_bytes": peak, "parts": parts, "precision": side.built["mixed_precision"]}


def report_memory(
    arguments: argparse.Namespace, trees: dict[str, tuple[Path, dict[str, Any]]]
) -> dict[str, Any]:
    """Peaks of the revisions, one after the other, and the share of the first in the second."""
    result: dict[str, Any] = {"batch": arguments.batch, "seconds": arguments.seconds}
    result["steps"], result["between"] = arguments.steps, arguments.between
    for name, (tree, order) in trees.items():
        result[name] = memory_of(tree, order, arguments.steps, arguments.between is not None)
    if "against" in result:
        result["share"] = result["new"]["peak_bytes"] / result["against"]["peak_bytes"]
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("las", "transducer"), default="las")
    parser.add_argument("--config", type=Path, help="YAML of a supernet; --model is ignored then")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of --config")
    parser.add_argument("--against", metavar="REV", help="git revision to compare with, in float32")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32, help="utterances")
    parser.add_argument("--tokens", type=int, default=20, help="per utterance")
    parser.add_argument("--seconds", type=float, default=4.0, help="per utterance")
    parser.add_argument("--lengths", type=int, default=1, help="batches of different lengths")
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="bf16 where the device has it"
    )
    parser.add_argument("--member-share", type=float, help="of the batch, for all subnets together")
    parser.add_argument("--full-batch", action="store_true", help="every subnet sees everything")
    parser.add_argument("--random-subnets", type=int)
    parser.add_argument(
        "--memory", action="store_true", help="of a sandwich: peaks, and what is in them"
    )
    parser.add_argument(
        "--between", type=float, metavar="SECONDS", help="with --memory: shorter steps between"
    )
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Parse arguments, measure, print."""
    arguments = parse()
    given = {
        "member_share": arguments.member_share,
        "num_random_subnets": arguments.random_subnets,
        "full_batch": arguments.full_batch or None,
    }
    order = {
        key: getattr(arguments, key)
        for key in ("model", "overrides", "batch", "seconds", "tokens", "vocab_size", "threads")
    }
    order["sandwich"] = {name: value for name, value in given.items() if value is not None}
    order["lengths"] = lengths_of(arguments.lengths)
    order["nets"] = nets = [net for net in NETS if net in arguments.nets]
    order["precision"] = arguments.precision or ("bf16" if has_bf16(arguments.device) else "fp32")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.memory:
        order["nets"] = ["sandwich"]
        if arguments.between is not None:
            order["lengths"] = [1.0, arguments.between / arguments.seconds]
    with ExitStack() as stack:
        own = {**order, "config": config_of(ROOT, arguments.config)}
        trees = {"new": (ROOT, own)}
        if arguments.against:
            tree = stack.enter_context(revision(arguments.against))
            other = {**order, "config": config_of(tree, arguments.config), "precision": None}
            if arguments.memory and order["precision"] == "bf16":
                other["launcher"] = "bf16"
            trees["against"] = (tree, other)
        if arguments.memory:
            result = report_memory(arguments, trees)
        else:
            result = report(arguments, [Side(*side) for side in trees.values()], nets)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:34} {value:.4f}" if isinstance(value, float) else f"{name:34} {value}")


if __name__ == "__main__":
    main()
