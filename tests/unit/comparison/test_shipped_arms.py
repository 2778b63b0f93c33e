"""Every arm of the tuning sweep and of the controls is a legal run, and no two are the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnisparse.cli.baseline import Request, configure, parse_request
from omnisparse.comparison import baselines
from omnisparse.comparison.rows import ROWS
from omnisparse.config import RunConfig, load_config
from omnisparse.methods import GradualPruningConfig, SandwichConfig, distillation_of
from omnisparse.methods.widths import count_parameters, with_projections
from omnisparse.models import LasConfig, TransducerConfig
from omnisparse.sweeps.file import load_sweep

ROOT = Path(__file__).parents[3]
DIMENSIONS = {"input_dim": 240, "vocab_size": 128}


@pytest.fixture(autouse=True)
def _large_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines.runs, "inspect", lambda path: {"nonzero": 10**9})


def requests_of(name: str) -> list[tuple[RunConfig, Request]]:
    sweep = load_sweep(ROOT / "recipes/sweeps" / name)
    found = []
    for point in sweep.points():
        line = sweep.command_line(point, {})
        place = line.index("--config") + 1
        request = parse_request(line[place + 1 :])
        found.append((load_config(ROOT / line[place], request.common), request))
    return found


def test_the_tuning_has_as_many_trials_for_the_rivals_as_the_supernet_had() -> None:
    points = requests_of("tune_rows.yaml")
    rows = [request.method for _, request in points]
    assert rows.count("pruned") >= 20
    assert sum(rows.count(row) for row in ("factored", "distilled")) >= 20
    arms = {
        (request, base.training.learning_rate, repr(base.model), base.data.max_batch_size)
        for base, request in points
    }
    assert len(arms) == len(points)
    for part in ("begin", "end", "scope", "regrowth"):
        assert any(f"method.{part}=" in choice for _, request in points for choice in request.own)
    for kind in ("pruned", "factored", "distilled"):
        rates = {base.training.learning_rate for base, request in points if request.method == kind}
        assert len(rates) >= 4, kind


def test_the_arms_that_need_no_solver_are_legal() -> None:
    seen = set()
    for base, request in requests_of("tune_rows.yaml"):
        if not request.method.startswith("pruned"):
            continue
        config = configure(base, request)
        assert isinstance(config.method, GradualPruningConfig)
        assert config.training.epochs == base.training.epochs
        assert config.method.begin <= config.method.end
        seen.add((repr(config.method), config.training.learning_rate))
    assert len(seen) >= 20


def test_the_controls_are_rows_of_one_budget_each() -> None:
    points = requests_of("controls.yaml")
    rows = dict.fromkeys(request.method for _, request in points)
    assert set(rows) <= set(ROWS)
    assert set(rows) >= {"pruned_once", "cut", "pruned_double", "supernet_labels"}
    names = set()
    for base, request in points:
        if request.method == "cut":
            continue  # trains its dense net first
        config = configure(base, request)
        assert isinstance(config.method, GradualPruningConfig | SandwichConfig)
        names.add(config.name)
    assert len(names) == 2 * 3 + 5  # one run for all sizes, where a row has every size


@pytest.mark.parametrize("share", [2.0, 6.0])
def test_factored_nets_may_have_other_shapes_at_the_same_size(share: float) -> None:
    base, request = next(
        (base, request)
        for base, request in requests_of("tune_rows.yaml")
        if request.method == "factored" and request.projection_share == share
    )
    config = configure(base, request)
    assert isinstance(config.model, LasConfig)
    assert config.model.encoder_projection is not None
    assert config.model.encoder_dim / config.model.encoder_projection == pytest.approx(
        share, rel=0.06
    )
    whole = count_parameters(base.model, **DIMENSIONS)
    assert 0.98 * whole / 4 < count_parameters(config.model, **DIMENSIONS) <= whole / 4


def test_shares_of_a_factored_family() -> None:
    las = with_projections(LasConfig(), decoder_share=0.5, projection_share=8)
    assert isinstance(las, LasConfig)
    assert (las.encoder_dim, las.encoder_projection, las.decoder_dim) == (256, 32, 128)
    net = with_projections(TransducerConfig(), decoder_share=0.75)
    assert isinstance(net, TransducerConfig)
    assert (net.encoder_projection, net.predictor_dim) == (64, 192)
    with pytest.raises(ValueError, match="projection_share is 1, decoder_share 1; legal: above 1"):
        with_projections(LasConfig(), projection_share=1)


def test_a_distilled_arm_has_its_teacher_and_labels_first() -> None:
    request = parse_request(
        ["size=25%", "method={kind: pruned, teacher: runs/t, pretrain: 0.4, training.epochs: 3}"]
    )
    assert request.common == ("training.epochs=3",)
    config = configure(RunConfig(), request)
    found = distillation_of(config.method)
    assert found is not None
    assert (found.teacher, found.label_fraction) == ("runs/t", 0.4)
