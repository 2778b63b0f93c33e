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
    if by == "layers" and model is LAS:
        del wanted[1]  # between four layers and three is no net
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


def test_feed_forward_parts_fall_before_layers_do() -> None:
    model = replace(CONFORMER, encoder_dim=96, encoder_feed_forward=384)
    nets: list[Any] = [stage.model for stage in planned(model, size="40%")]
    assert [net.encoder_layers for net in nets] == [4, 4, 3]
    assert all(net.encoder_dim == 96 for net in nets)
    assert nets[-1].encoder_feed_forward >= 0.125 * 384
    nets = [stage.model for stage in planned(model, size="40%", feed_forward_share=1.0)]
    assert [net.encoder_layers for net in nets] == [3, 3, 2]


@pytest.mark.parametrize("share", [1.0, 0.5, 0.125])
@pytest.mark.parametrize("model", [CONFORMER, LAS], ids=["conformer", "las"])
def test_every_stage_is_a_smaller_net_that_the_one_before_can_hand_over(
    model: ModelConfig, share: float
) -> None:
    """One layer less leaves room for wider parts, which the stage before cannot hand over."""
    if model is CONFORMER:
        model = replace(model, encoder_dim=96, encoder_feed_forward=384)
    for percent in range(50 if model is LAS else 20, 75, 5):
        stages = planned(model, size=f"{percent}%", feed_forward_share=share, stages=4)
        sizes = [count_parameters(model, **DIMS), *(stage.size for stage in stages)]
        assert all(after < before for before, after in pairwise(sizes))  # none equal, too
        widths = [getattr(stage.model, "encoder_feed_forward", 0) for stage in stages]
        assert widths == sorted(widths, reverse=True)
        one = planned(model, size=f"{percent}%", feed_forward_share=share, plan="direct")
        assert stages[-1] == one[0]
    nets = [build_model(stage.model, **DIMS) for stage in planned(model, size="60%")]
    for before, after in pairwise(nets):
        after.load_state_dict(hand_over(before, after))


def test_feed_forward_parts_of_narrower_nets_do_not_grow_either() -> None:
    """Heads make an encoder's width fall in leaps, which leave room for wider parts."""
    model = replace(CONFORMER, encoder_dim=96, encoder_feed_forward=384)
    stages = planned(model, size="80%", by="width")
    nets: list[Any] = [model, *(stage.model for stage in stages)]
    widths = [net.encoder_feed_forward for net in nets]  # were 384, 391, 363, 357
    assert widths == sorted(widths, reverse=True)
    assert stages[-1] == planned(model, size="80%", by="width", plan="direct")[0]
    before, after = (build_model(net, **DIMS) for net in nets[:2])
    after.load_state_dict(hand_over(before, after))


def test_the_range_that_a_refusal_names_can_be_reached() -> None:
    with pytest.raises(ValueError, match="cannot be reached with fewer layers") as caught:
        planned(CONFORMER, size="1%")
    smallest = int(str(caught.value).split("legal: ")[1].split(" ")[0].replace(",", ""))
    assert planned(CONFORMER, size=smallest)[-1].size == smallest


def test_nets_behind_the_dense_one_may_have_their_own_dropout() -> None:
    for plan in ("progressive", "direct", "scratch"):
        stages = planned(CONFORMER, plan=plan, dropout=0.0)
        assert {stage.model.dropout for stage in stages} == {0.0}
    assert planned(CONFORMER)[-1].model.dropout == CONFORMER.dropout > 0


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
