"""omnisparse: train one speech recogniser, extract a deployable model of any size.

The names below are imported on first use, so ``import omnisparse`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from omnisparse.version import __version__

if TYPE_CHECKING:
    from omnisparse.deploy.recognizer import Recognizer
    from omnisparse.generic.packed import load_packed
    from omnisparse.generic.sandwich import SandwichTraining
    from omnisparse.pipeline.extract_any import extract
    from omnisparse.runs.directory import load_model
    from omnisparse.runs.opening import open_model
    from omnisparse.sparsity.prunable import find_prunable
    from omnisparse.sparsity.supernet import Supernet

__all__ = [
    "Recognizer",
    "SandwichTraining",
    "Supernet",
    "__version__",
    "extract",
    "find_prunable",
    "load_model",
    "load_packed",
    "open_model",
]

_HOMES = {
    "Recognizer": "omnisparse.deploy.recognizer",
    "SandwichTraining": "omnisparse.generic.sandwich",
    "Supernet": "omnisparse.sparsity.supernet",
    "extract": "omnisparse.pipeline.extract_any",
    "find_prunable": "omnisparse.sparsity.prunable",
    "load_model": "omnisparse.runs.directory",
    "load_packed": "omnisparse.generic.packed",
    "open_model": "omnisparse.runs.opening",
}


def __getattr__(name: str) -> Any:
    """Imports a public name from its room on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
