from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import INPUT_DIM, SMALL_CONFIGS, VOCAB_SIZE, Utterances

from omnisparse.models import build_model
from omnisparse.models.factored import dense_state, factor_names, multiplied_out

MATRICES = {
    "las": {"encoder.layers.0.weight_hh_l0": 3, "attention.key.weight": 2, "output.weight": 4},
    "transducer": {"encoder.layers.1.weight_ih_l0": 3, "joiner.output.weight": 4},
}


@pytest.mark.parametrize("kind", sorted(MATRICES))
def test_a_factored_net_computes_what_its_products_say(kind: str, batch: Utterances) -> None:
    ranks = MATRICES[kind]
    config = replace(SMALL_CONFIGS[kind], ranks=ranks)
    net = build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE).eval()
    whole = build_model(SMALL_CONFIGS[kind], input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE).eval()
    whole.load_state_dict(dense_state(net))
    for name, rank in ranks.items():
        assert torch.linalg.matrix_rank(whole.state_dict()[name]) == rank
    found = net.decode(batch.features, batch.feature_lengths)
    assert found == whole.decode(batch.features, batch.feature_lengths)
    with torch.no_grad():
        losses = [model(*batch[:4]).label_loss_sum for model in (net, whole)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("kind", sorted(MATRICES))
def test_factors_learn(kind: str, batch: Utterances) -> None:
    config = replace(SMALL_CONFIGS[kind], ranks=MATRICES[kind])
    net = build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)
    net(*batch[:4]).label_loss_sum.backward()
    gradients = dict(net.named_parameters())
    for name in MATRICES[kind]:
        for factor in factor_names(name):
            assert gradients[factor].grad is not None
            assert gradients[factor].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"no.such.weight": 2}, "ranks names 'no.such.weight', which is no matrix of this net"),
        ({"output.bias": 1}, "ranks names 'output.bias'"),
        ({"output.weight": 0}, "rank of output.weight is 0; a whole number from 1 to"),
        ({"output.weight": 10_000}, "rank of output.weight is 10000; a whole number from 1 to"),
    ],
)
def test_ranks_that_cannot_be_are_refused(ranks: dict[str, int], message: str) -> None:
    config = replace(SMALL_CONFIGS["las"], ranks=ranks)
    with pytest.raises(ValueError, match=message):
        build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)


@pytest.mark.parametrize("kind", sorted(MATRICES))
def test_a_net_multiplied_out_is_a_plain_one(kind: str, batch: Utterances) -> None:
    config = replace(SMALL_CONFIGS[kind], ranks=MATRICES[kind])
    net = build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE).eval()
    net.requires_grad_(False)
    plain = multiplied_out(net)
    expected = build_model(SMALL_CONFIGS[kind], input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)
    assert {name for name, _ in plain.named_parameters()} == {
        name for name, _ in expected.named_parameters()
    }
    with torch.no_grad():
        losses = [model(*batch[:4]).label_loss_sum for model in (net, plain)]
    torch.testing.assert_close(*losses)
    assert multiplied_out(plain) is plain
