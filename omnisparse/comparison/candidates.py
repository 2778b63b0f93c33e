"""Which row of a comparison a run belongs to: that of its method, or that of its configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from omnisparse.comparison.rows import (
    METHODS,
    PART,
    REGISTERED,
    ROWS,
    SUPERNET,
    SUPERNETS,
    TableRows,
)
from omnisparse.config import ConfigError, RunConfig, config_to_dict, load_config
from omnisparse.errors import OmnisparseError
from omnisparse.methods import has_every_size, passes_of
from omnisparse.runs import directory as runs
from omnisparse.runs.record import SOURCE_KEYS, RunRecord, read_record
from omnisparse.sparsity.budget import num_nonzero, num_parameters
from omnisparse.training.tracking import flatten

By = Literal["method", "configuration"]

REFERENCE = "reference"
"""The row of the first run, where rows are configurations."""

WITHOUT_EFFECT = frozenset(
    {
        "name", "seed", "tracking", "corpus.root", "corpus.dev", "corpus.test", "training.threads",
        "training.log_every", "training.checkpoint_every", "training.keep_checkpoints",
        "training.evaluate_every", "training.evaluate_utterances", "method.size",
    }
)  # fmt: skip
"""Keys in which runs of one row may differ: none changes what is trained but the seed, and the
size that a net was pruned to, which its column says."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run, and what it is in the table."""

    path: Path
    record: RunRecord
    row: str
    is_supernet: bool
    """Whether models of any size can be extracted from it."""
    parameters: int
    nonzero: int


def read_candidates(paths: Sequence[Path], *, by: By) -> tuple[list[Candidate], TableRows]:
    """Read what runs are, and the rows that they make.

    Args:
        paths: The runs, each counted once however it is named; those that are only the first steps
            of others are left out. Where rows are configurations, the first is of the row that
            all others are compared with.
        by: What a row is: a method of ``ROWS``, or everything of one configuration.

    Raises:
        OmnisparseError: If a path is not a run, or it cannot be told to which row it belongs.
    """
    for path in paths:
        runs.require_directory(path)
        runs.read_description(path)  # an artifact is told so, not that it lacks a file
    found = list(dict.fromkeys(path.resolve() for path in paths))
    found = [path for path in found if read_record(path).row != PART]
    if not found:
        raise OmnisparseError("the runs are only the first steps of others; name those")
    if by == "method":
        return [_read(path, row=None) for path in found], METHODS
    configs = [read_config(path) for path in found]
    names, rows = configuration_rows(configs, name=found[0].name)
    return [_read(path, row=row) for path, row in zip(found, names, strict=True)], rows


def _read(path: Path, *, row: str | None) -> Candidate:
    """Read a run; without a row given, it has that of its method."""
    description = runs.read_description(path)
    weights, checkpoint = runs.newest_weights(path)
    record = read_record(checkpoint)
    state = {name: weights[name] for name in description.parameters}
    is_supernet = has_every_size(description.method)
    if row is None:
        row = record.row or derive_row(read_config(path))
        if row not in ROWS:
            raise OmnisparseError(f"{path}: row {row!r} is unknown; legal: {', '.join(ROWS)}")
        is_supernet = row in SUPERNETS
    return Candidate(
        path=path,
        record=record,
        row=row,
        is_supernet=is_supernet,
        parameters=num_parameters(state),
        nonzero=num_nonzero(state, description.prunable),
    )


