"""Every shipped sweep can be run as it is: legal sizes, all of them trained, a short warm-up."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from omnisparse.artifact import SMALLEST, untrained_warnings
from omnisparse.cli.baseline import WITHOUT_TEACHER, Request, parse_request, read_row
from omnisparse.config import RunConfig, load_config
from omnisparse.methods import (
    DenseConfig,
    GradualPruningConfig,
    SandwichConfig,
    build_method,
    distillation_of,
)
from omnisparse.models import SpeechModel, build_model
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sweeps.file import load_sweep

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))
HOURS = {"data/librispeech": 960.0, "data/an4": 0.57}
"""Training speech of the corpora that shipped sweeps read, by ``corpus.base``."""

LONGEST_WARMUP = 0.1
WITHOUT_EFFECT = ("seed=", "training.learning_rate=")
"""Overrides that change neither a size nor the number of steps."""


@cache
def rows_of(path: Path) -> tuple[tuple[Request, str | None, RunConfig], ...]:
    """What each point asks for, the size that it names, and the run that it trains.

    Of points that differ in the seed or in the learning rate, the first.
    """
    sweep = load_sweep(path)
    found: dict[object, tuple[Request, str | None, RunConfig]] = {}
    for point in sweep.points():
        line = sweep.command_line(point, {})
        config, overrides = None, []
        rest = iter(line[line.index(sweep.program) + 1 :])
        for argument in rest:
            key, equals, value = argument.partition("=")
            if key == "--config":
                config = value if equals else next(rest)
            elif key != "init":  # the run that it names does not exist yet
                overrides.append(argument)
        assert config is not None
        request = parse_request(overrides)
        # A row is checked as the row of the same size that needs no teacher.
        first = WITHOUT_TEACHER.get(request.method, request.method)
        common = [text for text in request.common if not text.startswith(WITHOUT_EFFECT)]
        own = request.own if first == request.method else ()
        shape = (request.sizes, request.projection_share, request.decoder_share, request.budget)
        place = (config, first, request.size, shape, own, tuple(common))
        if place in found:
            continue
        rows = [text for text in overrides if text.partition("=")[0].lstrip("-") != "method"]
        rows = [text for text in rows if text not in request.common]
        asked = [f"method={first}", *common, *own, *rows, *_shares(request)]
        found[place] = (request, point.get("size"), read_row(ROOT / config, asked)[2])
    return tuple(found.values())


def _shares(request: Request) -> list[str]:
    names = ("projection_share", "decoder_share")
    return [f"{name}={getattr(request, name)}" for name in names]


def net_of(config: RunConfig) -> SpeechModel:
    with torch.device("meta"):
        return build_model(
            config.model,
            input_dim=config.data.features.num_bins * config.data.features.stack,
            vocab_size=config.data.vocab_size,
        )


def steps_of(config: RunConfig) -> float:
    """Optimizer steps of a run, from the hours of its corpus."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    corpus = config.corpus
    hours = 0.0 if corpus.synthetic is None else corpus.synthetic.hours
    hours += HOURS[str(corpus.base)] if corpus.train else 0.0
    speeds = config.data.augmentation.speed_factors or (1.0,)
    seconds = 3600 * hours * sum(1 / speed for speed in speeds)
    return config.training.epochs * seconds / config.data.batch_seconds


def test_there_are_sweeps() -> None:
    assert len(SWEEPS) >= 6


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_all_sizes_are_legal_and_trained(path: Path) -> None:
    """The method of every row can be prepared, and no size is below what a supernet trains."""
    seen: set[str] = set()
    sizes = {size for _, size, _ in rows_of(path) if size is not None}
    for request, _, config in rows_of(path):
        if repr(config.method) + repr(config.model) in seen:
            continue
        seen.add(repr(config.method) + repr(config.model))
        method = config.method
        if distillation_of(method) is not None:
            continue  # read_row has found a net of this size
        if not isinstance(method, (DenseConfig, SandwichConfig, GradualPruningConfig)):
            continue  # likewise, of every stage
        if isinstance(method, GradualPruningConfig):
            # Other scopes, and pruning from the first step on, need weights.
            method = dataclasses.replace(method, scope="layer", begin=0.5, end=0.9)
        net = net_of(config)
        build_method(method, seed=0).prepare(net, max_steps=1000)
        if not isinstance(method, SandwichConfig):
            continue
        budget = Budget.of(net, find_prunable(net, include=method.prunable))
        smallest = budget.unprunable + budget.solve(method.min_size)
        for size in sizes:
            asked = budget.unprunable + budget.solve(size)
            assert untrained_warnings(asked, {SMALLEST: smallest}) == [], (request.method, size)


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_the_warm_up_is_a_small_part_of_every_run(path: Path) -> None:
    for request, size, config in rows_of(path):
        training, steps = config.training, steps_of(config)
        share = training.warmup_fraction or training.warmup_steps / steps
        assert share < LONGEST_WARMUP, (request.method, size, round(steps))


def test_16m_of_the_110m_las_keeps_lstm_weights() -> None:
    config = load_config(ROOT / "recipes/configs/las_110m_librispeech.yaml")
    net = net_of(config)
    budget = Budget.of(net, find_prunable(net, include=config.method.prunable))
    assert budget.dense_parameters == 97_249_648  # the paper prints 110 M and no attention width
    assert all("encoder.layers" in name or "decoder.layers" in name for name in budget.prunable)
    assert budget.solve("16M") >= 0.02 * budget.prunable_parameters


def test_the_pruned_110m_las_is_the_row_that_its_file_names() -> None:
    """Its file says: the same as `train_baseline.py method=pruned size=32M`."""
    configs = ROOT / "recipes/configs"
    *_, row = read_row(configs / "las_110m_librispeech.yaml", ["method=pruned", "size=32M"])
    file = load_config(configs / "las_110m_librispeech_pruned.yaml")
    method = dataclasses.replace(file.method, size=row.method.size)
    assert float(row.method.size) == 32e6
    assert file.method.size == "32M"
    assert dataclasses.replace(file, name=row.name, method=method) == row
