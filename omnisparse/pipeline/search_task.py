"""The task of a search in a trained run: its supernet, the sizes, and the score of a subnet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch

from omnisparse.errors import PositiveInt, Range, UsageError, check_ranges
from omnisparse.evaluation.dev_set import DevSet
from omnisparse.evaluation.workers import Workers
from omnisparse.runs import directory as runs
from omnisparse.runs.record import read_record
from omnisparse.sparsity.allocation import allocate
from omnisparse.sparsity.keys import parse_block, ranking_of
from omnisparse.sparsity.sizes import are_times, parse_count
from omnisparse.sparsity.space import MAX_SPREAD, SparsitySpace, SubnetSpec, subnet_generator
from omnisparse.sparsity.supernet import Supernet

Objective = Literal["loss", "wer"]
_RANDOM_PROBES = 2
_LAYER_LEVELS = 17
_SEEDS = 2**32  # number of seeds that the sampler accepts


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """Number of evaluations of a search, and the space that it searches."""

    evaluations: PositiveInt = 200
    """Number of evaluated subnets, over all sizes."""
    objective: Objective = "loss"
    """The minimised value: the label loss per token, or word errors per word (slower)."""
    utterances: PositiveInt = 100
    """Approximate number of utterances in the subset; they are chosen in batches."""
    utterances_per_item: PositiveInt = 8
    """Utterances that are computed and chosen together."""
    finalists: PositiveInt = 2
    """Number of best subnets of each size that are evaluated on the whole dev set, beside the
    uniform one."""
    layer_groups: tuple[str, ...] = ()
    """Expressions of matrices that share a density; by layer if empty."""
    spread: Annotated[float, Range(above=0, maximum=MAX_SPREAD)] = 3.0
    """Densities lie within a factor of 1 + this of the mean, before the total is restored."""
    seed: Annotated[int, Range(minimum=0, maximum=_SEEDS - 1)] = 0
    """Seed of the evolution."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_ranges(self, UsageError)
        if self.objective not in get_args(Objective):
            legal = ", ".join(get_args(Objective))
            raise UsageError(f"objective {self.objective!r} is not known; legal: {legal}")


@dataclass(frozen=True, kw_only=True)
class SubnetScores:
    """Measures subnets of a run on a dev set, in any process; see :class:`SearchTask`."""

    run: Path
    sizes: tuple[str, ...]
    config: SearchConfig
    dev: DevSet

    def build(self, device: torch.device) -> Callable[[Any], list[Any]]:
        """Load the run onto the device; the result answers ``((what, subnet), items)``."""
        task = SearchTask(self.run, self.sizes, self.config)
        task.loaded.model.to(device)

        def measure(asked: tuple[tuple[str, SubnetSpec], tuple[int, ...]]) -> list[Any]:
            (what, spec), items = asked
            if what == "transcripts":
                return task.transcripts(self.dev, spec, items)
            return task.measure(self.dev, spec, items)

        return measure


