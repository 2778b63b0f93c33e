"""The stored result of a search: the best spec of every size."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnisparse.errors import FormatError
from omnisparse.sparsity.space import SubnetSpec

_FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontEntry:
    """The best subnet found of one size; rates in percent."""

    size: str
    """The size as it was requested."""
    requested: int
    """Non-zero parameters of the whole model that this size requests."""
    nonzero: int
    """Non-zero parameters that the model has. With blocks, whole blocks may give fewer."""
    wer: float
    """Word error rate on the whole dev set."""
    wer_low: float | None
    """Lower end of its 95 % interval; None where there is none."""
    wer_high: float | None
    """Upper end of its 95 % interval; None where there is none."""
    score: float
    """The value that the search minimised on its subset: loss per token, or errors per word."""
    uniform_wer: float
    """Word error rate of the same size with one sparsity in all layers."""
    uniform_score: float
    """Score of that."""
    evaluations: int
    """Evaluated subnets of this size, over all searches whose results were joined."""
    dominated: bool
    """Whether a smaller model of this front is at least as good."""
    spec: SubnetSpec
    """Sparsity of every matrix."""
    cer: float | None = None
    """Character error rate on the whole dev set; None in fronts of earlier versions."""
    latency_ms: float | None = None
    """Milliseconds for 40 ms of audio on the machine of the search; None where the size is none."""

    @property
    def key(self) -> tuple[str, int]:
        """What a front has one entry of: a time, or a number of non-zeros."""
        return (self.size, 0) if self.latency_ms is not None else ("", self.requested)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "spec": {"sparsity": dict(self.spec.sparsity)}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Front:
    """The best subnets found for some weights, one per size."""

    identity: str
    """Step and checksum of the weights that were searched (`Training.identity`)."""
    journal: str
    """Name of the journal; it differs for other weights, utterances or measures."""
    entries: tuple[FrontEntry, ...]
    """The entries, the smallest first."""

    def joined(self, earlier: Front | None) -> Front:
        """Join this front with an earlier one of the same journal: the better entry of each size.

        Returns:
            The joined front, the smallest size first, with ``dominated`` computed anew.
        """
        before = earlier.entries if earlier and earlier.journal == self.journal else ()
        best = {entry.key: entry for entry in before}
        for entry in self.entries:
            known = best.get(entry.key)
            better = entry if known is None or entry.wer <= known.wer else known
            spent = max(one.evaluations for one in (entry, better))
            best[entry.key] = replace(better, evaluations=spent)
        ordered = sorted(best.values(), key=lambda entry: entry.nonzero)
        marked = (
            replace(entry, dominated=any(other.wer <= entry.wer for other in ordered[:index]))
            for index, entry in enumerate(ordered)
        )
        return replace(self, entries=tuple(marked))

    def to_json(self, facts: Mapping[str, Any]) -> str:
        """The front as a JSON document; `facts` are further entries about the search."""
        head = {"format": _FORMAT, "identity": self.identity, "journal": self.journal}
        front = [entry.to_dict() for entry in self.entries]
        return json.dumps({**head, **facts, "front": front}, indent=1) + "\n"

    def pick(self, requested: int) -> FrontEntry:
        """The entry whose size is exactly this many non-zeros.

        Raises:
            ValueError: If there is none; names the existing ones.
        """
        for entry in self.entries:
            if entry.requested == requested:
                return entry
        there = ", ".join(f"{entry.size} ({entry.requested})" for entry in self.entries) or "none"
        raise ValueError(
            f"the front has no model of {requested} non-zero parameters; it has {there}; "
            "`omnisparse search --sizes` adds sizes"
        )

    def pick_time(self, seconds: float) -> FrontEntry:
        """The entry of the lowest error rate among those that took at most so long when searched.

        Args:
            seconds: For 40 ms of audio.

        Raises:
            ValueError: If there is none; names the times there are.
        """
        timed = [entry for entry in self.entries if entry.latency_ms is not None]
        fitting = [entry for entry in timed if (entry.latency_ms or 0.0) <= 1000 * seconds]
        if fitting:
            return min(fitting, key=lambda entry: (entry.wer, entry.nonzero))
        there = ", ".join(f"{entry.size} ({entry.latency_ms:.3f} ms)" for entry in timed) or "none"
        raise ValueError(
            f"no model of the front takes at most {1000 * seconds:g} ms; it has times of {there}; "
            "`omnisparse search --sizes` adds times, such as 5ms"
        )

    def pick_bytes(self, limit: int, bytes_of: Callable[[FrontEntry], int]) -> FrontEntry:
        """The entry of the lowest error rate among those whose files have at most ``limit`` bytes.

        Args:
            limit: Bytes.
            bytes_of: Bytes of the files that would be written for an entry.

        Raises:
            ValueError: If none fits; names the bytes of each.
        """
        sizes = [(entry, bytes_of(entry)) for entry in self.entries]
        fitting = [entry for entry, size in sizes if size <= limit]
        if fitting:
            return min(fitting, key=lambda entry: (entry.wer, entry.nonzero))
        there = ", ".join(f"{entry.size} ({size}B)" for entry, size in sizes) or "none"
        raise ValueError(
            f"no model of the front has at most {limit} bytes; it has {there}; "
            "`omnisparse search --sizes` adds sizes"
        )


def read_front(path: Path) -> Front:
    """Read a front that a search has stored: its file, or the folder with its ``front.json``.

    Raises:
        FormatError: If the file is missing or is not a front.
    """
    path = path / "front.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        message = f"{path}: there is no search result; `omnisparse search` makes one"
        raise FormatError(message) from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read as JSON") from error
    version = document.get("format") if isinstance(document, dict) else None
    if version != _FORMAT:
        raise FormatError(f"{path}: format {version!r} of a front; known: {_FORMAT}")
    try:
        return Front(
            identity=str(document["identity"]),
            journal=str(document["journal"]),
            entries=tuple(_entry(fields) for fields in document["front"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: not a front ({error})") from error


def _entry(fields: Mapping[str, Any]) -> FrontEntry:
    """A stored entry.

    Raises:
        KeyError: If it has no spec.
        TypeError: If a field is missing, unknown, or not of its type.
        ValueError: If its spec is not a legal spec.
    """
    entry = FrontEntry(**{**fields, "spec": SubnetSpec.from_json(json.dumps(fields["spec"]))})
    kinds = {"size": str, "requested": int, "nonzero": int, "evaluations": int, "dominated": bool}
    for name in entry.__dataclass_fields__:
        kind = kinds.get(name, float)
        value = getattr(entry, name)
        if value is None and name in ("wer_low", "wer_high", "cer", "latency_ms"):
            continue
        if name != "spec" and type(value) is not kind:
            raise TypeError(f"{name} is {value!r}, not of type {kind.__name__}")
    return entry
