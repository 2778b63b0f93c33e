"""A transducer in onnxruntime, from the files that ``omnisparse export`` writes; for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from omnisparse.deploy.greedy import Memory
from omnisparse.deploy.tokens import FoundToken
from omnisparse.deploy.transducer import TransducerStream, max_symbols_of
from omnisparse.errors import OmnisparseError

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor

FloatArray = npt.NDArray[np.float32]


class _Waiting(NamedTuple):
    """States of the encoder, and features that wait for the rest of a step."""

    states: dict[str, FloatArray]
    features: FloatArray


class _Encoder:
    """The encoder's session; its outputs are projected for the joiner already."""

    def __init__(self, session: Any, extractor: FeatureExtractor, reduction: int) -> None:
        self._session, self._extractor = session, extractor
        self._reduction = reduction

    def initial_memory(self) -> _Waiting:
        inputs = {item.name: item.shape for item in self._session.get_inputs()}
        states = {
            name: np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)
            for name, shape in inputs.items()
            if name not in ("x", "x_lens")
        }
        return _Waiting(states, np.zeros((0, self._extractor.input_dim), np.float32))

    def advance(
        self, features: FloatArray, memory: _Waiting, *, final: bool
    ) -> tuple[FloatArray, _Waiting]:
        features = np.concatenate([memory.features, features])
        whole = len(features)
        if not final:
            whole -= whole % self._reduction
        if not whole:
            return np.zeros((0, 1), np.float32), memory._replace(features=features)
        bins = features[:whole].reshape(-1, self._extractor.num_bins)
        if self._extractor.mean is not None and self._extractor.std is not None:
            bins = bins * self._extractor.std + self._extractor.mean  # the graph normalises
        lengths = np.array([len(bins)], np.int64)
        encoded, _, *states = self._session.run(
            None, {"x": bins[None], "x_lens": lengths, **memory.states}
        )
        new = dict(zip(memory.states, states, strict=True))
        return encoded[0], _Waiting(new, features[whole:])


class OnnxTransducer:
    """A transducer with an LSTM encoder in onnxruntime, one thread.

    Args:
        folder: What ``export_onnx`` wrote.
        model: Configuration of the net.
        extractor: Its features.

    Raises:
        OmnisparseError: If the net is of another kind.
    """

    kind = "transducer"
    tells_times = True

    def __init__(self, folder: Path, model: Mapping[str, Any], extractor: FeatureExtractor) -> None:
        if model.get("kind") != "transducer" or model.get("encoder", "lstm") != "lstm":
            raise OmnisparseError("onnxruntime is measured with LSTM transducers only")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3

        def session(name: str) -> Any:
            return onnxruntime.InferenceSession(
                str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )

        self.time_reduction = int(model["time_reduction"])
        self.max_symbols = max_symbols_of(model)
        self.encoder = _Encoder(session("encoder"), extractor, self.time_reduction)
        self._decoder, self._joiner = session("decoder"), session("joiner")
        self._stateless = not model["predictor_layers"]

    def recognise(self, features: FloatArray, *, beam: int) -> list[FoundToken]:
        """The tokens of a whole recording of ``[T, F]`` features."""
        stream = self.stream(beam=beam)
        stream.accept(features, final=True)
        return stream.found

    def stream(self, *, beam: int) -> TransducerStream:
        """Starts a recording that arrives piece by piece."""
        return TransducerStream(self, beam=beam)

    def project(self, encoded: FloatArray) -> FloatArray:
        """The encoder's file does it."""
        return encoded

    def start(self) -> tuple[FloatArray, Memory]:
        """What the predictor says before the first token."""
        if self._stateless:
            return self.predict(np.array([0]), (np.zeros((1, 2), np.int64),))
        shapes = {item.name: item.shape for item in self._decoder.get_inputs()}
        zeros = (np.zeros((1, shapes[name][0], shapes[name][2]), np.float32) for name in ("h", "c"))
        return self.predict(np.array([0]), tuple(zeros))

    def predict(self, tokens: npt.NDArray[np.int64], memory: Memory) -> tuple[FloatArray, Memory]:
        """``[K, J]`` after ``[K]`` tokens, and the next state, hypotheses first."""
        tokens = tokens.astype(np.int64)
        if self._stateless:
            context = np.concatenate([memory[0][:, 1:], tokens[:, None]], axis=1)
            return self._decoder.run(None, {"y": context})[0], (context,)
        states = [np.ascontiguousarray(part.swapaxes(0, 1)) for part in memory]
        output, *after = self._decoder.run(None, {"y": tokens, "h": states[0], "c": states[1]})
        return output, tuple(part.swapaxes(0, 1) for part in after)

    def score(self, total: FloatArray) -> FloatArray:
        """``[K, V]`` logits of sums ``[K, J]``."""
        nothing = np.zeros_like(total)
        logits: FloatArray = self._joiner.run(None, {"encoder_out": total, "decoder_out": nothing})[
            0
        ]
        return logits
