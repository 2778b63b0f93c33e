"""A transducer with an LSTM predictor in NeMo's online layout, as sherpa-onnx reads it.

The layout is that of cache-aware Conformers: its two caches of floats here carry the outputs and
the cells of an LSTM encoder, and the length of the cache is not used. Tokens are numbered as NeMo
does it, with blank last.

Legend: N batch, T feature frames of 10 ms, B bins, T' encoder frames, J joiner, L layers, H cells,
P output width of an LSTM, D predictor, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from omnisparse.data.nemo_mel import ZERO_GUARD
from omnisparse.deploy.onnx_check import Comparison, run_session
from omnisparse.deploy.onnx_encoders import LstmGraph
from omnisparse.deploy.onnx_graph import INT64, Array, GraphBuilder
from omnisparse.deploy.onnx_layers import Layers
from omnisparse.deploy.onnx_models import TransducerGraphs
from omnisparse.models.base import BLANK, SOS_EOS
from omnisparse.models.transducer import TransducerModel
from omnisparse.models.transducer_decoding import predict

INT32 = 6
"""ONNX's number for int32."""

_CHUNKS = 3

_FLOOR = 2.0**-23 * (1 + 1e-5)
"""Smallest energy that sherpa-onnx's features keep, and a little for its logarithm's rounding."""


def nemo_id(token: int, vocab_size: int) -> int:
    """NeMo's number of one of our tokens: blank, our first, is its last."""
    return (token - 1) % vocab_size


def nemo_tokens(tokens_txt: str) -> str:
    """``tokens.txt`` (``symbol id`` a line, in our order) in NeMo's order."""
    symbols = [line.rsplit(" ", 1)[0] for line in tokens_txt.splitlines()]
    moved = symbols[BLANK + 1 :] + symbols[: BLANK + 1]
    return "".join(f"{symbol} {index}\n" for index, symbol in enumerate(moved))


