"""Counted operations against counts by hand, and against torch's counter where that can count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from omnisparse.models.attention import MultiHeadAttention
from omnisparse.models.las import LasModel
from omnisparse.models.lstm import lstm_step, make_lstm, run_lstm, zero_state
from omnisparse.models.operations import count_product, counted_operations
from omnisparse.models.transducer import TransducerModel

FRAMES, BATCH, INPUTS, CELLS, OUTPUTS = 7, 3, 5, 4, 2


def counted(function: Any) -> int:
    with counted_operations() as count:
        function()
    return count.total


def test_linear_by_hand() -> None:
    layer = nn.Linear(5, 4)
    inputs = torch.randn(3, 7, 5)
    forward = 2 * 3 * 7 * 5 * 4
    with torch.no_grad():
        assert counted(lambda: layer(inputs)) == forward
    assert counted(lambda: layer(inputs)) == 2 * forward  # no gradient of the features
    assert counted(lambda: layer(inputs.requires_grad_())) == 3 * forward
    layer(inputs)  # outside of the block nothing is counted
    assert counted(lambda: None) == 0
    assert counted(lambda: count_product(10, inputs, inputs, again=1)) == 20 * 4


@pytest.mark.parametrize("projection", [None, OUTPUTS])
def test_lstm_by_hand(projection: int | None) -> None:
    layer = make_lstm(INPUTS, CELLS, projection)
    inputs = torch.randn(FRAMES, BATCH, INPUTS)
    outputs = projection or CELLS
    of_inputs = 2 * FRAMES * BATCH * INPUTS * 4 * CELLS
    of_outputs = 2 * FRAMES * BATCH * (outputs * 4 * CELLS + (CELLS * outputs if projection else 0))
    with torch.no_grad():
        assert counted(lambda: run_lstm(layer, inputs)) == of_inputs + of_outputs
    assert counted(lambda: run_lstm(layer, inputs)) == 2 * of_inputs + 3 * of_outputs

    def steps() -> None:
        state = zero_state(layer, BATCH)
        for frame in inputs:
            _, state = lstm_step(layer, frame, state)

    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        assert counted(steps) == of_inputs + of_outputs
    assert torchs.get_total_flops() == of_inputs + of_outputs


def test_attention_by_hand() -> None:
    attention = MultiHeadAttention(query_dim=6, memory_dim=5, dim=8, heads=2)
    encoded, queries = torch.randn(3, 7, 5), torch.randn(3, 4, 6)
    memory = attention.memory(encoded, torch.tensor([7, 6, 2]))
    with torch.no_grad():
        found = counted(lambda: attention(queries, memory))
    scores = contexts = 2 * 3 * 4 * 7 * 8  # utterances, tokens, frames, width of all heads
    assert found == 2 * 3 * 4 * 6 * 8 + scores + contexts


def batch() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 13, 6, generator=generator), torch.tensor([13, 11, 6]),
        torch.randint(2, 9, (3, 4), generator=generator), torch.tensor([4, 3, 1]),
    )  # fmt: skip


_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"encoder": "lstm", "encoder_layers": 2, "encoder_dim": 8, "time_reduction": 2},
    "emformer": {
        "encoder": "emformer", "encoder_layers": 2, "encoder_dim": 8, "encoder_heads": 2,
        "encoder_feed_forward": 12, "segment": 2, "left_context": 2, "right_context": 1,
    },
    "conformer": {
        "encoder": "conformer", "encoder_layers": 2, "encoder_dim": 8, "encoder_heads": 2,
        "encoder_feed_forward": 12, "segment": 2, "left_context": 2, "encoder_kernel": 3,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_transducers_against_torchs_counter(kind: str) -> None:
    """Forward and backward; the LSTM's products, which torch does not count, by hand."""
    net = TransducerModel(
        input_dim=6, vocab_size=9, predictor_layers=0, predictor_dim=8, embedding_dim=4,
        joiner_dim=10, dropout=0.0, predictor_warmup=0, **SHAPES[kind],
    )  # fmt: skip
    with counted_operations() as count:
        forward = counted(lambda: net(*batch()))
        assert forward == count.total  # blocks may lie in each other
    with FlopCounterMode(display=False) as torchs:
        net(*batch()).label_loss_sum.backward()
    missing = 0
    if kind == "lstm":  # layers of 6 and 16 inputs, 8 cells, 13 and 7 frames
        missing = 2 * 3 * 13 * 32 * (2 * 6 + 3 * 8) + 2 * 3 * 7 * 32 * (3 * 16 + 3 * 8)
    if kind == "conformer":
        # Scores or contexts of 8 padded frames to all 8. Of attention on a CPU older torch
        # counts nothing; 2.15 counts the scores twice, as made again for the gradients.
        product = 2 * 3 * 8 * 8 * 8
        theirs = 2 + 5 if _ATTENTION in flop_registry else 0
        convolution = 2 * 3 * 8 * 8 * 3  # a sum of taps, which torch does not count
        missing = 2 * ((2 + 4 - theirs) * product + 3 * convolution)
    assert forward == torchs.get_total_flops() + missing


def test_las_against_torchs_counter() -> None:
    net = LasModel(
        input_dim=6, vocab_size=9, encoder_layers=2, encoder_dim=8, attention_heads=2,
        attention_dim=8, decoder_layers=2, decoder_dim=8, embedding_dim=4, dropout=0.0,
        ctc_weight=0.3,
    )  # fmt: skip
    forward = counted(lambda: net(*batch()))
    with FlopCounterMode(display=False) as torchs:
        net(*batch()).label_loss_sum.backward()
    encoder = 2 * 3 * 13 * 32 * (2 * 6 + 3 * 8) + 2 * 3 * 7 * 32 * (3 * 16 + 3 * 8)
    # Five tokens with the end; the embedding of the first layer needs a gradient.
    decoder = 2 * 3 * 5 * 32 * 3 * ((4 + 8) + (8 + 8 + 8))
    assert forward == torchs.get_total_flops() + encoder + decoder


def test_a_teacher_and_a_search_are_forward_passes() -> None:
    net = LasModel(input_dim=6, vocab_size=9, encoder_layers=2, encoder_dim=8, attention_heads=2,
                   attention_dim=8, decoder_dim=8, embedding_dim=4, dropout=0.0)  # fmt: skip
    training = counted(lambda: net(*batch()))
    with torch.no_grad():
        teaching = counted(lambda: net(*batch()))
    assert 2.5 < training / teaching < 3
    features, lengths, *_ = batch()
    greedy = counted(lambda: net.greedy(features, lengths))
    beam = counted(lambda: net.nbest(features, lengths, beam=4))
    assert 0 < greedy < beam
