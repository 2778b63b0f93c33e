#!/usr/bin/env python3
"""A small convolutional net as a supernet: trained once, cut to five sizes, packed, loaded again.

    python docs/examples/any_model.py [FOLDER]

Nothing here knows of speech, and no data is downloaded: the images are drawn.
"""

import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import omnisparse

SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
"""The ten digits of a pocket calculator."""

STROKES = {  # rows and columns of each segment in an image of 12 x 8
    **{"a": (0, 2, 1, 7), "g": (5, 7, 1, 7), "d": (10, 12, 1, 7)},
    **{"f": (1, 6, 0, 2), "b": (1, 6, 6, 8), "e": (6, 11, 0, 2), "c": (6, 11, 6, 8)},
}
STEPS, BATCH = 500, 64


def digits(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images ``[count, 1, 20, 16]`` of digits at random places, in noise; and their labels."""
    plain = torch.zeros(10, 12, 8)
    for digit, segments in enumerate(SEGMENTS):
        for segment in segments:
            top, bottom, left, right = STROKES[segment]
            plain[digit, top:bottom, left:right] = 1.0
    labels = torch.randint(10, (count,), generator=generator)
    images = torch.zeros(count, 1, 20, 16)
    downs = torch.randint(9, (count,), generator=generator).tolist()
    rights = torch.randint(9, (count,), generator=generator).tolist()
    for image, label, down, right in zip(images, labels.tolist(), downs, rights, strict=True):
        image[0, down : down + 12, right : right + 8] = plain[label]
    return images + 0.4 * torch.randn(images.shape, generator=generator), labels


def make_model() -> nn.Module:
    """A convolutional net of 26,000 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers in percent."""
    return 100 * float((model.eval()(images).argmax(1) == labels).float().mean())


def train(supernet: omnisparse.Supernet, generator: torch.Generator) -> None:
    """The loop, as anyone has it; what makes it a supernet's are three lines."""
    sandwich = omnisparse.SandwichTraining(supernet, max_steps=STEPS, min_size="5%")  # 1
    adam = torch.optim.Adam(supernet.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    supernet.train()
    for step in range(STEPS):
        images, labels = digits(BATCH, generator)
        for net in sandwich.nets(step):  # 2
            outputs = supernet(images)
            net.loss(F.cross_entropy(outputs, labels), outputs).backward()  # 3
        adam.step()
        adam.zero_grad()
        schedule.step()


def main() -> None:
    """Train, extract, load, and compare."""
    started = time.perf_counter()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "any_model")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    model = make_model()
    supernet = omnisparse.Supernet(model)
    train(supernet, generator)
    calibration, _ = digits(512, generator)
    images, labels = digits(2000, torch.Generator().manual_seed(2))
    print("| size | non-zero parameters | bytes | accuracy % |")
    print("|---|---|---|---|")
    for size in ("100%", "50%", "25%", "10%", "5%"):
        place = folder / size.replace("%", "pct")
        told = omnisparse.extract(supernet, size=size, out=place, calibrate=[calibration])
        small = omnisparse.load_packed(place, make_model())
        print(
            f"| {size} | {told['nonzero']:,} | {told['bytes']:,} "
            f"| {accuracy(small, images, labels):.1f} |"
        )
        # What was loaded is the subnet, to the last bit of every weight.
        subnet = supernet.extract(supernet.spec_for(size))
        for name, weight in small.named_parameters():
            assert torch.equal(weight, subnet[name]), name
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
