"""Compares exported files with PyTorch, by running them in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy.onnx_encoders import State
from omnisparse.deploy.onnx_graph import Array
from omnisparse.deploy.onnx_models import LasGraphs, TransducerGraphs
from omnisparse.deploy.onnx_segments import SegmentGraph
from omnisparse.errors import OmnisparseError
from omnisparse.models.base import BLANK, SOS_EOS
from omnisparse.models.las import LasModel
from omnisparse.models.predictor import CONTEXT_SIZE
from omnisparse.models.transducer import TransducerModel
from omnisparse.models.transducer_decoding import predict

TOLERANCE = 1e-3
"""Largest difference of an output, as a share of its largest magnitude (or of 1)."""

_CHUNKS = 3


def run_session(file: bytes) -> Any:
    """An onnxruntime session of one thread.

    Args:
        file: The bytes of the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


@dataclass
class Comparison:
    """Differences found so far.

    Attributes:
        extractor: Turns bins into what the net reads.
        largest: Largest absolute difference.
    """

    extractor: FeatureExtractor
    largest: float = 0.0
    _random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def features(self, batch: int, frames: int) -> Array:
        """Filterbank energies ``[batch, frames, B]`` as this net may meet them."""
        drawn = self._random.standard_normal((batch, frames, self.extractor.num_bins))
        if self.extractor.mean is not None and self.extractor.std is not None:
            drawn = drawn * self.extractor.std + self.extractor.mean
        return drawn.astype(np.float32)

    def numbers(self, *shape: int) -> Array:
        """Normal numbers, for states and encodings."""
        return self._random.standard_normal(shape).astype(np.float32)

    def tokens(self, vocab_size: int, *shape: int) -> Array:
        """Token ids that a search may find."""
        return self._random.integers(SOS_EOS + 1, vocab_size, shape)

    def read(self, features: Array) -> torch.Tensor:
        """``[1, T, F]`` of ``[T, B]`` bins."""
        stacked = self.extractor.stack_frames(self.extractor.normalise(features))
        return torch.from_numpy(np.ascontiguousarray(stacked))[None]

    def compare(self, what: str, found: Array, expected: torch.Tensor) -> None:
        """Note a difference.

        Raises:
            OmnisparseError: If it is more than rounding.
        """
        reference = expected.numpy()
        assert found.shape == reference.shape, f"{what}: {found.shape} and {reference.shape}"
        difference = float(np.abs(found - reference).max(initial=0.0))
        scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
        if not difference <= TOLERANCE * scale:
            raise OmnisparseError(
                f"the exported {what} differs by {difference:.2g} from PyTorch's (at most "
                f"{TOLERANCE * scale:.2g} is rounding), so nothing was written"
            )
        self.largest = max(self.largest, difference)


@torch.inference_mode()
def check_transducer(
    graphs: TransducerGraphs,
    model: TransducerModel,
    files: Mapping[str, bytes],
    comparison: Comparison,
    *,
    chunk: int | None,
) -> None:
    """Compare the three parts of a transducer.

    Args:
        graphs: What wrote the files.
        model: The net with the weights that the files hold.
        files: Bytes by name.
        comparison: Takes the differences.
        chunk: Feature frames of a chunk, None where any number is legal.

    Raises:
        OmnisparseError: If an output differs by more than rounding.
    """
    encoder = run_session(files["encoder.onnx"])
    if chunk is None and not isinstance(graphs.encoder_graph, SegmentGraph):
        _check_utterances(graphs, model, encoder, comparison)
    _check_chunks(graphs, model, encoder, comparison, chunk)
    _check_decoder(graphs, model, files["decoder.onnx"], comparison)
    width = model.joiner.output.in_features
    encoded, predicted = comparison.numbers(3, width), comparison.numbers(3, width)
    joiner = run_session(files["joiner.onnx"])
    (logits,) = joiner.run(None, {"encoder_out": encoded, "decoder_out": predicted})
    expected = model.joiner.score(torch.from_numpy(encoded + predicted))
    others = [token for token in range(model.vocab_size) if token != SOS_EOS]
    comparison.compare("joiner", logits[:, others], expected[:, others])


def _zeros(states: tuple[State, ...], batch: int) -> dict[str, Array]:
    return {state.name: state.zeros(batch) for state in states}