@dataclass(frozen=True)
class NemoGraphs:
    """Writes the three parts.

    Attributes:
        graphs: Of a net with an LSTM encoder and an LSTM predictor.
        chunk: Feature frames of a chunk, a multiple of the encoder's step.
    """

    graphs: TransducerGraphs
    chunk: int

    @property
    def writer(self) -> LstmGraph:
        """What writes the encoder."""
        writer = self.graphs.encoder_graph
        assert isinstance(writer, LstmGraph)
        return writer

    def metadata(self) -> dict[str, str]:
        """Of the encoder: all that sherpa-onnx reads."""
        hidden, cell = self.writer.states
        (layers, _, width) = self.graphs.decoder_states[0].shape
        numbers = {
            "vocab_size": self.graphs.model.vocab_size - 1,  # NeMo does not count blank
            "window_size": self.chunk,
            "chunk_shift": self.chunk,
            "subsampling_factor": self.graphs.frames_per_step,
            "pred_rnn_layers": layers,
            "pred_hidden": width,
            "cache_last_channel_dim1": hidden.shape[0],
            "cache_last_channel_dim2": 1,
            "cache_last_channel_dim3": hidden.shape[2],
            "cache_last_time_dim1": cell.shape[0],
            "cache_last_time_dim2": 1,
            "cache_last_time_dim3": cell.shape[2],
        }
        return {"normalize_type": "NA", **{key: str(value) for key, value in numbers.items()}}

    def encoder(self, metadata: Mapping[str, str]) -> bytes:
        """A chunk and the caches in, projected encodings and the caches out.

        Inputs: ``audio_signal [N, B, T]``, ``length [N]``, ``cache_last_channel [N, L, 1, P]``,
        ``cache_last_time [N, L, 1, H]``, ``cache_last_channel_len [N]``. Outputs:
        ``outputs [N, J, T']``, ``encoded_lengths [N]``, the caches as ``..._next``.
        """
        graph, frames, writer = GraphBuilder("encoder"), self.graphs.frames, self.writer
        caches = ("cache_last_channel", "cache_last_time")
        signal = graph.input("audio_signal", np.float32, ["N", frames.num_bins, self.chunk])
        length = graph.input("length", np.int64, ["N"])
        states: dict[str, str] = {}
        for name, state in zip(caches, writer.states, strict=True):
            layers, _, width = state.shape
            cache = graph.input(name, np.float32, ["N", layers, 1, width])
            cache = graph.op("Squeeze", cache, graph.ints(2))
            states[state.name] = graph.op("Transpose", cache, perm=[1, 0, 2])
        used = graph.input("cache_last_channel_len", np.int64, ["N"])
        x = graph.op("Transpose", heard_as_nemo(graph, signal), perm=[0, 2, 1])
        stacked = frames.whole_stacks(graph, x)
        encoded, _, new = writer.write(graph, stacked, states, None)
        projected = Layers(graph, self.graphs.weights).linear("joiner.encoder_projection", encoded)
        projected = graph.op("Transpose", projected, perm=[0, 2, 1])
        step = graph.scalar(self.graphs.frames_per_step)
        graph.output("outputs", projected, np.float32, ["N", self._width, "S"])
        graph.output("encoded_lengths", graph.op("Div", length, step), np.int64, ["N"])
        for name, state in zip(caches, writer.states, strict=True):
            layers, _, width = state.shape
            cache = graph.op("Transpose", new[state.name], perm=[1, 0, 2])
            cache = graph.op("Unsqueeze", cache, graph.ints(2))
            graph.output(f"{name}_next", cache, np.float32, ["N", layers, 1, width])
        graph.output("cache_last_channel_next_len", used, np.int64, ["N"])
        return graph.model(metadata)

    def decoder(self, metadata: Mapping[str, str]) -> bytes:
        """A token and the states in, projected predictor output and the states out.

        Inputs: ``targets [N, 1]`` and ``target_length [N]`` int32, ``h`` and ``c [L, N, D]``.
        Outputs: ``outputs [N, J, 1]``, ``prednet_lengths [N]``, ``h_next``, ``c_next``.
        """
        graph = GraphBuilder("decoder")
        targets = graph.input("targets", np.int32, ["N", 1])
        length = graph.input("target_length", np.int32, ["N"])
        states = {
            state.name: graph.input(state.name, np.float32, state.shape)
            for state in self.graphs.decoder_states
        }
        tokens = graph.op("Squeeze", graph.op("Cast", targets, to=INT64), graph.ints(1))
        ours = graph.op("Add", tokens, graph.scalar(1))
        ours = graph.op("Mod", ours, graph.scalar(self.graphs.model.vocab_size))
        layers = Layers(graph, self.graphs.weights)
        predicted, new = self.graphs.recurrent(layers, ours, states)
        predicted = graph.op("Unsqueeze", predicted, graph.ints(2))
        graph.output("outputs", predicted, np.float32, ["N", self._width, 1])
        graph.output("prednet_lengths", length, np.int32, ["N"])
        for state in self.graphs.decoder_states:
            graph.output(f"{state.name}_next", new[state.name], np.float32, state.shape)
        return graph.model(metadata)

    def joiner(self, metadata: Mapping[str, str]) -> bytes:
        """``encoder_outputs`` and ``decoder_outputs [N, J, 1]`` in, ``outputs [N, 1, 1, V]``."""
        graph = GraphBuilder("joiner")
        parts = [
            graph.op("Squeeze", graph.input(name, np.float32, ["N", self._width, 1]), graph.ints(2))
            for name in ("encoder_outputs", "decoder_outputs")
        ]
        vocab_size = self.graphs.model.vocab_size
        logits = self.graphs.joined(Layers(graph, self.graphs.weights), *parts)
        order = [*range(BLANK + 1, vocab_size), BLANK]
        logits = graph.op("Gather", logits, graph.ints(*order), axis=1)
        logits = graph.op("Unsqueeze", logits, graph.ints(1, 2))
        graph.output("outputs", logits, np.float32, ["N", 1, 1, vocab_size])
        return graph.model(metadata)

    @property
    def _width(self) -> int:
        return int(self.graphs.model.joiner.output.in_features)