def read_config(run: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        ConfigError: If it cannot be read.
    """
    return load_config(run / "config.yaml")


def derive_row(config: RunConfig) -> str:
    """The row of a run that was trained without naming one, from its configuration."""
    kind: str = config.method.kind
    if kind in REGISTERED:
        return kind
    if kind == "sandwich":
        return SUPERNET
    shape = config.model
    factored = any(getattr(shape, f"{part}_projection", 0) for part in ("encoder", "decoder"))
    pruned = "pruning" in kind
    distilled = kind == "distillation" or bool(getattr(config.method, "distillation", None))
    words = [
        word
        for word, present in (("factored", factored), ("distilled", distilled), ("pruned", pruned))
        if present
    ]
    return "_".join(words) or "base"


def configuration_rows(configs: Sequence[RunConfig], *, name: str) -> tuple[list[str], TableRows]:
    """The row of each configuration, labelled by what differs from the first one.

    Args:
        configs: The configurations, at least one.
        name: What people call the first.

    Returns:
        The row of each, and all rows: the reference, then the others by label.
    """
    reference = configs[0]
    chosen = {REFERENCE: reference}
    names = []
    for config in configs:
        row = next((row for row, known in chosen.items() if not differences(config, known)), None)
        if row is None:
            row = _label(differences(config, reference))
            chosen[row] = config
        names.append(row)
    others = sorted((row for row in chosen if row != REFERENCE), key=_natural)
    own: dict[str, Any] = {}
    for row in others:
        own |= differences(reference, chosen[row])
    return names, TableRows(
        heading="configuration",
        labels={row: row for row in (REFERENCE, *others)},
        rival=REFERENCE,
        compared=frozenset(others),
        picture="differences",
        note=f"{REFERENCE}: {name}" + (f", with {_label(own)}" if own else ""),
    )


def differences(config: RunConfig, reference: RunConfig) -> dict[str, Any]:
    """What distinguishes ``config`` from ``reference``, as keys and values of overrides.

    A section of another kind than the reference's, such as ``method``, gives its kind and what
    differs from the defaults of that. Runs that a configuration names are compared by what they
    were trained as, seeds aside; an artifact, or a run that is not there any more, by its path.
    Lengths that come to the same utterance passes are the same.
    """
    found = dict(_differences(config, reference, ""))
    if math.isclose(_passes(config), _passes(reference), rel_tol=1e-6):
        found.pop("training.epochs", None)
    return found


def _passes(config: RunConfig) -> float:
    """Passes over the training set, those of subnets included."""
    return config.training.epochs * passes_of(config.method)


def _differences(own: Any, base: Any, key: str) -> Iterator[tuple[str, Any]]:
    if key in WITHOUT_EFFECT:
        return
    if not is_dataclass(own):
        if not _is_same(key, own, base):
            yield key, own
        return
    alike = type(own) is type(base)
    inner = [
        found
        for item in fields(own)
        for found in _differences(
            getattr(own, item.name),
            getattr(base, item.name) if alike else _default(item),
            f"{key}.{item.name}" if key else item.name,
        )
    ]
    if not alike and (base is not None or not inner):
        yield key, getattr(own, "kind", "{}")
    yield from inner


def _default(item: Field[Any]) -> Any:
    """The default of a field; ``MISSING``, which equals no value, where it has none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def _is_same(key: str, own: Any, base: Any) -> bool:
    is_source = key.rpartition(".")[2] in SOURCE_KEYS
    if is_source and isinstance(own, str) and isinstance(base, str):
        return bool(_source(own) == _source(base))
    return bool(own == base)


def _source(path: str, trail: tuple[Path, ...] = ()) -> Any:
    """What stands for a run in a configuration: its settings; for anything else its path."""
    place = Path(path).resolve()
    checkpoint = place.name if place.parent.name == "checkpoints" else None
    run = place if checkpoint is None else place.parents[1]
    try:
        if run in trail:
            return str(place)  # a run that names itself, through a link that has moved on
        config = read_config(run)
    except ConfigError:
        return str(place)
    settings = {
        key: _source(value, (*trail, run))
        if key.rpartition(".")[2] in SOURCE_KEYS and isinstance(value, str)
        else value
        for key, value in flatten(config_to_dict(config)).items()
        if key not in WITHOUT_EFFECT and key.partition(".")[0] not in WITHOUT_EFFECT
    }
    return settings, checkpoint


def _label(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_text(value)}" for key, value in found.items())


def _text(value: Any) -> str:
    """A value as an override is written."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _natural(label: str) -> list[str | float]:
    """Sorts numbers within text by their value: text and numbers take turns."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]
