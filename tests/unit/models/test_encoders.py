"""Every encoder, streamed in whatever pieces, gives what it gives on the whole utterance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnisparse.models import TransducerConfig
from omnisparse.models.conformer import (
    ConformerEncoder,
    SegmentAttention,
    _angles,
    _rotate,
    _whole_mask,
)
from omnisparse.models.emformer import EmformerEncoder
from omnisparse.models.encoder import Encoder
from omnisparse.models.lstm import LstmEncoder

INPUT_DIM = 5


@st.composite
def encoders(draw: st.DrawFn) -> Encoder:
    """A small encoder of any kind with any contexts."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["lstm", "lstmp", "emformer", "conformer"]))
    if kind.startswith("lstm"):
        return LstmEncoder(
            input_dim=INPUT_DIM,
            num_layers=3,
            dim=6,
            projection=4 if kind == "lstmp" else None,
            time_reduction=draw(st.sampled_from([1, 2, 4])),
        ).eval()
    shape: dict[str, Any] = {
        "input_dim": INPUT_DIM,
        "num_layers": 2,
        "dim": 12,
        "heads": 3,
        "feed_forward_dim": 7,
        "time_reduction": draw(st.sampled_from([1, 2, 3, 4])),
        "segment": draw(st.integers(1, 5)),
        "left_context": draw(st.integers(0, 7)),
    }
    if kind == "emformer":
        return EmformerEncoder(right_context=draw(st.integers(0, 6)), **shape).eval()
    return ConformerEncoder(kernel=draw(st.integers(1, 6)), **shape).eval()


def stream(encoder: Encoder, features: Tensor, chunks: list[int]) -> Tensor:
    """Encodings of features handed over in chunks of these lengths, the last ones repeated."""
    state = encoder.initial_state(features.size(0))
    pieces, start, index = [], 0, 0
    while start < features.size(1):
        end = start + max(1, chunks[index % len(chunks)])
        piece, state = encoder.forward_chunk(features[:, start:end], state)
        pieces.append(piece)
        start, index = end, index + 1
    last, _ = encoder.forward_chunk(features[:, :0], state, final=True)
    return torch.cat([*pieces, last], dim=1)


@settings(max_examples=60)
@given(encoders(), st.integers(1, 40), st.lists(st.integers(1, 41), min_size=1, max_size=6))
@torch.no_grad()
def test_any_chunks_equal_the_whole(encoder: Encoder, length: int, chunks: list[int]) -> None:
    features = torch.randn(2, length, INPUT_DIM)
    offline, lengths = encoder(features, torch.tensor([length, length]))
    streamed = stream(encoder, features, chunks)
    assert streamed.shape == offline.shape
    assert (
        lengths.tolist()
        == [offline.size(1)] * 2
        == encoder.output_lengths(torch.tensor([length, length])).tolist()
    )
    torch.testing.assert_close(streamed, offline, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(encoders(), st.lists(st.integers(1, 40), min_size=2, max_size=4))
@torch.no_grad()
def test_padding_reaches_no_valid_frame(encoder: Encoder, lengths: list[int]) -> None:
    features = torch.randn(len(lengths), max(lengths) + 3, INPUT_DIM) * 3.0
    together, counts = encoder(features, torch.tensor(lengths))
    for row, (length, count) in enumerate(zip(lengths, counts.tolist(), strict=True)):
        alone, _ = encoder(features[row : row + 1, :length], torch.tensor([length]))
        assert alone.size(1) == count
        torch.testing.assert_close(together[row, :count], alone[0], rtol=1e-4, atol=1e-5)


def tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, tuple):
        for item in part:
            yield from tensors(item)


