"""Sizes and nets of the stages, without training."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnisparse.methods import ProgressiveConfig
from omnisparse.methods.handover import hand_over
from omnisparse.methods.progressive import StageModel, plan_models, stage_sizes
from omnisparse.methods.widths import count_parameters
from omnisparse.models import LasConfig, ModelConfig, TransducerConfig, build_model

DIMS = {"input_dim": 48, "vocab_size": 50}
CONFORMER = TransducerConfig(
    encoder="conformer", encoder_layers=4, encoder_dim=48, encoder_heads=4,
    encoder_feed_forward=192, segment=4, left_context=8, predictor_dim=32, joiner_dim=32,
    embedding_dim=16,
)  # fmt: skip
LAS = LasConfig(
    encoder_layers=5, encoder_dim=64, decoder_layers=4, decoder_dim=64, attention_dim=16,
    embedding_dim=16,
)  # fmt: skip


def planned(model: ModelConfig, **options: Any) -> list[StageModel]:
    return plan_models(ProgressiveConfig(**options), model, **DIMS)


@given(dense=st.integers(1000, 10**8), share=st.floats(0.01, 0.99), stages=st.integers(1, 6))
def test_sizes_fall_in_equal_ratios_to_the_target(dense: int, share: float, stages: int) -> None:
    target = max(1, int(share * dense))
    sizes = stage_sizes(dense, target, stages)
    assert len(sizes) == stages
    assert sizes[-1] == target
    for before, after in zip([dense, *sizes], sizes, strict=False):
        assert after / before == pytest.approx((target / dense) ** (1 / stages), abs=2 / after)


def test_ranks_use_what_only_training_needs_no_room_for() -> None:
    """A CTC layer is in no model that is made, so no size counts it."""
    plain, with_ctc = (planned(replace(LAS, ctc_weight=w), by="rank") for w in (0.0, 0.3))
    assert [stage.model.ranks for stage in plain] == [stage.model.ranks for stage in with_ctc]


@pytest.mark.parametrize("model", [CONFORMER, LAS], ids=["conformer", "las"])
@pytest.mark.parametrize("by", ["layers", "width", "rank", "sparsity"])
def test_every_way_to_fall_reaches_the_sizes(by: str, model: ModelConfig) -> None:
    dense = count_parameters(model, **DIMS)
    share = 0.6 if by == "layers" and model is LAS else 0.4
    stages = planned(model, size=f"{share:.0%}", by=by)
    wanted = stage_sizes(dense, round(share * dense), 3)
    sizes = [stage.size for stage in stages]
    assert sizes == sorted(sizes, reverse=True)
    for size, target in zip(sizes, wanted, strict=True):
        # An LSTM has only whole layers to drop; the width of a Conformer is a multiple of 8.
        nearest = 0.75 if by in ("layers", "width") else 0.95
        # Between, feed-forward parts are not narrower than they will be with a layer less.
        above = 1.06 if by == "layers" and size != sizes[-1] else 1.0
        assert nearest * target <= size <= above * target
    for stage in stages:
        counted = count_parameters(stage.model, **DIMS)
        assert counted == (dense if by == "sparsity" else stage.size)


def test_layers_fall_before_feed_forward_parts_do() -> None:
    models: list[Any] = [stage.model for stage in planned(CONFORMER, size="40%")]
    layers = [model.encoder_layers for model in models]
    assert layers == sorted(layers, reverse=True)
    assert layers[-1] <= 2
    assert all(model.encoder_dim == 48 for model in models)
    assert all(96 <= model.encoder_feed_forward <= 192 for model in models)


def test_no_feed_forward_part_grows_from_a_stage_to_the_next() -> None:
    """One layer less leaves room for wider parts, which the stage before cannot hand over."""
    model = replace(CONFORMER, encoder_dim=96, encoder_feed_forward=384)
    stages = planned(model, size="40%")
    widths = [getattr(stage.model, "encoder_feed_forward", 0) for stage in stages]
    assert widths == sorted(widths, reverse=True)
    assert stages[-1] == planned(model, size="40%", plan="direct")[0]  # as in one stage
    nets = [build_model(stage.model, **DIMS) for stage in stages]
    for before, after in pairwise(nets):
        after.load_state_dict(hand_over(before, after))


def test_rivals_have_the_last_net_only() -> None:
    last = planned(CONFORMER, size="40%")[-1]
    assert planned(CONFORMER, size="40%", plan="direct") == [last]
    assert planned(CONFORMER, size="40%", plan="scratch") == [last]
    assert len(planned(CONFORMER, size="40%", plan="fixed")) == 3


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (CONFORMER, {"size": "100%"}, "no compression; legal: above 0, below the dense net's"),
        (CONFORMER, {"size": "1%"}, "cannot be reached with fewer layers; legal: "),
        (LAS, {"size": "5%"}, "cannot be reached with fewer layers; legal: "),
        (LAS, {"size": "0.1%", "by": "width"}, "its narrowest has"),
        (LAS, {"size": "0.1%", "by": "rank"}, "cannot be reached by low rank; legal: "),
        (LAS, {"size": "0.1%", "by": "sparsity"}, "is out of range for this model; legal: "),
        (replace(LAS, ranks={"output.weight": 3}), {"by": "rank"}, "model.ranks is given"),
    ],
)
def test_a_size_out_of_reach_names_the_range(
    model: ModelConfig, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planned(model, **options)
