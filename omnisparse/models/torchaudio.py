"""torchaudio, where it loads: it is compiled for some versions of torch only.

Only the transducer loss and the Emformer need it. The loss has a stand-in
(:mod:`omnisparse.models.rnnt_loss`), the Emformer has none.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata
from typing import Any

from omnisparse.errors import OmnisparseError
from omnisparse.version import TESTED_PAIRS


@cache
def find_torchaudio() -> tuple[Any, str]:
    """The package, or None; and why it cannot be used, in one line, or an empty text."""
    try:
        package = importlib.import_module("torchaudio")
        importlib.import_module("torchaudio.functional")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchaudio":
            raise
        return None, "torchaudio is not installed"
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        versions = " beside ".join(f"{name} {_version(name)}" for name in ("torchaudio", "torch"))
        reason = " ".join(str(error).split())[:120]
        return None, f"{versions} does not load ({reason}); pairs that do: {pairs_that_load()}"
    return package, ""


def require_torchaudio(for_what: str) -> Any:
    """The package.

    Raises:
        OmnisparseError: If it cannot be loaded: what it is needed for, and the pairs to install.
    """
    package, reason = find_torchaudio()
    if package is None:
        raise OmnisparseError(f"{for_what} needs torchaudio: {reason}")
    return package


def pairs_that_load() -> str:
    """The tested pairs, as ``torch==A torchaudio==B or ...``."""
    return " or ".join(f"torch=={torch} torchaudio=={audio}" for torch, audio in TESTED_PAIRS)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(unknown version)"