class SearchTask:
    """The supernet of a run, and the sizes of the subnets to find."""

    def __init__(self, run: Path, sizes: Sequence[str], config: SearchConfig) -> None:
        runs.require_directory(run, runs.RUN_ONLY)
        self.run, self.config = run, config
        description = self.description = runs.read_description(run)
        self.weights, checkpoint = runs.newest_weights(run)
        self.record = read_record(checkpoint)
        self.loaded = runs.load_model(checkpoint)
        block = parse_block(description.block)
        self.supernet = Supernet(
            self.loaded.model, prunable=description.prunable, block=block, single=description.single
        ).eval()
        budget = self.supernet.budget
        if not sizes:
            raise UsageError("sizes names no size; one or more, such as 50%,25%")
        self.timed = are_times(sizes)
        self.sizes = tuple(sizes)
        self.options: dict[str, Any] = {
            "spread": config.spread, "layer_groups": config.layer_groups,
            "num_layer_levels": _LAYER_LEVELS, "block": block,
        }  # fmt: skip
        self.plain_space = SparsitySpace(
            {fqn: budget.shapes[fqn] for fqn in budget.prunable}, **self.options
        )
        self.space = self.plain_space
        self.totals: dict[str, int] = {}
        if self.timed:  # totals and space are those of a Latency, which measures first
            return
        self.totals = {size.strip(): budget.solve(parse_count(size.strip())) for size in sizes}
        distinct = {self.space.spec(total) for total in self.totals.values()}
        if len(distinct) < len(sizes):  # with blocks, two totals may give the same subnet
            raise UsageError(f"sizes {','.join(sizes)}: two of them are the same size")

    def circumstances(self) -> dict[str, Any]:
        """Everything that a measurement depends on, beside the spec and the utterances."""
        digest = hashlib.sha256()
        for name, tensor in self.loaded.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.float().cpu().numpy().tobytes())
        return {
            "weights": digest.hexdigest(),
            "block": ranking_of(self.supernet.block, self.supernet.single),
            "prunable": list(self.supernet.prunable),
            "objective": self.config.objective,
            "utterances_per_item": self.config.utterances_per_item,
        }

    def measure(self, dev: DevSet, spec: SubnetSpec, items: Sequence[int]) -> list[float]:
        """Loss or errors of a subnet on items of the dev set."""
        with self.supernet.squashed(spec) as net:
            if self.config.objective == "loss":
                return dev.losses(net, items)
            found = dev.errors(net, items)
        return [float(sum(one.errors for one in counts)) for counts in found]

    def transcripts(self, dev: DevSet, spec: SubnetSpec, items: Sequence[int]) -> list[list[str]]:
        """What a subnet recognises in items of the dev set."""
        with self.supernet.squashed(spec) as net:
            return dev.transcripts(net, items)

    def probes(self) -> dict[int, list[SubnetSpec]]:
        """First allocations of each size: uniform, LAMP, half-way, and random ones.

        Raises:
            UsageError: If there are fewer evaluations than these allocations.
        """
        probes: dict[int, list[SubnetSpec]] = {}
        weights = self.supernet.weights()
        numel = self.space.numel
        for index, total in enumerate(self.totals.values()):
            kept = sum(self.space.spec(total).counts(numel).values())
            lamp = allocate(weights, kept, "lamp", block=self.supernet.block)
            offsets = self.space.offsets_of(lamp)
            half = {group: offset / 2 for group, offset in offsets.items()}
            generator = subnet_generator(self.config.seed, index, 2)
            drawn = [self.space.sample_offsets(generator) for _ in range(_RANDOM_PROBES)]
            specs = [
                self.space.spec(total),
                self.space.spec(total, offsets)
                if self.timed
                else SubnetSpec.from_counts(lamp, numel),
                *(self.space.spec(total, choice) for choice in (half, *drawn)),
            ]
            probes[total] = list(dict.fromkeys(specs))
        needed = sum(map(len, probes.values()))
        if self.config.evaluations < needed:
            raise UsageError(
                f"evaluations is {self.config.evaluations}; at least {needed} for these sizes"
            )
        return probes


class Measured:
    """Subnets measured on a dev set: here, or on other processes and devices.

    Args:
        task: The supernet in this process.
        dev: The dev set.
        workers: Processes that measure, and their device; None for this one and its CPU.
    """

    def __init__(self, task: SearchTask, dev: DevSet, workers: Workers | None) -> None:
        self._task, self._dev = task, dev
        self._workers = None if workers is None or workers.is_plain else workers
        self._job = SubnetScores(run=task.run, sizes=task.sizes, config=task.config, dev=dev)

    def circumstances(self) -> dict[str, Any]:
        """Those of the task, and a device that rounds in another way than a CPU."""
        kind = "cpu" if self._workers is None else self._workers.device.type
        return {**self._task.circumstances(), **({} if kind == "cpu" else {"device": kind})}

    def scores(self, spec: SubnetSpec, items: Sequence[int]) -> list[float]:
        """Loss or errors of a subnet on each item."""
        if self._workers is None:
            return self._task.measure(self._dev, spec, items)
        return self._workers.map_items(self._job, ("score", spec), items)

    def transcripts(self, spec: SubnetSpec, items: Sequence[int]) -> list[list[str]]:
        """What a subnet recognises in each item."""
        if self._workers is None:
            return self._task.transcripts(self._dev, spec, items)
        return self._workers.map_items(self._job, ("transcripts", spec), items)
