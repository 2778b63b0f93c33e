"""MODEL as its files hold it, for runtimes that need no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omnisparse.artifact import MappedState, is_artifact
from omnisparse.artifact.packed import PackedModel, dense_tensor, read_packed_artifact
from omnisparse.artifact.reading import trained_seconds_of
from omnisparse.artifact.tensorfile import Array
from omnisparse.nested import is_nested_place, read_nested
from omnisparse.runs.directory import (
    WEIGHTS,
    newest_weights,
    no_sizes,
    read_description,
    require_directory,
)
from omnisparse.training.checkpoint import is_checkpoint


def open_model(path: Path | str, *, size: str | None = None) -> PackedModel:
    """Open MODEL without torch and without making its weights dense.

    Args:
        path: As of :func:`load_model`.
        size: As of :func:`load_model`.

    Raises:
        OmnisparseError: As of :func:`load_model`.
        ValueError: As of :func:`load_model`.
    """
    arrays: Mapping[str, Array]
    if is_nested_place(path):
        found = read_nested(path, size)
        arrays = found.arrays
        model, features, tokenizer = found.model, found.features, found.tokenizer
        trained_seconds = trained_seconds_of(found.config)
    else:
        path = Path(path)
        require_directory(path)
        if size is not None:
            raise no_sizes(path, size)
        if is_artifact(path):
            return read_packed_artifact(path)
        run = path.resolve().parents[1] if is_checkpoint(path) else path
        if is_checkpoint(path):
            arrays = MappedState(path / WEIGHTS)
        else:  # a layer that only training uses tells where words are
            arrays, _ = newest_weights(path, with_heads=True)
        description = read_description(run)
        model, features = description.model, description.features
        tokenizer = (run / "tokenizer.model").read_bytes()
        trained_seconds = description.trained_seconds
    return PackedModel(
        model,
        features,
        tokenizer,
        tuple(arrays),
        lambda n: dense_tensor(n, arrays[n]),
        str(path),
        trained_seconds,
    )
