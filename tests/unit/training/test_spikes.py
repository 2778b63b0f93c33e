"""Which loss says that a training has a spike."""

from __future__ import annotations

from omnisparse.training.spikes import SpikeWatch


def test_a_net_is_compared_with_itself_whichever_net_a_line_begins_with() -> None:
    spikes = SpikeWatch(1.5, 3)
    for _ in range(3):
        assert not spikes.is_spike({"loss/smallest": 3.0})  # it trains alone
    for _ in range(3):
        assert not spikes.is_spike({"loss/random_0": 2.0, "loss/dense": 1.0})
    assert not spikes.is_spike({"loss/smallest": 3.1, "loss/random_0": 9.0})
    resumed = SpikeWatch(1.5, 3)
    resumed.load_state_dict(spikes.state_dict())
    assert resumed.is_spike({"loss/random_0": 2.0, "loss/dense": 1.6})
    assert resumed.is_spike({"loss/smallest": 4.7})


def test_a_checkpoint_with_one_list_of_means_is_that_of_the_dense_net() -> None:
    spikes = SpikeWatch(1.5, 3)
    spikes.load_state_dict({"rollbacks": 1, "recent": [1.0, 1.0, 1.0]})
    assert spikes.rollbacks == 1
    assert spikes.is_spike({"loss/smallest": 0.1, "loss/dense": 2.0})
