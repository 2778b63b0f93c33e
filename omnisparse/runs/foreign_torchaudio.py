"""torchaudio's Emformer RNN-T to start from: ``init=torchaudio:PATH``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from omnisparse.errors import DataError, FormatError, OmnisparseError
from omnisparse.runs.foreign_tensors import ForeignNet, read_tensors

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


def load_net(init: str) -> ForeignNet:
    """Read ``torchaudio:PATH``: weights, word pieces and statistics of the features.

    Args:
        init: PATH is the ``.pt`` file, or a folder with only one: a state dict of torchaudio's
            ``RNNT``, or a checkpoint of its recipe. A ``*.model`` of sentencepiece and a
            ``*stats*.json`` lie beside it, or in ``pipeline-assets`` beside its folder.

    Raises:
        OmnisparseError: If a file is missing, is not of such a net, or holds code.
    """
    path = weights_file(init)
    tensors = read_tensors(path, str(path))
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
    return ForeignNet(state, tokenizer, load_extractor(init))


def load_tokenizer(init: str) -> Tokenizer:
    """The word pieces of a net of torchaudio, in the order of our ids.

    Raises:
        OmnisparseError: If they are missing or damaged.
    """
    return _pieces(weights_file(init))[0]


def _pieces(path: Path) -> tuple[Tokenizer, list[int]]:
    from omnisparse.data.foreign_pieces import reordered

    file = _beside(path, "*.model", "word pieces of sentencepiece")
    try:
        found = reordered(file.read_bytes())
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return found.tokenizer, list(found.order)


def load_extractor(init: str) -> FeatureExtractor:
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