KINDS: dict[str, Encoder] = {
    "lstm": LstmEncoder(input_dim=INPUT_DIM, num_layers=2, dim=6, time_reduction=2),
    "emformer": EmformerEncoder(
        input_dim=INPUT_DIM, num_layers=2, dim=6, heads=2, feed_forward_dim=8, time_reduction=2,
        segment=3, left_context=5, right_context=2,
    ),
    "conformer": ConformerEncoder(
        input_dim=INPUT_DIM, num_layers=2, dim=8, heads=2, feed_forward_dim=8, time_reduction=2,
        segment=3, left_context=5, kernel=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_state_does_not_grow(kind: str) -> None:
    encoder = KINDS[kind].eval()
    sizes = []
    for chunk, count in ((1, 70), (70, 1), (7, 40), (4000, 1)):
        state = encoder.initial_state(1)
        for _ in range(count):
            _, state = encoder.forward_chunk(torch.randn(1, chunk, INPUT_DIM), state)
        kept = list(tensors(state.memory))
        # Bytes really held: a small view of a large tensor holds all of it.
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept))
    waiting = 4 * 1 * (INPUT_DIM + 5 * 8)  # float32: at most so much waits for its segment
    assert max(sizes) - min(sizes) <= waiting
    assert max(sizes) < 4000


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_state_can_be_used_twice(kind: str) -> None:
    """Explicit state: a chunk leaves the state it was given as it was."""
    encoder = KINDS[kind].eval()
    _, state = encoder.forward_chunk(torch.randn(1, 15, INPUT_DIM), encoder.initial_state(1))
    chunk = torch.randn(1, 15, INPUT_DIM)
    first, _ = encoder.forward_chunk(chunk, state)
    second, _ = encoder.forward_chunk(chunk, state)
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_ended_stream_takes_no_more_audio(kind: str) -> None:
    encoder = KINDS[kind].eval()
    chunk = torch.randn(1, 5, INPUT_DIM)
    _, state = encoder.forward_chunk(chunk, encoder.initial_state(1), final=True)
    with pytest.raises(ValueError, match=r"has ended; .*starts with initial_state\(\)"):
        encoder.forward_chunk(chunk, state)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_encoder_sees_only_what_its_latency_allows(kind: str) -> None:
    """Changing a frame changes nothing before its segment and that segment's right context."""
    encoder = KINDS[kind].eval()
    features = torch.randn(1, 48, INPUT_DIM)
    before, _ = encoder(features, torch.tensor([48]))
    ahead = {"lstm": 0, "emformer": 3 - 1 + 2, "conformer": 3 - 1}[kind]
    for frame in (20, 31, 47):
        changed = features.clone()
        changed[:, frame] += 1.0
        after, _ = encoder(changed, torch.tensor([48]))
        first = int((after - before).abs().sum(-1)[0].gt(1e-6).nonzero()[0])
        assert frame // 2 - ahead <= first <= frame // 2
    if kind == "emformer":  # the look-ahead is really used
        changed = features.clone()
        changed[:, 6 + 2 * 2 - 1] += 1.0  # last frame of the right context of the first segment
        after, _ = encoder(changed, torch.tensor([48]))
        assert not torch.allclose(after[0, 0], before[0, 0])


@torch.no_grad()
def test_segment_attention_equals_a_plain_loop() -> None:
    """Against softmax attention frame by frame, with the windows written out."""
    torch.manual_seed(0)
    attention = SegmentAttention(dim=8, heads=2, segment=3, left_context=4, dropout=0.0)
    frames = torch.randn(1, 9, 8)
    rotation = _angles(0, 9, 4, frames.device)
    positions = torch.arange(9)
    starts = positions // 3 * 3
    windows = torch.stack([torch.arange(start - 4, start + 3) for start in starts[::3].tolist()])
    mask = ((windows >= 0) & (windows < 8))[:, None, None]  # the last frame is padding
    found = attention(frames, rotation, mask)
    whole = _whole_mask(torch.tensor([8]), 9, 3, 4)  # as short utterances are attended to
    torch.testing.assert_close(attention(frames, rotation, whole)[:, :8], found[:, :8])

    queries, keys, values = attention.input(attention.norm(frames))[0].chunk(3, dim=-1)
    for time in range(8):
        seen = [p for p in range(9) if starts[time] - 4 <= p < min(starts[time] + 3, 8)]
        contexts = []
        for head in (slice(0, 4), slice(4, 8)):
            query = _rotate(queries[time, head], _angles(time, 1, 4, frames.device))
            scores = torch.stack(
                [
                    (query * _rotate(keys[p, head], _angles(p, 1, 4, frames.device))).sum() / 2.0
                    for p in seen
                ]
            )
            contexts.append(scores.softmax(0) @ values[seen][:, head])
        expected = attention.output(torch.cat(contexts))
        torch.testing.assert_close(found[0, time], expected, rtol=1e-4, atol=1e-5)


def test_rotated_scores_depend_on_distances_only() -> None:
    query, key = torch.randn(2, 1, 16).unbind()
    scores = [
        float(
            _rotate(query, _angles(start + 5, 1, 16, query.device))
            @ _rotate(key, _angles(start, 1, 16, key.device)).T
        )
        for start in (0, 7, 100_000)
    ]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 4}, "segment is 4, but belongs to encoder emformer or conformer"),
        ({"encoder": "conformer", "right_context": 1}, "right_context is 1, but belongs to .*emf"),
        ({"encoder": "emformer", "encoder_projection": 9}, "encoder_projection is 9, but belongs"),
        ({"encoder": "emformer", "encoder_kernel": 3}, "encoder_kernel is 3, but belongs"),
        ({"encoder": "emformer", "encoder_heads": 3}, "encoder_dim is 256; .* of encoder_heads, 3"),
        ({"encoder": "conformer", "encoder_dim": 12}, r"a multiple of 2 \* encoder_heads, 8"),
        ({"encoder": "emformer", "time_reduction": 3}, "a multiple of time_reduction, 3"),
        ({"encoder": "emformer", "time_reduction": 0}, "time_reduction is 0; .* at least 1"),
        ({"encoder": "emformer", "segment": 0}, "segment is 0; it must be from 1 to 10000"),
        (
            {"encoder": "emformer", "right_context": -1},
            "right_context is -1; .* from 0 to",
        ),
    ],
)
def test_impossible_encoders_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransducerConfig(**fields)
