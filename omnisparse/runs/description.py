"""``model.json`` of a run: the net whose weights it holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omnisparse.durable import replacing
from omnisparse.errors import FormatError

DESCRIPTION = "model.json"
"""The file."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """Description of the net whose weights a run holds."""

    model: dict[str, Any]
    """Configuration of the model with ``kind``, ``input_dim`` and ``vocab_size``."""
    features: dict[str, Any]
    """``FeatureExtractor.to_dict()``."""
    prunable: list[str]
    """Names of the matrices that an extraction may prune."""
    parameters: list[str]
    """Names of all parameters of the net as it is shipped, in model order."""
    method: str
    """Kind of the training method."""
    block: str = "1x1"
    """Weights that its masks kept or dropped together."""
    single: list[str] = field(default_factory=list)
    """Names of the prunable matrices whose masks were of single weights, whatever ``block`` is."""
    trained_seconds: float | None = None
    """Longest utterance that it was trained on; None in runs of earlier versions."""
    training_only: list[str] = field(default_factory=list)
    """Names of the parameters that only training uses (a CTC layer): in no artifact, no count."""

    @property
    def shipped_model(self) -> dict[str, Any]:
        """Configuration of the model as it is shipped."""
        return {**self.model, "ctc_weight": 0.0} if self.training_only else self.model

    def with_heads(self) -> RunDescription:
        """The same with the layers that only training uses counted as parts of the net."""
        parameters = [*self.parameters, *self.training_only]
        return replace(self, parameters=parameters, training_only=[])


def write_description(run: Path, description: RunDescription) -> None:
    """Write ``model.json`` of ``run``."""
    document = {"format": _FORMAT, **asdict(description)}
    with replacing(run / DESCRIPTION) as partial:
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_description(run: Path) -> RunDescription:
    """Read ``model.json`` of ``run``.

    Raises:
        FormatError: If ``run`` is not a run directory, or of an unknown format.
    """
    try:
        document = json.loads((run / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{run}: not a run directory (it has no {DESCRIPTION})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{run / DESCRIPTION}: cannot be read as JSON") from error
    version = document.pop("format", None) if isinstance(document, dict) else None
    if version != _FORMAT:
        raise FormatError(f"{run / DESCRIPTION}: format {version!r}; known: {_FORMAT}")
    try:
        return RunDescription(**document)
    except TypeError as error:
        raise FormatError(f"{run / DESCRIPTION}: {error}") from error
