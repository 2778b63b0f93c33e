"""The transformer encoders as supernets: what is pruned, and masked equals extracted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from omnisparse.models import SpeechModel, TransducerConfig, build_model
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.supernet import Supernet

CONFIGS: dict[str, dict[str, Any]] = {
    "emformer": {"encoder": "emformer", "right_context": 2},
    "conformer": {"encoder": "conformer", "encoder_kernel": 4},
}
DEFAULT = {
    "emformer": ["pos_ff.1", "pos_ff.4"],
    "conformer": [
        "first_feed_forward.expand",
        "first_feed_forward.contract",
        "convolution.expand",
        "convolution.contract",
        "second_feed_forward.expand",
        "second_feed_forward.contract",
    ],
}
ATTENTION = {
    "emformer": [
        "attention.emb_to_key_value",
        "attention.emb_to_query",
        "attention.out_proj",
    ],
    "conformer": ["attention.input", "attention.output"],
}
LAYERS = {"emformer": "encoder.emformer.emformer_layers", "conformer": "encoder.layers"}


def _net(kind: str) -> SpeechModel:
    torch.manual_seed(0)
    config = TransducerConfig(
        **CONFIGS[kind], encoder_layers=2, encoder_dim=16, encoder_heads=2, encoder_feed_forward=24,
        segment=3, left_context=5, predictor_dim=12, embedding_dim=6, joiner_dim=10, dropout=0.0,
    )  # fmt: skip
    return build_model(config, input_dim=7, vocab_size=9)


def _batch() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 30, 7, generator=generator)
    return (
        features,
        torch.tensor([30, 17, 5]),
        torch.tensor([[3, 4], [5, 0], [6, 7]]),
        (torch.tensor([2, 1, 2])),
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_right_matrices_are_pruned(kind: str) -> None:
    net = _net(kind)
    expected = [f"{LAYERS[kind]}.{i}.{name}.weight" for i in (0, 1) for name in DEFAULT[kind]]
    rest = ["encoder.input_projection.weight", "predictor.layers.0.weight_ih_l0"]
    rest += ["predictor.layers.0.weight_hh_l0", "joiner.encoder_projection.weight"]
    rest += ["joiner.predictor_projection.weight"]
    attention = [f"{LAYERS[kind]}.{i}.{name}.weight" for i in (0, 1) for name in ATTENTION[kind]]
    assert sorted(find_prunable(net)) == sorted(expected + rest + attention)
    inner = "pos_ff" if kind == "emformer" else "feed_forward|convolution.(expand|contract)"
    named = find_prunable(net, include=["attention", inner, "projection", "weight_[ih]h"])
    assert sorted(named) == sorted(expected + rest + attention)
    narrower = find_prunable(net, include=[inner, "projection", "weight_[ih]h"], exclude=["atten"])
    assert sorted(narrower) == sorted(expected + rest)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("include", [(), ("attention", "projection")], ids=["default", "attention"])
@pytest.mark.parametrize("training", [True, False])
def test_masked_squashed_extracted_and_reloaded_agree(
    kind: str, include: tuple[str, ...], training: bool
) -> None:
    net = _net(kind).train(training)
    prunable = find_prunable(net, include=include)
    supernet = Supernet(net, prunable=prunable)
    spec = supernet.spec_for(sparsity=0.6)
    batch = _batch()
    with torch.set_grad_enabled(training):
        dense = supernet(*batch).log_posteriors
        with supernet.active(spec):
            masked = supernet(*batch)
        reloaded = _net(kind).train(training)
        reloaded.load_state_dict(supernet.extract(spec))
        # Not bit by bit: without gradients the predictor's LSTM runs another kernel on copies.
        torch.testing.assert_close(
            masked.log_posteriors, reloaded(*batch).log_posteriors, rtol=1e-5, atol=1e-5
        )
        assert not torch.allclose(masked.log_posteriors, dense, atol=1e-3)
    with supernet.squashed(spec) as model, torch.no_grad():
        squashed = model(*batch).log_posteriors
    torch.testing.assert_close(squashed, masked.log_posteriors, rtol=1e-5, atol=1e-5)
    if not training:
        return
    masked.label_loss_sum.backward()
    state = supernet.extract(spec)
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        if name in prunable:
            assert weight.grad.any(), name
            assert not weight.grad[state[name] == 0].any(), name


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("sparsity", [0.0, 0.6])
def test_bf16_trains_as_float32_does(kind: str, sparsity: float) -> None:
    supernet = Supernet(_net(kind), prunable=find_prunable(_net(kind)))
    losses = []
    for enabled in (False, True):
        supernet.model.zero_grad()
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=enabled),
            supernet.active(supernet.spec_for(sparsity=sparsity)),
        ):
            output = supernet(*_batch())
        output.label_loss_sum.backward()
        losses.append(float(output.label_loss_sum.detach()))
        gradients = {name: p.grad for name, p in supernet.model.named_parameters()}
        for name, gradient in gradients.items():
            assert gradient is not None, name
            assert torch.isfinite(gradient).all(), name
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_an_extracted_subnet_streams_what_it_says_offline(kind: str) -> None:
    net = _net(kind).eval()
    supernet = Supernet(net, prunable=find_prunable(net))
    reloaded = _net(kind).eval()
    reloaded.load_state_dict(supernet.extract(supernet.spec_for(sparsity=0.5)))
    features = _batch()[0][:1]
    offline, _ = reloaded.encode(features, torch.tensor([30]))
    state, pieces = reloaded.initial_state(1), []
    for start in range(0, 30, 4):
        chunk = features[:, start : start + 4]
        piece, state = reloaded.encode_chunk(chunk, state, final=start + 4 >= 30)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), offline, rtol=1e-4, atol=1e-5)
