"""Trained nets of other toolkits to start from: ``init=torchaudio:PATH``.

Weights are read by torch's restricted unpickler, which makes tensors and plain containers only; a
file with anything else in it is refused before any of it runs.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from omnisparse.errors import DataError, FormatError, OmnisparseError

if TYPE_CHECKING:
    from torch import Tensor

    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

PREFIX = "torchaudio:"
"""Start of an ``init`` that names a net of torchaudio."""

_NAMES = (
    ("transcriber.input_linear.", "encoder.input_projection."),
    ("transcriber.transformer.", "encoder.emformer."),
    ("transcriber.output_linear.", "joiner.encoder_projection.linear."),
    ("transcriber.layer_norm.", "joiner.encoder_projection.norm."),
    ("predictor.embedding.", "predictor.embedding."),
    ("predictor.input_layer_norm.", "predictor.input_norm."),
    ("predictor.lstm_layers.", "predictor.layers."),
    ("predictor.linear.", "joiner.predictor_projection.linear."),
    ("predictor.output_layer_norm.", "joiner.predictor_projection.norm."),
    ("joiner.linear.", "joiner.output."),
)
"""Starts of names there and here."""

_BY_TOKEN = ("predictor.embedding.weight", "joiner.output.weight", "joiner.output.bias")
"""Tensors with a row for each token."""

_ASSETS = "pipeline-assets"
"""Folder, beside that of the weights, where torchaudio keeps tokenizer and statistics."""


@dataclass(frozen=True)
class ForeignNet:
    """A net of torchaudio with our names and our order of tokens."""

    state: Mapping[str, Tensor]
    tokenizer: Tokenizer
    extractor: FeatureExtractor

    kind: ClassVar[str] = "transducer"

    @property
    def vocab_size(self) -> int:
        """Tokens with blank."""
        return len(self.state["joiner.output.bias"])


def is_foreign(init: str) -> bool:
    """Whether an ``init`` names a net of another toolkit."""
    return init.startswith(PREFIX)


def weights_file(init: str) -> Path:
    """The file of weights that an ``init`` names.

    Raises:
        OmnisparseError: If there is none, or the folder has several.
    """
    place = Path(init.removeprefix(PREFIX)).expanduser()
    if place.is_file():
        return place
    if not place.is_dir():
        raise OmnisparseError(f"{place}: no such file; {PREFIX}PATH is a .pt file or its folder")
    return _only(place, "*.pt", "weights")


def identity_of(init: str) -> str:
    """A name of the weights: other weights have another name."""
    digest = hashlib.sha256()
    with weights_file(init).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"torchaudio/{digest.hexdigest()[:16]}"


def load_foreign_tokenizer(init: str) -> Tokenizer:
    """The word pieces of a net of torchaudio, in the order of our ids.

    Raises:
        OmnisparseError: If they are missing or damaged.
    """
    return _pieces(weights_file(init))[0]


def load_foreign(init: str) -> ForeignNet:
    """Read ``torchaudio:PATH``: weights, word pieces and statistics of the features.

    Args:
        init: PATH is the ``.pt`` file, or a folder with only one: a state dict of torchaudio's
            ``RNNT``, or a checkpoint of its recipe. A ``*.model`` of sentencepiece and a
            ``*stats*.json`` lie beside it, or in ``pipeline-assets`` beside its folder.

    Raises:
        OmnisparseError: If a file is missing, is not of such a net, or holds code.
    """
    path = weights_file(init)
    tensors = _read_tensors(path)
    state: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        pair = next((pair for pair in _NAMES if name.startswith(pair[0])), None)
        if pair is None:
            unknown.append(name)
        else:
            state[pair[1] + name.removeprefix(pair[0])] = tensor
    missing = [theirs for theirs, ours in _NAMES if not any(n.startswith(ours) for n in state)]
    if unknown or missing:
        what = f"{missing[0]}* is missing" if missing else f"{unknown[0]} is unknown"
        raise FormatError(f"{path}: not the weights of torchaudio's emformer_rnnt: {what}")
    tokenizer, order = _pieces(path)
    for name in _BY_TOKEN:
        rows = len(state[name]) if name in state and state[name].ndim else 0
        if rows != len(order):
            raise FormatError(
                f"{path}: its net has {rows} symbols ({name}), but its word pieces are "
                f"{len(order) - 1} and a blank: another vocabulary"
            )
        state[name] = state[name][list(order)]
    return ForeignNet(state, tokenizer, load_foreign_extractor(init))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pt`` file by name, in float32."""
    import torch
    from torch import Tensor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by other writers
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(
            f"{path}: holds more than tensors, so it is not read ({reason})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(f"{path}: cannot be read as a .pt file ({reason})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise FormatError(f"{path}: no state dict: tensors by their names are expected")
    named = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise FormatError(f"{path}: {name} is no tensor of floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise FormatError(f"{path}: {name} holds NaN or infinite values")
    return {name: tensor.float() for name, tensor in named.items()}


def _pieces(path: Path) -> tuple[Tokenizer, list[int]]:
    from omnisparse.data.foreign_pieces import reordered

    file = _beside(path, "*.model", "word pieces of sentencepiece")
    try:
        found = reordered(file.read_bytes())
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return found.tokenizer, list(found.order)


def load_foreign_extractor(init: str) -> FeatureExtractor:
    """The features that a net of torchaudio reads.

    Raises:
        OmnisparseError: If their statistics are missing or damaged.
    """
    from omnisparse.data.features import FeatureExtractor

    file = _beside(weights_file(init), "*stats*.json", "statistics of the features")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        mean, inverse = ([float(value) for value in found[key]] for key in ("mean", "invstddev"))
        return FeatureExtractor(
            num_bins=len(mean),
            stack=1,
            mean=mean,
            std=[1.0 / value for value in inverse],
            kind="torchaudio",
        )
    except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{file}: no mean and invstddev of each bin ({error})") from error


def _beside(path: Path, pattern: str, what: str) -> Path:
    """The file of a pattern beside the weights, or where torchaudio's downloads lie."""
    for folder in (path.parent, path.parent / _ASSETS, path.parent.parent / _ASSETS):
        if any(folder.glob(pattern)):
            return _only(folder, pattern, what)
    raise OmnisparseError(f"{path}: its {what} ({pattern}) are not beside it")


def _only(folder: Path, pattern: str, what: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise OmnisparseError(f"{folder}: one file {pattern} ({what}) is expected, found: {names}")
    return files[0]
