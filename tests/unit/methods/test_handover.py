"""What a smaller net takes over, by nets that need not change: what is dropped does nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_batches import make_batch
from torch import nn

from omnisparse.methods.base import forward_batch
from omnisparse.methods.handover import hand_over, spread_layers
from omnisparse.models import LasConfig, ModelConfig, SpeechModel, TransducerConfig, build_model
from omnisparse.models.factored import dense_state
from omnisparse.sparsity.lowrank import truncated_svd

LAS = LasConfig(
    encoder_layers=3, encoder_dim=12, decoder_layers=3, decoder_dim=10, attention_dim=8,
    attention_heads=2, embedding_dim=6, dropout=0.0, time_reduction=2, layer_norm=False,
)  # fmt: skip
LSTM = TransducerConfig(
    encoder_layers=3, encoder_dim=12, predictor_dim=10, joiner_dim=8, embedding_dim=6, dropout=0.0,
    layer_norm=False, time_reduction=2,
)  # fmt: skip
CONFORMER = TransducerConfig(
    encoder="conformer", encoder_layers=4, encoder_dim=12, encoder_heads=2, encoder_kernel=3,
    encoder_feed_forward=10, segment=3, left_context=4, predictor_dim=10, joiner_dim=8,
    embedding_dim=6, dropout=0.0, ctc_weight=0.3,
)  # fmt: skip
EMFORMER = TransducerConfig(
    encoder="emformer", encoder_layers=3, encoder_dim=12, encoder_heads=2, encoder_feed_forward=10,
    segment=3, left_context=4, right_context=2, predictor_dim=10, joiner_dim=8, embedding_dim=6,
    dropout=0.0,
)  # fmt: skip
EVERY = {"las": LAS, "lstm": LSTM, "conformer": CONFORMER, "emformer": EMFORMER}


def make(config: ModelConfig, seed: int = 0) -> SpeechModel:
    torch.manual_seed(seed)
    return build_model(config, input_dim=12, vocab_size=10).eval()


@torch.no_grad()
def loss(model: SpeechModel) -> torch.Tensor:
    return forward_batch(model, make_batch()).label_loss_sum


def taken(larger: SpeechModel, config: ModelConfig) -> SpeechModel:
    student = make(config, seed=1)
    student.load_state_dict(hand_over(larger, student))
    return student


@pytest.mark.parametrize("name", sorted(EVERY))
def test_a_net_of_the_same_shape_is_copied(name: str) -> None:
    model = make(EVERY[name])
    state = taken(model, EVERY[name]).state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@torch.no_grad()
def silence_cells(model: SpeechModel, name: str, kept: int) -> None:
    """Without input, recurrence and bias the later cells of an LSTM are always 0."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.LSTM)
    for tensor in layer.parameters():
        for gate in tensor.chunk(4):
            gate[kept:] = 0.0


@pytest.mark.parametrize(
    ("config", "changes", "layers"),
    [
        (LAS, {"encoder_dim": 7}, [f"encoder.layers.{index}" for index in range(3)]),
        (LAS, {"decoder_dim": 5}, [f"decoder.layers.{index}" for index in range(3)]),
        (LSTM, {"encoder_dim": 7}, [f"encoder.layers.{index}" for index in range(3)]),
        (LSTM, {"predictor_dim": 3}, ["predictor.layers.0"]),
    ],
    ids=["las-encoder", "las-decoder", "transducer-encoder", "transducer-predictor"],
)
def test_dropped_cells_that_do_nothing_change_nothing(
    config: ModelConfig, changes: dict[str, Any], layers: list[str]
) -> None:
    model = make(config)
    for layer in layers:
        silence_cells(model, layer, next(iter(changes.values())))
    torch.testing.assert_close(loss(taken(model, replace(config, **changes))), loss(model))


@pytest.mark.parametrize("config", [CONFORMER, EMFORMER], ids=["conformer", "emformer"])
def test_the_feed_forward_units_that_do_something_stay(config: TransducerConfig) -> None:
    model = make(config)
    silent = [1, 4, 9]
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("contract.weight", "pos_ff.4.weight")) and "convolution" not in name:
                tensor[:, silent] = 0.0
    small = taken(model, replace(config, encoder_feed_forward=7))
    torch.testing.assert_close(loss(small), loss(model))


