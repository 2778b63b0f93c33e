"""What recognises one recording: our own kernels, or torch for nets that they do not know."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omnisparse.artifact.packed import PackedModel
from omnisparse.deploy.las import Las
from omnisparse.deploy.layers import WeightReader
from omnisparse.deploy.tokens import FoundToken
from omnisparse.deploy.transducer import Transducer
from omnisparse.errors import FormatError, OmnisparseError

FloatArray = npt.NDArray[np.float32]


class EngineStream(Protocol):
    """One recording on its way."""

    num_frames: int

    @property
    def found(self) -> Sequence[FoundToken]:
        """All tokens so far; with a beam, later frames may change the newest."""
        ...

    def accept(self, features: FloatArray, *, final: bool) -> None:
        """Takes the next ``[T, F]`` features, T may be 0."""
        ...


class Engine(Protocol):
    """A net that recognises one recording at a time."""

    kind: str

    @property
    def tells_times(self) -> bool:
        """Whether its tokens have places and probabilities."""
        ...

    @property
    def time_reduction(self) -> int:
        """Feature frames of an encoder frame."""
        ...

    def recognise(self, features: FloatArray, *, beam: int) -> Sequence[FoundToken]:
        """The tokens of a whole recording of ``[T, F]`` features."""
        ...

    def stream(self, *, beam: int) -> EngineStream:
        """Starts a recording that arrives piece by piece; transducers only."""
        ...


def engine_of(model: Any) -> Engine:
    """An engine as it is, a net of training as one."""
    if hasattr(model, "recognise"):
        engine: Engine = model
        return engine
    from omnisparse.deploy.torch_engine import TorchEngine

    return TorchEngine(model)


def needs_torch(model: Any) -> str | None:
    """Why a net cannot run on our kernels; None where it can.

    Args:
        model: Its configuration.
    """
    encoder = model.get("encoder", "lstm") if model.get("kind") == "transducer" else "lstm"
    article = "an" if encoder == "emformer" else "a"
    return None if encoder == "lstm" else f"a transducer with {article} {encoder} encoder"


def require_torch(what: str) -> None:
    """Refuses what cannot be done without torch.

    Raises:
        OmnisparseError: If it is not installed; says how to install it.
    """
    try:
        missing = find_spec("torch") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise OmnisparseError(f"{what} needs torch: pip install 'omnisparse[train]'")


def build_engine(files: PackedModel) -> Transducer | Las:
    """Packs the weights of a net for our kernels.

    Args:
        files: The net.

    Raises:
        FormatError: If weights and configuration do not fit, or no kernel knows a layer.
    """
    model = files.model
    reader = WeightReader(files)
    try:
        for name, value in model.items():
            if name.endswith("_layers") and int(value) > len(files.names):
                raise ValueError(f"{name} is {value} with {len(files.names)} tensors")
        owners: dict[str, type[Transducer] | type[Las]] = {"transducer": Transducer, "las": Las}
        engine = owners[model["kind"]](reader, model)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{files.place}: its weights do not fit its model ({reason})") from error
    reader.finish()
    engine.num_bytes, engine.kinds = reader.num_bytes, reader.kinds
    return engine
