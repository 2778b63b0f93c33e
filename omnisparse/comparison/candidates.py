"""The row of a comparison that a run belongs to: by its method, or by its configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from omnisparse.comparison.rows import (
    METHODS,
    PRUNED_ONCE,
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
from omnisparse.runs.record import PART, SOURCE_KEYS, RunRecord, read_record
from omnisparse.runs.weights import is_kept_size, kept_sizes, run_name
from omnisparse.sparsity.budget import num_nonzero, num_parameters
from omnisparse.training.tracking import flatten

By = Literal["method", "configuration"]

LAST = "last"
"""The weights that a training ends with."""

REFERENCE = "reference"
"""The row of the first run, if rows are configurations."""

WITHOUT_EFFECT = frozenset(
    {
        "name", "seed", "tracking", "corpus.root", "corpus.dev", "corpus.test", "training.threads",
        "training.log_every", "training.checkpoint_every", "training.keep_checkpoints",
        "training.evaluate_every", "training.evaluate_utterances", "method.size",
    }
)  # fmt: skip
"""Keys in which runs of one row may differ. Only the seed and the pruned size change the trained
net; the size is the column of the table."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A run, and its place in the table."""

    path: Path
    record: RunRecord
    row: str
    is_supernet: bool
    """Whether models of any size can be extracted from it."""
    parameters: int
    nonzero: int


def read_candidates(paths: Sequence[Path], *, by: By) -> tuple[list[Candidate], TableRows]:
    """Read runs, and the rows that they form.

    Args:
        paths: The runs; a run that is named twice counts once. Runs that are only the first steps
            of others are left out. If rows are configurations, all others are compared with the
            row of the first run.
        by: Definition of a row: a method of ``ROWS``, or all runs with one configuration.

    Raises:
        OmnisparseError: If a path is not a run, or its row cannot be determined.
    """
    for path in paths:
        runs.require_directory(path)
        runs.read_description(path)  # gives a clear message for an artifact
    found = list(dict.fromkeys(path.resolve() for path in paths))
    found = [path for path in found if read_record(path).row != PART]
    if not found:
        raise OmnisparseError("all runs are only the first steps of other runs; name these")
    if by == "method":
        candidates = [_read(path, row=None) for path in found]
        kept = [other for candidate in candidates for other in _kept_on_the_way(candidate)]
        # One that is named beside its pruning is there twice, and is one model.
        return list({one.path: one for one in candidates + kept}.values()), METHODS
    configs = [read_config(path) for path in found]
    weights = [_weights_of(read_record(path)) for path in found]
    names, rows = configuration_rows(configs, name=run_name(found[0]), weights=weights)
    return [_read(path, row=row) for path, row in zip(found, names, strict=True)], rows


def _read(path: Path, *, row: str | None) -> Candidate:
    """Read a run; if ``row`` is None, its method gives the row."""
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


def _kept_on_the_way(candidate: Candidate) -> list[Candidate]:
    """The models that one pruning kept at other sizes; its training is theirs, too."""
    found = []
    for size, path in kept_sizes(candidate.path).items():
        own = _read(path, row=candidate.row)
        record = replace(candidate.record, size=size)
        found.append(replace(own, record=record, is_supernet=False))
    return found


def _weights_of(record: RunRecord) -> str:
    """Which weights of its training a run holds; what a pruning kept has a column of its own."""
    return LAST if is_kept_size(record.weights) else record.weights


def read_config(run: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        ConfigError: If it cannot be read.
    """
    return load_config(run / "config.yaml")


def derive_row(config: RunConfig) -> str:
    """The row of a run that was trained without a row, from its configuration."""
    kind: str = config.method.kind
    if kind in REGISTERED:
        return kind
    if kind == "sandwich":
        return SUPERNET
    shape = config.model
    factored = any(getattr(shape, f"{part}_projection", 0) for part in ("encoder", "decoder"))
    if getattr(config.method, "sizes", ()):
        return PRUNED_ONCE
    pruned = "pruning" in kind
    distilled = kind == "distillation" or bool(getattr(config.method, "distillation", None))
    words = [
        word
        for word, present in (("factored", factored), ("distilled", distilled), ("pruned", pruned))
        if present
    ]
    return "_".join(words) or "base"


def configuration_rows(
    configs: Sequence[RunConfig], *, name: str, weights: Sequence[str] | None = None
) -> tuple[list[str], TableRows]:
    """The row of each configuration, labelled by what differs from the first one.

    Args:
        configs: The configurations, at least one.
        name: Displayed name of the first configuration.
        weights: Which weights of its training each is (``last``, ``ema``, ...): other weights are
            rows of their own, as they are no other seed. None if all are the last.

    Returns:
        The row of each, and all rows: the reference, then the others by label.
    """
    nets = list(zip(configs, weights or [LAST] * len(configs), strict=True))
    reference = nets[0]
    chosen = {REFERENCE: reference}
    names = []
    for net in nets:
        row = next((row for row, known in chosen.items() if not _between(net, known)), None)
        if row is None:
            row = _label(_between(net, reference))
            chosen[row] = net
        names.append(row)
    others = sorted((row for row in chosen if row != REFERENCE), key=_natural)
    own: dict[str, Any] = {}
    for row in others:
        own |= _between(reference, chosen[row])
    return names, TableRows(
        heading="configuration",
        labels={row: row for row in (REFERENCE, *others)},
        rival=REFERENCE,
        compared=frozenset(others),
        picture="differences",
        note=f"{REFERENCE}: {name}" + (f", with {_label(own)}" if own else ""),
    )


def _between(net: tuple[RunConfig, str], base: tuple[RunConfig, str]) -> dict[str, Any]:
    """The differences of two configurations, and of the weights of their trainings."""
    found = differences(net[0], base[0])
    return found if net[1] == base[1] else {**found, "weights": net[1]}


def differences(config: RunConfig, reference: RunConfig) -> dict[str, Any]:
    """Differences of ``config`` from ``reference``, as keys and values of overrides.

    A section of another kind than the reference's, such as ``method``, gives its kind and the
    differences from the defaults of this kind. Runs that a configuration names are compared by
    their own configurations without seeds; an artifact, or a run that no longer exists, is compared
    by its path. Lengths with the same number of utterance passes are equal.
    """
    found = dict(_differences(config, reference, ""))
    if math.isclose(_passes(config), _passes(reference), rel_tol=1e-6):
        found.pop("training.epochs", None)
    return found


def _passes(config: RunConfig) -> float:
    """Passes over the training set, including those of subnets."""
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
    """The default of a field; if it has none, ``MISSING``, which equals no value."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def _is_same(key: str, own: Any, base: Any) -> bool:
    is_source = key.rpartition(".")[2] in SOURCE_KEYS
    if is_source and isinstance(own, str) and isinstance(base, str):
        return bool(_source(own) == _source(base))
    return bool(own == base)


def _source(path: str, trail: tuple[Path, ...] = ()) -> Any:
    """Stands for a path in a comparison of configurations: a run's settings, else the path."""
    place = Path(path).resolve()
    checkpoint = place.name if place.parent.name == "checkpoints" else None
    run = place if checkpoint is None else place.parents[1]
    try:
        if run in trail:
            return str(place)  # a run that names itself, by a link that has changed
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
    """A value in the syntax of an override."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _natural(label: str) -> list[str | float]:
    """Sort key by the values of numbers within a text: alternating text and numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]
