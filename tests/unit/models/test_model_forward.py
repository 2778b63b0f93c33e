"""What every model promises of one forward pass."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
import torch
from small_models import INPUT_DIM, SMALL_CONFIGS, VOCAB_SIZE, Utterances, small_model
from torch import Tensor, nn
from torch.func import functional_call

from omnisparse.config import ConfigError, config_from_dict
from omnisparse.models import LasConfig, ModelOutput, SpeechModel, TransducerConfig, build_model
from omnisparse.models.losses import ctc_loss


def test_output_has_the_agreed_shapes(model: SpeechModel, batch: Utterances) -> None:
    output = model(*batch)

    assert output.label_loss_sum.shape == ()
    assert output.label_loss_sum.dtype == torch.float32
    assert output.num_units.item() == (batch.token_lengths + 1).sum().item()
    assert output.log_posteriors.shape[:-1] == output.posterior_weights.shape
    if model.kind == "las":
        assert output.log_posteriors.shape == (5, 6, VOCAB_SIZE)
    else:
        frames = int(model.output_lengths(batch.feature_lengths).max())
        assert output.log_posteriors.shape == (5, frames, 6, 3)


def test_posteriors_are_distributions(model: SpeechModel, batch: Utterances) -> None:
    output = model(*batch)

    torch.testing.assert_close(
        output.log_posteriors.exp().sum(-1), torch.ones(output.posterior_weights.shape)
    )


def test_padding_changes_nothing(model: SpeechModel, batch: Utterances) -> None:
    together = model(*batch)
    alone = [model(*batch.row(index)) for index in range(5)]

    torch.testing.assert_close(
        together.label_loss_sum,
        sum(output.label_loss_sum for output in alone),
        rtol=1e-5,
        atol=1e-5,
    )
    for index, single in enumerate(alone):
        extent = tuple(slice(0, size) for size in single.posterior_weights.shape[1:])
        torch.testing.assert_close(
            together.log_posteriors[index][extent], single.log_posteriors[0], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            together.posterior_weights[index].sum(), single.posterior_weights.sum()
        )


def test_gradients_reach_every_parameter(model: SpeechModel, batch: Utterances) -> None:
    model.train()
    model(*batch).label_loss_sum.backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if "query" not in name and "key" not in name:
            assert parameter.grad.any(), name


def masked(model: SpeechModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: parameter * (torch.rand(parameter.shape, generator=generator) > 0.5)
        for name, parameter in model.named_parameters()
        if re.search("weight_(ih|hh|hr)|emb_to|pos_ff|attention.input|expand|depthwise", name)
        and parameter.ndim > 1
    }


def test_functional_call_equals_copied_weights(model: SpeechModel, batch: Utterances) -> None:
    dense = model(*batch).label_loss_sum
    weights = masked(model)
    called: ModelOutput = functional_call(model, weights, tuple(batch))
    called.label_loss_sum.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    assert not torch.equal(called.label_loss_sum, dense)
    torch.testing.assert_close(model(*batch).label_loss_sum, dense)  # nothing stays swapped
    model.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    copied = model(*batch)
    copied.label_loss_sum.backward()
    torch.testing.assert_close(called.label_loss_sum, copied.label_loss_sum)
    torch.testing.assert_close(called.log_posteriors, copied.log_posteriors)
    for name, parameter in model.named_parameters():
        expected = parameter.grad * (weights[name] != 0) if name in weights else parameter.grad
        torch.testing.assert_close(gradients[name], expected, msg=name)


def test_functional_call_reaches_decoding(model: SpeechModel, batch: Utterances) -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> list[list[int]]:
            return self.model.decode(batch.features, batch.feature_lengths)

    weights = masked(model)
    called = functional_call(Decoder(), {f"model.{name}": w for name, w in weights.items()}, ())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    assert called == model.decode(batch.features, batch.feature_lengths)


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 50])
def test_streaming_equals_offline(model: SpeechModel, chunk: int) -> None:
    for length in (1, 12, 19):
        features = torch.randn(2, length, INPUT_DIM)
        offline, lengths = model.encode(features, torch.tensor([length, length]))
        state = model.initial_state(2)
        pieces = []
        starts = list(range(0, length, chunk))
        for start in starts:
            piece, state = model.encode_chunk(
                features[:, start : start + chunk], state, final=start == starts[-1]
            )
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, dim=1), offline, rtol=1e-4, atol=1e-5)
        assert lengths.tolist() == [offline.size(1)] * 2


def test_a_stream_may_end_with_an_empty_chunk(model: SpeechModel) -> None:
    features = torch.randn(1, 5, INPUT_DIM)
    offline, _ = model.encode(features, torch.tensor([5]))
    first, state = model.encode_chunk(features, model.initial_state(1))
    last, _ = model.encode_chunk(features[:, :0], state, final=True)
    torch.testing.assert_close(torch.cat([first, last], dim=1), offline, rtol=1e-4, atol=1e-5)


def test_output_lengths_round_up(model: SpeechModel) -> None:
    factor = 4 if getattr(model.encoder, "num_reductions", 1) == 2 else 2
    lengths = torch.arange(0, 30)
    expected = [max(1, math.ceil(length / factor)) for length in range(30)]
    assert model.output_lengths(lengths).tolist() == expected


def parameter_count(config: LasConfig | TransducerConfig, vocab_size: int = 128) -> int:
    with torch.device("meta"):
        model = build_model(config, input_dim=240, vocab_size=vocab_size)
    return sum(parameter.numel() for parameter in model.parameters())


def paper_las(encoder_dim: int, decoder_dim: int, embedding_dim: int = 256) -> LasConfig:
    return LasConfig(
        encoder_layers=5,
        encoder_dim=encoder_dim,
        time_reduction=1,
        attention_dim=encoder_dim,
        decoder_dim=decoder_dim,
        embedding_dim=embedding_dim,
    )


@pytest.mark.parametrize(
    ("config", "millions", "vocab_size"),
    [
        (LasConfig(), 3.3, 128),
        (TransducerConfig(), 2.4, 128),
        (paper_las(1400, 1024, 512), 110.0, 4096),
        (paper_las(880, 1024), 57.0, 4096),
        (paper_las(660, 660), 32.0, 4096),
        (paper_las(400, 512), 16.0, 4096),
    ],
    ids=["las", "transducer", "pang-110M", "pang-57M", "pang-32M", "pang-16M"],
)
def test_sizes(config: LasConfig | TransducerConfig, millions: float, vocab_size: int) -> None:
    count = parameter_count(config, vocab_size)
    print(f"{count / 1e6:.2f} M parameters")
    assert count == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_layers": 0}, "encoder_layers is 0; it must be at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be at least 0 and below 1"),
        ({"encoder_projection": 256}, "encoder_projection is 256; .* from 1 to 255"),
        ({"time_reduction": 3}, "time_reduction is 3; .* power of two from 1 to 4"),
        ({"time_reduction": 8}, "time_reduction is 8; .* power of two from 1 to 4"),
        ({"attention_heads": 3}, "attention_dim is 256; .* multiple of attention_heads, 3"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LasConfig(**fields)


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 3; it must be at least 4"):
        build_model(LasConfig(), input_dim=240, vocab_size=3)


def test_the_predictor_is_left_out_at_first(batch: Utterances) -> None:
    model = small_model("transducer").train()
    settled = model(*batch).label_loss_sum

    model.set_step(0)
    warming = model(*batch).label_loss_sum
    warming.backward()
    assert not torch.equal(warming, settled)
    for name, parameter in model.predictor.named_parameters():
        assert not parameter.grad.any(), name
    assert model.encoder.layers[0].weight_ih_l0.grad.any()
    assert torch.equal(model.eval()(*batch).label_loss_sum, settled)

    model.train().set_step(250)
    assert torch.equal(model(*batch).label_loss_sum, settled)


@pytest.mark.parametrize("name", ["las", "transducer"])
def test_ctc_is_a_share_of_the_label_loss(name: str, batch: Utterances) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_CONFIGS[name], ctc_weight=0.25)
    model = build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE).eval()
    loss = model(*batch).label_loss_sum

    encoded, lengths = model.encode(batch.features, batch.feature_lengths)
    ctc = ctc_loss(model.ctc_output(encoded), batch.tokens, lengths, batch.token_lengths)
    model.ctc_output, model.ctc_weight = None, 0.0
    rest = model(*batch).label_loss_sum
    assert ctc > 0
    assert torch.allclose(loss, 0.75 * rest + 0.25 * ctc)


def test_a_transducer_with_ctc_trains_by_it_alone_at_first(batch: Utterances) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL_CONFIGS["transducer"], ctc_weight=0.25)
    model = build_model(config, input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE).train()
    settled = model(*batch)

    model.set_step(0)
    warming = model(*batch)
    encoded, lengths = model.encode(batch.features, batch.feature_lengths)
    ctc = ctc_loss(model.ctc_output(encoded), batch.tokens, lengths, batch.token_lengths)
    assert torch.equal(warming.label_loss_sum, ctc)
    assert torch.equal(warming.num_units, settled.num_units)
    assert not warming.posterior_weights.any()
    assert torch.allclose(warming.log_posteriors.exp().sum(-1), torch.ones(()))
    warming.label_loss_sum.backward()
    for part, name, parameter in (
        (name.split(".")[0], name, parameter) for name, parameter in model.named_parameters()
    ):
        assert parameter.grad is not None, name  # distributed training waits for each
        assert parameter.grad.any() == (part in ("encoder", "ctc_output")), name


@pytest.mark.parametrize("name", ["las-paper", "las-fed"])
def test_the_last_context_reaches_the_next_step_of_the_first_layer(name: str) -> None:
    """By hand, with loops over tokens, heads and frames: eqs. 6 to 8 of Chan et al. 2016."""
    model = small_model(name)
    decoder, attention = model.decoder, model.attention
    torch.manual_seed(3)
    encoded, lengths = torch.randn(2, 5, 12), torch.tensor([5, 3])
    tokens = torch.tensor([[1, 4, 6], [1, 5, 2]])
    with torch.no_grad():
        found = decoder(tokens, attention, attention.memory(encoded, lengths))
        for row, length in enumerate(lengths.tolist()):
            states: list[Any] = [None] * len(decoder.layers)
            context = torch.zeros(8)
            for step, token in enumerate(tokens[row].tolist()):
                values = torch.cat([decoder.embedding.weight[token], context])
                for index, layer in enumerate(decoder.layers):
                    outputs, states[index] = layer(values[None], states[index])
                    values = outputs[0]
                query = attention.query(values)
                parts = []
                for head in (slice(0, 4), slice(4, 8)):
                    scores = torch.stack([
                        _score(query[head], attention.key(frame)[head], attention, head)
                        for frame in encoded[row, :length]
                    ])  # fmt: skip
                    shares = scores.softmax(0)
                    frames = [attention.value(frame)[head] for frame in encoded[row, :length]]
                    parts.append((shares[:, None] * torch.stack(frames)).sum(0))
                context = torch.cat(parts)
                expected = torch.cat([values, context])
                torch.testing.assert_close(found[row, step], expected, rtol=1e-4, atol=1e-5)


def _score(query: Tensor, key: Tensor, attention: Any, head: slice) -> Tensor:
    if attention.score is None:
        return (query @ key) / len(query) ** 0.5
    return attention.score[head] @ torch.tanh(query + key)


def test_the_structure_of_before_is_what_no_key_means() -> None:
    config = LasConfig()
    assert (config.context_input, config.attention) == ("upper_layers", "dot")
    model = small_model("las")
    assert model.decoder.layers[0].input_size == 5
    assert model.decoder.layers[1].input_size == 10 + 8
    assert "attention.score" not in dict(model.named_parameters())
    paper = small_model("las-paper")
    assert [layer.input_size for layer in paper.decoder.layers] == [5 + 8, 10]
    with pytest.raises(ConfigError, match="context_input"):
        config_from_dict({"model": {"kind": "las", "context_input": "both"}})
