"""The best reward so far against evaluations, of searches by several methods and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from omnisparse.evaluation.pareto import COLOURS, new_figure, save_figure, style_axes

Curve = tuple[int, Sequence[float]]
"""Evaluations before the first reward, and the rewards in order."""


def best_so_far(rewards: Sequence[float]) -> list[float]:
    """The running maximum of rewards."""
    return list(itertools.accumulate(rewards, max))


def plot_rewards(curves: Mapping[str, Sequence[Curve]], path: Path, *, title: str) -> None:
    """Draws the best reward so far of every method: a thin line a seed, a thick one their mean.

    Args:
        curves: Searches by method, one of each seed.
        path: The image to write; its suffix is the format.
        title: Of the plot.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.add_subplot()
    for number, (method, searches) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        lines = [best_so_far(rewards) for _, rewards in searches]
        starts = [before for before, _ in searches]
        for before, line in zip(starts, lines, strict=True):
            places = range(before + 1, before + 1 + len(line))
            axes.plot(places, line, color=colour, linewidth=0.7, alpha=0.4)
        shortest = min(map(len, lines))
        mean = [sum(line[index] for line in lines) / len(lines) for index in range(shortest)]
        first = round(sum(starts) / len(starts)) + 1
        seeds = f", {len(lines)} seeds" if len(lines) > 1 else ""
        axes.plot(
            range(first, first + shortest), mean, color=colour, linewidth=2,
            label=f"{method}{seeds}: {mean[-1]:.4f}",
        )  # fmt: skip
    axes.set_xlabel("candidates evaluated, sensitivity test included")
    axes.set_ylabel("best reward so far")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    style_axes(axes)
    save_figure(figure, path)
