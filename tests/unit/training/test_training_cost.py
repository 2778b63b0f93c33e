"""The bill of a training: counted, kept, continued, and nothing where nobody counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omnisparse.training.cost import TrainingCost

PASS = 2 * 8 * 4 * 3


def trained(cost: TrainingCost, *, is_copy: bool = False) -> None:
    layer = nn.Linear(4, 3)
    with cost.of_step():
        with cost.of_passes(is_copy=is_copy):
            layer(torch.randn(8, 4)).sum().backward()
        cost.add_passes(8, 0.0 if is_copy else 20.0)


def test_a_resumed_run_has_the_bill_of_an_uninterrupted_one() -> None:
    whole, first, second = TrainingCost(), TrainingCost(), TrainingCost()
    for _ in range(5):
        trained(whole)
    for _ in range(2):
        trained(first)
    document = first.own()
    assert document["flops"] == 2 * 2 * PASS  # forward, and the gradient of the weights
    second.restore(document, 1)
    for _ in range(3):
        trained(second)
    for name in ("flops", "utterance_passes", "audio_seconds", "skipped_steps"):
        assert second.own()[name] == whole.own()[name]
    assert second.own()["device_seconds"] > document["device_seconds"] > 0


def test_processes_share_the_bill_of_their_checkpoint() -> None:
    cost = TrainingCost()
    trained(cost)
    halves = [TrainingCost(), TrainingCost()]
    for half in halves:
        half.restore(cost.own(), 2)
    trained(halves[0])
    trained(halves[1], is_copy=True)  # it fills up: counted where it is at home
    lists = [list(half.own().values()) for half in halves]
    total = halves[0].summed(lambda own: [a + b for a, b in zip(*lists, strict=False)][: len(own)])
    assert total["flops"] == pytest.approx(2 * 2 * PASS)
    assert total["audio_seconds"] == 40.0


def test_a_run_that_began_without_counting_shows_nothing() -> None:
    cost = TrainingCost()
    cost.restore(
        {"utterance_passes": 9.0, "device_seconds": 1.0, "cpu_seconds": 1.0, "skipped_steps": 1.0},
        1,
    )
    trained(cost)
    assert not {"flops", "audio_seconds"} & set(cost.own())
    assert cost.own()["utterance_passes"] == 17.0
    assert cost.own()["skipped_steps"] == 1.0
