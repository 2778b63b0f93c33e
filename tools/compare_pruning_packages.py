#!/usr/bin/env python3
"""NNCF and Torch-Pruning beside us: the net and the digits of ``docs/examples/any_model.py``.

    python -m venv other
    other/bin/pip install ".[train]" nncf==3.4.0 torchao==0.18.0 torch-pruning==1.6.1
    other/bin/python tools/compare_pruning_packages.py [SEEDS]

Every method gets the same optimizer, the same steps and batches, and is to leave a tenth of the
net's parameters. A step of our supernet has three passes. One thread; a minute for each seed.
"""

import copy
import inspect
import io
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean

import nncf
import torch
import torch_pruning
from nncf.torch.function_hook.pruning.magnitude.schedulers import (
    ExponentialMagnitudePruningScheduler,
)
from torch import Tensor, nn
from torch.nn import functional as F

import omnisparse

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "examples"))
from any_model import BATCH, STEPS, accuracy, digits, make_model

KEPT = 0.1
EXAMPLE = torch.zeros(1, 1, 20, 16)
Written = tuple[nn.Module, int]
"""A net that is used as it would be, and bytes of what is written of it."""


def bytes_of(model: nn.Module) -> bytes:
    """What ``torch.save`` writes of its state."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getvalue()


def plain(model: nn.Module, steps: int, generator: torch.Generator) -> Written:
    """The loop of someone who prunes nothing; lines that are not here are what pruning costs."""
    adam = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    model.train()
    for step in range(steps):  # noqa: B007
        images, labels = digits(BATCH, generator)
        F.cross_entropy(model(images), labels).backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    return model, len(bytes_of(model))


def by_omnisparse(
    model: nn.Module, steps: int, generator: torch.Generator, *, min_size: str
) -> Written:
    """As in the example."""
    supernet = omnisparse.Supernet(model)
    sandwich = omnisparse.SandwichTraining(supernet, max_steps=steps, min_size=min_size)
    adam = torch.optim.Adam(supernet.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    supernet.train()
    for step in range(steps):
        images, labels = digits(BATCH, generator)
        for net in sandwich.nets(step):
            outputs = supernet(images)
            net.loss(F.cross_entropy(outputs, labels), outputs).backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    calibration, _ = digits(512, generator)
    with tempfile.TemporaryDirectory() as place:
        told = omnisparse.extract(
            supernet, size=f"{KEPT:.0%}", out=Path(place, "small"), calibrate=[calibration]
        )
        return omnisparse.load_packed(Path(place, "small"), make_model()), told["bytes"]


def nncf_ratio(model: nn.Module) -> float:
    """Sparsity of the matrices that leaves a tenth of all parameters."""
    whole = sum(one.numel() for one in model.parameters())
    matrices = sum(one.numel() for one in model.parameters() if one.ndim > 1)
    return 1 - (KEPT * whole - (whole - matrices)) / matrices


class Wrapped(nn.Module):
    """NNCF adds a child to what it prunes, which a bare ``nn.Sequential`` would then call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """What the net gives."""
        outputs: Tensor = self.net(images)
        return outputs


def by_nncf(model: nn.Module, steps: int, generator: torch.Generator) -> Written:
    """Masks by magnitude over all matrices together; they grow over three fifths of the steps."""
    kind, ratio = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, nncf_ratio(model)
    model = nncf.prune(Wrapped(model), mode=kind, ratio=0.0, examples_inputs=EXAMPLE)
    masks = ExponentialMagnitudePruningScheduler(
        model, mode=kind, initial_ratio=0.0, target_ratio=ratio, target_epoch=steps * 3 // 5
    )
    adam = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    model.train()
    for step in range(steps):
        masks.step(step)
        images, labels = digits(BATCH, generator)
        F.cross_entropy(model(images), labels).backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    model = nncf.strip(model, strip_format=nncf.StripFormat.IN_PLACE, example_input=EXAMPLE)
    return model, len(bytes_of(model))


