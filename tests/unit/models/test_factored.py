from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_models import INPUT_DIM, SMALL_CONFIGS, VOCAB_SIZE, Utterances

from omnisparse.models import build_model
from omnisparse.models.factored import (
    dense_state,
    factor_names,
    factored_units,
    multiplied_out,
    rank_unit,
)

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


SCHEMES: dict[str, dict[str, dict[str, int]]] = {
    "per_gate": {
        "las": {"encoder.layers.0.weight_ih_l0": 2, "decoder.layers.1.weight_hh_l0": 3},
        "transducer": {"encoder.layers.1.weight_hh_l0": 2, "joiner.output.weight": 4},
    },
    "joint": {
        "las": {"encoder.layers.0.weight_hh_l0": 3, "decoder.layers.0.weight_hh_l0": 2},
        "transducer": {"encoder.layers.0.weight_hh_l0": 3, "encoder.layers.1.weight_hh_l0": 2},
    },
}


def make(kind: str, scheme: Any, ranks: dict[str, int] | None = None) -> Any:
    chosen = SCHEMES[scheme][kind] if ranks is None else ranks
    config = replace(SMALL_CONFIGS[kind], ranks=chosen, rank_scheme=scheme)
    return build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)


@pytest.mark.parametrize("kind", sorted(MATRICES))
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_schemes_compute_what_their_products_say(scheme: str, kind: str, batch: Utterances) -> None:
    """A copy, too, and a net that is told other factors in a functional call."""
    net = make(kind, scheme).eval()
    whole = build_model(SMALL_CONFIGS[kind], input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE).eval()
    shapes = {name: value.shape for name, value in whole.state_dict().items()}
    state = dense_state(net)
    assert {name: value.shape for name, value in state.items()} == shapes
    whole.load_state_dict(state)
    other = {name: value * 0.5 for name, value in net.named_parameters()}
    with torch.no_grad():
        expected = whole(*batch[:4]).label_loss_sum
        for one in (net, copy.deepcopy(net), multiplied_out(net)):
            torch.testing.assert_close(one(*batch[:4]).label_loss_sum, expected)
        told = torch.func.functional_call(net, other, batch[:4]).label_loss_sum
        net.load_state_dict({**net.state_dict(), **other})
        torch.testing.assert_close(net(*batch[:4]).label_loss_sum, told)
    net.train()(*batch[:4]).label_loss_sum.backward()
    assert all(value.grad is not None for n, value in net.named_parameters() if "original" in n)


@pytest.mark.parametrize("kind", sorted(MATRICES))
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_parameters_of_schemes_are_counted_once(scheme: str, kind: str) -> None:
    net = make(kind, scheme)
    whole = build_model(SMALL_CONFIGS[kind], input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)
    shapes = {name: tuple(value.shape) for name, value in whole.named_parameters()}
    expected = sum(value.numel() for value in whole.parameters())
    for name, rank in SCHEMES[scheme][kind].items():
        unit = rank_unit(name, shapes, scheme)  # type: ignore[arg-type]
        rows, columns = shapes[name]
        expected -= rows * columns
        if unit.reader is not None:  # others of its columns stay
            read = shapes[unit.reader][0] * unit.copies
            expected += rank * read - read * columns
        expected += rank * (rows + unit.gates * columns)
    assert sum(value.numel() for value in net.parameters()) == expected
    assert factored_units(net.state_dict()).keys() == SCHEMES[scheme][kind].keys()


@pytest.mark.parametrize(
    ("scheme", "ranks", "message"),
    [
        ("joint", {f"encoder.layers.{i}.weight_{k}_l0": 1 for i, k in ((0, "hh"), (1, "ih"))},
         "share a projection with rank_scheme joint; legal: the first alone"),
        ("per_gate", {"encoder.layers.0.weight_hh_l0": 10_000}, "a whole number from 1 to"),
        ("per_gate", {}, "rank_scheme is per_gate, but ranks names no matrix"),
        ("other", {"output.weight": 1}, "must be one of stacked, per_gate, joint"),
    ],
)  # fmt: skip
def test_schemes_that_cannot_be_are_refused(
    scheme: str, ranks: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make("las", scheme, ranks)


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
