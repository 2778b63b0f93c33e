"""Trained nets of other toolkits to start from: ``init=torchaudio:PATH``, ``init=nemo:PATH``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from omnisparse.runs import foreign_nemo, foreign_torchaudio
from omnisparse.runs.foreign_tensors import ForeignNet

if TYPE_CHECKING:
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

__all__ = [
    "ForeignNet",
    "identity_of",
    "is_foreign",
    "load_foreign",
    "load_foreign_extractor",
    "load_foreign_tokenizer",
    "weights_file",
]

_TOOLKITS: dict[str, ModuleType] = {
    foreign_torchaudio.PREFIX: foreign_torchaudio,
    foreign_nemo.PREFIX: foreign_nemo,
}


def _toolkit(init: str) -> ModuleType:
    return next(module for prefix, module in _TOOLKITS.items() if init.startswith(prefix))


def is_foreign(init: str) -> bool:
    """Whether an ``init`` names a net of another toolkit."""
    return init.startswith(tuple(_TOOLKITS))


def weights_file(init: str) -> Path:
    """The file of weights that an ``init`` names.

    Raises:
        OmnisparseError: If there is none, or the folder has several.
    """
    path: Path = _toolkit(init).weights_file(init)
    return path


def identity_of(init: str) -> str:
    """A name of the weights: other weights have another name."""
    digest = hashlib.sha256()
    with weights_file(init).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{init.partition(':')[0]}/{digest.hexdigest()[:16]}"


def load_foreign_tokenizer(init: str) -> Tokenizer:
    """The word pieces of such a net, in the order of our ids.

    Raises:
        OmnisparseError: If they are missing or damaged.
    """
    tokenizer: Tokenizer = _toolkit(init).load_tokenizer(init)
    return tokenizer


def load_foreign_extractor(init: str) -> FeatureExtractor:
    """The features that such a net reads.

    Raises:
        OmnisparseError: If what describes them is missing or damaged, or they are not ours.
    """
    extractor: FeatureExtractor = _toolkit(init).load_extractor(init)
    return extractor


def load_foreign(init: str) -> ForeignNet:
    """The weights of such a net, with its word pieces and features.

    Raises:
        OmnisparseError: If a file is missing, is not of such a net, or holds code.
    """
    net: ForeignNet = _toolkit(init).load_net(init)
    return net
