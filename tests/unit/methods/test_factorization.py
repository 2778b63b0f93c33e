"""Dense nets into factored ones: the wiring of both model kinds, and who is a relative."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from small_batches import LAS, TRANSDUCER, make_batch, make_model

from omnisparse.methods.base import forward_batch
from omnisparse.methods.factorization import factorize, projected_layers
from omnisparse.models import LasConfig, SpeechModel, TransducerConfig

LAS_PARTS = [
    dataclasses.replace(LAS, encoder_projection=8, layer_norm=False),
    dataclasses.replace(LAS, decoder_projection=8, layer_norm=False, ctc_weight=0.3),
    dataclasses.replace(LAS, encoder_projection=5, decoder_projection=9, decoder_layers=3),
    dataclasses.replace(LAS, encoder_projection=6, decoder_projection=7, decoder_layers=1),
    dataclasses.replace(TRANSDUCER, encoder_projection=8, layer_norm=False, ctc_weight=0.3),
    dataclasses.replace(TRANSDUCER, encoder_projection=8, encoder_layers=4, time_reduction=4),
    dataclasses.replace(
        LAS,
        decoder_projection=8,
        layer_norm=False,
        attention="additive",
        context_input="first_layer",
    ),
]
CASES = pytest.mark.parametrize("config", LAS_PARTS, ids=range(len(LAS_PARTS)))


def dense_relative(config: LasConfig | TransducerConfig) -> LasConfig | TransducerConfig:
    if isinstance(config, LasConfig):
        return dataclasses.replace(config, encoder_projection=None, decoder_projection=None)
    return dataclasses.replace(config, encoder_projection=None)


@CASES
def test_the_factored_state_fits_its_model(config: LasConfig | TransducerConfig) -> None:
    dense, factored = make_model(dense_relative(config)), make_model(config)
    factored.load_state_dict(factorize(dense, factored))
    output = forward_batch(factored, make_batch())
    assert math.isfinite(float(output.label_loss_sum.detach()))


def confine(model: SpeechModel, factored: SpeechModel) -> None:
    """Give every layer's readers and recurrent matrix a common row space of its rank."""
    with torch.no_grad():
        for layer in projected_layers(factored):
            recurrent = model.get_parameter(f"{layer.name}.weight_hh_l0")
            basis = torch.linalg.qr(torch.randn(recurrent.shape[1], layer.rank)).Q
            recurrent.copy_(recurrent @ basis @ basis.T)
            for reader in layer.readers:
                weight = model.get_parameter(reader.weight)
                cells = recurrent.shape[1]
                for copy in range(reader.copies):
                    part = weight[:, copy * cells : (copy + 1) * cells]
                    part.copy_(part @ basis @ basis.T)


@pytest.mark.parametrize(
    "config", LAS_PARTS[:2] + LAS_PARTS[4:5] + LAS_PARTS[-1:], ids=["e", "d", "t", "paper"]
)
def test_a_net_of_low_rank_is_factorised_without_loss(
    config: LasConfig | TransducerConfig,
) -> None:
    """Only if every reader is known and read rightly are the outputs those of the dense net."""
    dense, factored = make_model(dense_relative(config)), make_model(config)
    confine(dense, factored)
    factored.load_state_dict(factorize(dense, factored))
    batch = make_batch()
    one, other = forward_batch(dense, batch), forward_batch(factored, batch)
    torch.testing.assert_close(other.log_posteriors, one.log_posteriors, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.label_loss_sum, one.label_loss_sum, rtol=1e-4, atol=1e-4)


def test_under_a_normalisation_the_start_is_close_and_not_random() -> None:
    config = dataclasses.replace(LAS, encoder_dim=32, encoder_projection=24)
    dense, batch = make_model(dense_relative(config)), make_batch()
    optimizer = torch.optim.Adam(dense.parameters(), lr=1e-2)
    for _ in range(30):
        output = forward_batch(dense, batch)
        optimizer.zero_grad()
        (output.label_loss_sum / output.num_units).backward()
        optimizer.step()
    fresh, factored = make_model(config), make_model(config)
    factored.load_state_dict(factorize(dense, factored))
    losses = [
        float(forward_batch(net, batch).label_loss_sum.detach()) for net in (dense, factored, fresh)
    ]
    assert losses[0] < losses[2]
    assert losses[1] - losses[0] < 0.3 * (losses[2] - losses[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_dim": 20}, r"encoder\.layers\.0 has 20 cells, and 16 are needed"),
        ({"encoder_layers": 1, "time_reduction": 1}, r"there is no layer encoder\.layers\.1"),
        ({"encoder_layers": 3}, r"becomes .* when factorised, and .* is needed"),
        ({"decoder_dim": 12}, r"becomes .* when factorised, and .* is needed"),
        ({"layer_norm": False}, r"there is no parameter encoder\.norms\.0\.weight"),
    ],
)
def test_strangers_are_refused_by_name(change: dict[str, object], message: str) -> None:
    factored = make_model(dataclasses.replace(LAS, encoder_projection=8))
    stranger = make_model(dataclasses.replace(LAS, **change))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        factorize(stranger, factored)
