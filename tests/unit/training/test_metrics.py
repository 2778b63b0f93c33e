"""What a training writes into ``metrics.jsonl``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from omnisparse.config import RunConfig
from omnisparse.methods.gradual_pruning import GradualPruningConfig
from omnisparse.pipeline.train import train


def metrics_of(config: RunConfig, out: Path) -> list[dict[str, float]]:
    lines = (train(config, out=out).run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_subnet_without_utterances_has_no_loss_and_rankings_say_what_changed(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config()
    method = dataclasses.replace(config.method, warmup_fraction=0.0)
    assert method.member_period > config.data.max_batch_size  # not in every batch for every subnet
    found = metrics_of(dataclasses.replace(config, method=method), tmp_path / "run")
    for name in ("loss/smallest", "loss/random_0"):
        values = [line[name] for line in found if name in line]
        assert 0 < len(values) < len(found)
        assert min(values) > 0.5
    assert "mask_flip_rate" not in found[2]  # one ranking, after 0 steps
    assert 0 < found[3]["mask_flip_rate"] < 1


def test_a_skipped_step_is_counted_and_named_and_leaves_no_number_that_is_none(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(learning_rate=1e30, schedule="constant", warmup_steps=0, log_every=5)
    told: list[str] = []
    run = train(config, out=tmp_path / "run", on_stage=told.append).run

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    lines = (run / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line, parse_constant=refuse) for line in lines]
    skipped = [line for line in told if "is skipped" in line]
    assert len(skipped) == found[-1]["skipped_steps"] > 0
    assert skipped[0].startswith("step ")
    assert "(utterances " in skipped[0]


def test_pruning_says_how_far_it_is(tiny_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    method = GradualPruningConfig(size="60%", begin=0.2, end=0.8, frequency=1)
    config = dataclasses.replace(tiny_config(method="dense"), method=method)
    sparsity = [line["sparsity"] for line in metrics_of(config, tmp_path / "run")]
    assert sparsity == sorted(sparsity)
    assert sparsity[0] == 0
    assert 0.4 < sparsity[-1] < 0.8  # of the prunable weights, which are not all


def test_progress_shows_nothing_before_the_first_line_of_the_log(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    seen: list[set[str]] = []
    result = train(
        tiny_config(log_every=4, max_steps=6),
        out=tmp_path / "run",
        on_progress=lambda done, total, metrics: seen.append(set(metrics)),
    )
    assert seen[:3] == [set()] * 3  # and not the cost of a run that has no step yet
    assert all("loss/dense" in names for names in seen[3:])
    again = train(tiny_config(log_every=4, max_steps=6), out=tmp_path / "run")
    assert again.metrics["utterance_passes"] == result.metrics["utterance_passes"] > 0