@pytest.mark.parametrize(
    ("config", "count", "kept"),
    [(CONFORMER, 2, [0, 3]), (CONFORMER, 3, [0, 1, 3]), (EMFORMER, 2, [0, 2]), (LSTM, 2, [0, 1])],
)
def test_fewer_layers_compute_what_the_kept_ones_do(
    config: TransducerConfig, count: int, kept: list[int]
) -> None:
    model = make(config)
    small = taken(model, replace(config, encoder_layers=count))
    encoder: Any = model.encoder
    owner = encoder.emformer if config.encoder == "emformer" else encoder
    name = "emformer_layers" if config.encoder == "emformer" else "layers"
    setattr(owner, name, nn.ModuleList(getattr(owner, name)[index] for index in kept))
    if hasattr(encoder, "norms"):
        encoder.norms = nn.ModuleList(encoder.norms[index] for index in kept)
    if config.encoder == "lstm":  # the loop over layers reads the number of widths
        assert [p.shape for p in small.parameters()] == [p.shape for p in model.parameters()]
    torch.testing.assert_close(loss(small), loss(model))


def test_attention_is_cut_inside_each_head() -> None:
    model = make(LAS)
    small = taken(model, replace(LAS, attention_dim=4))
    rows = [0, 1, 4, 5]  # of two heads of four the first two each
    for part in ("query", "key", "value"):
        whole, cut = (net.get_parameter(f"attention.{part}.weight") for net in (model, small))
        assert torch.equal(cut, whole[rows])
    columns = [*range(10), *(10 + row for row in rows)]
    assert torch.equal(
        small.get_parameter("output.weight"), model.get_parameter("output.weight")[:, columns]
    )


@pytest.mark.parametrize("config", [CONFORMER, EMFORMER], ids=["conformer", "emformer"])
def test_a_narrow_stream_keeps_the_same_channels_everywhere(config: TransducerConfig) -> None:
    """Two stacked frames of 6 channels become two of 4; attention has heads of its own."""
    model = make(config)
    small = taken(model, replace(config, encoder_dim=8))
    stream = [0, 1, 2, 3, 6, 7, 8, 9]
    heads = [0, 1, 2, 3, 6, 7, 8, 9]
    pairs = {name: (value, small.state_dict()[name]) for name, value in model.state_dict().items()}
    whole, cut = pairs["joiner.encoder_projection.weight"]
    assert torch.equal(cut, whole[:, stream])
    whole, cut = pairs["encoder.input_projection.weight"]
    assert torch.equal(cut, whole[:4])
    name = next(
        name for name in pairs if name.endswith(("attention.output.weight", "out_proj.weight"))
    )
    whole, cut = pairs[name]
    assert torch.equal(cut, whole[stream][:, heads])
    if config.encoder == "conformer":
        whole, cut = pairs["encoder.layers.1.convolution.expand.weight"]
        assert torch.equal(cut, whole[[*stream, *(12 + row for row in stream)]][:, stream])
        whole, cut = pairs["encoder.layers.1.attention.input.weight"]
        assert torch.equal(cut, whole[[12 * k + row for k in range(3) for row in heads]][:, stream])


@pytest.mark.parametrize("before", [{}, {"encoder.layers.1.weight_hh_l0": 9}])
def test_products_are_truncated_decompositions(before: dict[str, int]) -> None:
    model = make(replace(LSTM, ranks=before))
    ranks = {"encoder.layers.1.weight_hh_l0": 3, "joiner.output.weight": 2}
    state = dense_state(taken(model, replace(LSTM, ranks=ranks)))
    for name, weight in dense_state(model).items():
        expected = weight
        if name in ranks:
            left, right = truncated_svd(weight, ranks[name])
            expected = left @ right
        torch.testing.assert_close(state[name], expected)


@pytest.mark.parametrize(
    ("there", "here", "leading", "kept"),
    [
        (6, 6, 1, [0, 1, 2, 3, 4, 5]),
        (6, 4, 1, [0, 1, 3, 5]),
        (6, 2, 1, [0, 5]),
        (6, 1, 1, [0]),
        (5, 3, 2, [0, 1, 4]),
        (5, 1, 2, [0]),
        (3, 2, 0, [0, 2]),
    ],
)
def test_kept_layers_are_spread(there: int, here: int, leading: int, kept: list[int]) -> None:
    assert spread_layers(there, here, leading=leading) == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder_dim": 16},
            r"encoder\.layers\.0\.weight_ih_l0 is \[48, 12\] there and \[64, 12\]",
        ),
        ({"encoder_layers": 4}, r"encoder\.layers\.3\.weight_ih_l0 is .* here and absent there"),
        ({"ctc_weight": 0.5}, r"ctc_output\.weight is .* here and absent there"),
    ],
)
def test_a_larger_student_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hand_over(make(LSTM), make(replace(LSTM, **changes)))