def _check_utterances(
    graphs: TransducerGraphs, model: TransducerModel, encoder: Any, comparison: Comparison
) -> None:
    """Two whole utterances of different lengths, in one batch."""
    step = graphs.frames_per_step
    lengths = np.array([5 * step + 1, 3 * step - 1])
    features = comparison.features(2, int(lengths.max()))
    states = _zeros(graphs.encoder_graph.states, 2)
    found, ends, *_ = encoder.run(None, {"x": features, "x_lens": lengths, **states})
    for row, length in enumerate(lengths):
        frames = comparison.read(features[row, :length])
        encoded, end = model.encode(frames, torch.tensor([frames.size(1)]))
        expected = model.joiner.encoder_projection(encoded)[0]
        comparison.compare("lengths", ends[row : row + 1].astype(np.float32), end.float())
        comparison.compare("encoder", found[row, : int(end)], expected[: int(end)])


def _check_chunks(
    graphs: TransducerGraphs,
    model: TransducerModel,
    encoder: Any,
    comparison: Comparison,
    chunk: int | None,
) -> None:
    """A few chunks of two streams, states handed on."""
    writer = graphs.encoder_graph
    size = chunk or 2 * graphs.frames_per_step
    shift = size
    if isinstance(writer, SegmentGraph):
        shift = writer.segment * graphs.frames_per_step
        size = shift + writer.right_context * graphs.frames_per_step
    features = comparison.features(2, (_CHUNKS - 1) * shift + size)
    inputs, found = _zeros(writer.states, 2), []
    for index in range(_CHUNKS):
        inputs["x"] = features[:, index * shift : index * shift + size]
        if isinstance(writer, SegmentGraph):
            inputs["processed_lens"] = np.full(2, index * shift, np.int64)
        elif chunk is None:
            inputs["x_lens"] = np.full(2, size, np.int64)
        outputs = encoder.run(None, inputs)
        found.append(outputs[0])
        news = outputs[-len(writer.states) :]
        inputs = {state.name: new for state, new in zip(writer.states, news, strict=True)}
    frames = torch.cat([comparison.read(row) for row in features])
    encoded, _ = model.encode_chunk(frames, model.initial_state(2))
    expected = model.joiner.encoder_projection(encoded)
    joined = np.concatenate(found, axis=1)
    comparison.compare("encoder, in chunks,", joined, expected[:, : joined.shape[1]])


def _check_decoder(
    graphs: TransducerGraphs, model: TransducerModel, file: bytes, comparison: Comparison
) -> None:
    """The start, and tokens after it."""
    decoder = run_session(file)
    rows = 3
    memory = model.predictor.initial_state(rows)
    steps = [np.full(rows, BLANK), *comparison.tokens(model.vocab_size, 2, rows)]
    states = _zeros(graphs.decoder_states, rows)
    context = np.full((rows, CONTEXT_SIZE), -1)
    for tokens in steps:
        expected, memory = predict(model, torch.from_numpy(tokens), memory)
        context = np.concatenate([context[:, 1:], tokens[:, None]], axis=1)
        y = tokens if states else context
        found, *news = decoder.run(None, {"y": y, **states})
        states = dict(zip(states, news, strict=True))
        comparison.compare("decoder", found, expected)


@torch.inference_mode()
def check_las(
    graphs: LasGraphs, model: LasModel, files: Mapping[str, bytes], comparison: Comparison
) -> None:
    """Compare both parts of a LAS; arguments as of :func:`check_transducer`.

    Raises:
        OmnisparseError: If an output differs by more than rounding.
    """
    lengths = np.array([41, 26])
    features = comparison.features(2, int(lengths.max()))
    names = ("keys", "values", "encoder_out_lens")
    encoder = run_session(files["encoder.onnx"])
    memory = dict(zip(names, encoder.run(None, {"x": features, "x_lens": lengths}), strict=True))
    decoder = run_session(files["decoder.onnx"])
    tokens = np.concatenate([[[SOS_EOS] * 2], comparison.tokens(model.vocab_size, 3, 2)])
    scores, states = [], _zeros(graphs.decoder_states, 2)
    for row in tokens:
        found, *news = decoder.run(None, {"y": row, **states, **memory})
        states = dict(zip(states, news, strict=True))
        scores.append(found)
    others = [token for token in range(model.vocab_size) if token != BLANK]
    for row, length in enumerate(lengths):
        frames = comparison.read(features[row, :length])
        encoded, ends = model.encode(frames, torch.tensor([frames.size(1)]))
        attended, state = model.attention.memory(encoded, ends), model.decoder.initial_state(1)
        for step, given in enumerate(tokens[:, row]):
            expected, state = model.next_log_probs(torch.tensor([given]), state, attended)
            comparison.compare("speller", scores[step][row : row + 1, others], expected[:, others])