def heard_as_nemo(graph: GraphBuilder, energies: str) -> str:
    """NeMo's log-mel energies of sherpa-onnx's.

    NeMo adds 2^-24 to an energy before it takes the log; sherpa-onnx takes the log of the energy or
    of 2^-23, whichever is larger. Energies below that are lost: they are taken for silence, which
    is off by 1.1 at most.
    """
    energies = graph.op("Exp", energies)
    is_sound = graph.op("Greater", energies, graph.scalar(_FLOOR))
    energies = graph.op("Where", is_sound, energies, graph.scalar(0.0))
    return graph.op("Log", graph.op("Add", energies, graph.scalar(ZERO_GUARD)))


@torch.inference_mode()
def check_nemo(
    nemo: NemoGraphs, model: TransducerModel, files: Mapping[str, bytes], comparison: Comparison
) -> None:
    """Compare the three parts with PyTorch.

    Args:
        nemo: What wrote the files.
        model: The net with the weights that the files hold.
        files: Bytes by name.
        comparison: Takes the differences.

    Raises:
        OmnisparseError: If an output differs by more than rounding.
    """
    _check_encoder(nemo, model, run_session(files["encoder.onnx"]), comparison)
    decoder = run_session(files["decoder.onnx"])
    rows, vocab_size = 3, model.vocab_size
    memory = model.predictor.initial_state(rows)
    states = {state.name: state.zeros(rows) for state in nemo.graphs.decoder_states}
    for tokens in [np.full(rows, BLANK), *comparison.tokens(vocab_size, 2, rows)]:
        expected, memory = predict(model, torch.from_numpy(tokens), memory)
        targets = np.array([[nemo_id(int(token), vocab_size)] for token in tokens], np.int32)
        given: dict[str, Array] = {
            "targets": targets, "target_length": np.ones(rows, np.int32), **states,
        }  # fmt: skip
        found, _, *news = decoder.run(None, given)
        states = dict(zip(states, news, strict=True))
        comparison.compare("decoder", found[:, :, 0], expected)
    width = model.joiner.output.in_features
    encoded, predicted = comparison.numbers(3, width, 1), comparison.numbers(3, width, 1)
    joiner = run_session(files["joiner.onnx"])
    (logits,) = joiner.run(None, {"encoder_outputs": encoded, "decoder_outputs": predicted})
    scores = model.joiner.score(torch.from_numpy(encoded + predicted)[:, :, 0])
    others = [token for token in range(vocab_size) if token != SOS_EOS]
    places = [nemo_id(token, vocab_size) for token in others]
    comparison.compare("joiner", logits[:, 0, 0, places], scores[:, others])


def _check_encoder(
    nemo: NemoGraphs, model: TransducerModel, encoder: Any, comparison: Comparison
) -> None:
    """A few chunks of two streams, caches handed on."""
    size = nemo.chunk
    heard = comparison.features(2, _CHUNKS * size)
    hidden, cell = (state.zeros(2) for state in nemo.writer.states)
    caches = [state.transpose(1, 0, 2)[:, :, None] for state in (hidden, cell)]
    used, found = np.zeros(2, np.int64), []
    for index in range(_CHUNKS):
        chunk = heard[:, index * size : (index + 1) * size].transpose(0, 2, 1)
        outputs, _, *caches, used = encoder.run(
            None,
            {
                "audio_signal": chunk, "length": np.full(2, size), "cache_last_channel": caches[0],
                "cache_last_time": caches[1], "cache_last_channel_len": used,
            },
        )  # fmt: skip
        found.append(outputs)
    energies = np.exp(heard)
    guarded = np.log(np.where(energies > _FLOOR, energies, 0.0) + np.float32(ZERO_GUARD))
    guarded = guarded.astype(np.float32)
    frames = torch.cat([comparison.read(row) for row in guarded])
    encoded, _ = model.encode_chunk(frames, model.initial_state(2))
    expected = model.joiner.encoder_projection(encoded)
    comparison.compare("encoder", np.concatenate(found, axis=2).transpose(0, 2, 1), expected)