def channels_pruned(model: nn.Module, parameters: int) -> nn.Module:
    """The net without the channels of least norm, the same share in all layers but the last.

    Torch-Pruning is told a share of channels, so the smallest that leaves so few parameters is
    looked for.
    """
    for percent in range(1, 100):
        small = copy.deepcopy(model)
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        torch_pruning.pruner.BasePruner(
            small, EXAMPLE, importance=importance, pruning_ratio=percent / 100,
            ignored_layers=[small[-1]],
        ).step()  # fmt: skip
        if sum(one.numel() for one in small.parameters()) <= parameters:
            return small
    raise SystemExit("no share of channels leaves so few parameters")


def by_torch_pruning(model: nn.Module, steps: int, generator: torch.Generator) -> Written:
    """Channels go in five rounds over the first three fifths of the steps."""
    rounds, whole = 5, sum(one.numel() for one in model.parameters())
    each = steps * 3 // 5 // rounds
    adam = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    model.train()
    for step in range(steps):
        if step in range(each, rounds * each + 1, each):
            model = channels_pruned(model, int(whole * KEPT ** (step // each / rounds)))
            # Its parameters are other tensors: the optimizer begins anew, at its present rate.
            adam = torch.optim.Adam(model.parameters(), 4e-3)
            adam.param_groups[0]["lr"] = schedule.get_last_lr()[0]
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps - step)
        images, labels = digits(BATCH, generator)
        F.cross_entropy(model(images), labels).backward()
        adam.step()
        adam.zero_grad()
        schedule.step()
    return model, len(bytes_of(model))


def own_lines(*functions: Callable[..., object]) -> int:
    """Lines of code of functions that the plain loop does not have."""

    def lines(function: Callable[..., object]) -> list[str]:
        source = inspect.getsource(function).split('"""')[2]
        return [line.partition("#")[0].strip() for line in source.splitlines()]

    known = set(lines(plain))
    return sum(bool(line) and line not in known for one in functions for line in lines(one))


Row = tuple[str, Callable[..., Written], int, Sequence[Callable[..., object]]]


def rows() -> list[Row]:
    """Name, method, passes of a step, and the functions whose lines count."""
    return [
        ("nothing pruned", plain, 1, (plain,)),
        ("omnisparse, min_size 5%", partial(by_omnisparse, min_size="5%"), 3, (by_omnisparse,)),
        ("omnisparse, min_size 10%", partial(by_omnisparse, min_size="10%"), 3, (by_omnisparse,)),
        ("NNCF, magnitude", by_nncf, 1, (by_nncf, nncf_ratio, Wrapped)),
        ("Torch-Pruning, channels", by_torch_pruning, 1, (by_torch_pruning, channels_pruned)),
    ]


def measure(row: Row, seeds: int, images: Tensor, labels: Tensor) -> str:
    """A line of the table: means over the seeds."""
    name, method, passes, parts = row
    right, nonzero, written, packed, seconds = [], [], [], [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(100 + seed)
        started = time.process_time()
        model, size = method(make_model(), STEPS, generator)
        seconds.append(time.process_time() - started)
        right.append(accuracy(model, images, labels))
        nonzero.append(sum(int(one.count_nonzero()) for one in model.parameters()))
        written.append(size)
        packed.append(len(zlib.compress(bytes_of(model), 9)))
    each = " / ".join(f"{one:.1f}" for one in right)
    return (
        f"| {name} | {STEPS * passes} | {round(mean(nonzero)):,} "
        f"| {round(mean(written)):,} | {round(mean(packed)):,} | {mean(right):.1f} ({each}) "
        f"| {mean(seconds):.0f} | {own_lines(*parts)} |"
    )


def main() -> None:
    """Print the table."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    nncf.set_log_level(40)
    images, labels = digits(2000, torch.Generator().manual_seed(2))
    print(f"torch {torch.__version__}, nncf {nncf.__version__}")
    print(
        "| method | passes | non-zero | bytes written | `torch.save`, deflated "
        "| accuracy % (each seed) | processor s | lines |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows():
        print(measure(row, seeds, images, labels), flush=True)


if __name__ == "__main__":
    main()
