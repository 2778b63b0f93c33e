"""The stored result of a search: the best spec of every size, and picking one from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnisparse.errors import FormatError
from omnisparse.sparsity.space import SubnetSpec

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontEntry:
    """The best subnet found of one size; rates in percent."""

    size: str
    """The size as it was asked for."""
    nonzero: int
    """Non-zero parameters of the whole model."""
    wer: float
    """Word error rate on the whole dev set."""
    wer_low: float
    """Lower end of its 95 % interval."""
    wer_high: float
    """Upper end of its 95 % interval."""
    score: float
    """What the search minimised, on its subset: loss per token, or errors per word."""
    uniform_wer: float
    """Word error rate of the same size with one sparsity in all layers."""
    uniform_score: float
    """Score of that."""
    evaluations: int
    """Subnets of this size that were evaluated."""
    dominated: bool
    """Whether a smaller one of this front is at least as good."""
    spec: SubnetSpec
    """Sparsity of every matrix."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "spec": {"sparsity": dict(self.spec.sparsity)}}


def front_to_json(entries: Sequence[FrontEntry], facts: Mapping[str, Any]) -> str:
    """The front as a document; `facts` says how it came about."""
    front = [entry.to_dict() for entry in entries]
    return json.dumps({"format": _FORMAT, **facts, "front": front}, indent=1) + "\n"


def read_front(path: Path) -> list[FrontEntry]:
    """Read a front that a search has stored.

    Raises:
        FormatError: If it is not one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        message = f"{path}: there is no front; `omnisparse search` makes one"
        raise FormatError(message) from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read as JSON") from error
    version = document.get("format") if isinstance(document, dict) else None
    if version != _FORMAT:
        raise FormatError(f"{path}: format {version!r} of a front; known: {_FORMAT}")
    try:
        return [
            FrontEntry(**{**entry, "spec": SubnetSpec.from_json(json.dumps(entry["spec"]))})
            for entry in document["front"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: not a front ({error})") from error


def pick(entries: Sequence[FrontEntry], nonzero: int) -> FrontEntry:
    """The entry of exactly this many non-zeros.

    Raises:
        ValueError: If there is none; names those there are.
    """
    for entry in entries:
        if entry.nonzero == nonzero:
            return entry
    there = ", ".join(f"{entry.size} ({entry.nonzero})" for entry in entries) or "none"
    raise ValueError(
        f"the front has no model of {nonzero} non-zero parameters; it has {there}; "
        "`omnisparse search --sizes` adds sizes"
    )
