"""Implementation of ``recipes/train_baseline.py``: one row of the comparison at one size.

A row with distillation gets a teacher: the dense net of the same configuration and seed, which is
trained first unless it exists already. The student then starts from a net of its own shape that was
trained on labels for a part of the steps; both parts together have as many steps as every other
row. So each point of a sweep is a separate command, and the order of commands does not matter.

Source: Pang et al. 2018, sections 3.1.2 and 5.1 (all their later distillation results start from a
partially trained student).
Deviation: the paper says "partially to convergence" without a number; ours is ``pretrain``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.cli.group import Report
from omnisparse.cli.train import join_flags, train_and_report

if TYPE_CHECKING:
    from omnisparse.config import RunConfig

KEYS = ("method", "size", "teacher", "init", "pretrain", "max_layer_parameters")
"""Overrides of the recipe itself; all others are keys of the configuration."""

ALIASES = {"dense": "base", "sandwich": "supernet"}
"""Method kinds of a configuration that are rows of their own."""

WITHOUT_TEACHER = {
    "distilled": "base",
    "factored_distilled": "factored",
    "factored_distilled_pruned": "pruned",
    **{
        row: row
        for row in (
            "progressive",
            "progressive_fixed",
            "progressive_direct",
            "rank_uniform",
            "rank_search_untrained",
            "rank_search",
            "iterative",
        )
    },
}
"""For a row that needs a teacher, a row of the same size (a student: the same shape) that does not
need one; a compression over several stages can be checked without its teacher."""

STUDENTS = ("distilled", "factored_distilled")
"""Rows whose net is first trained on labels for a part of the steps."""

PRETRAIN = "20%"
NONE = {"", "none", "null", "None"}


@dataclass(frozen=True)
class Request:
    """The request of a command line to the recipe."""

    method: str
    size: str | None
    teacher: Path | None
    init: Path | None
    pretrain: float
    """Share of the steps, in [0, 1), in which a student trains only on labels."""
    max_layer_parameters: str | None
    common: tuple[str, ...]
    """Overrides of the configuration that all rows share."""
    own: tuple[str, ...]
    """Overrides of ``method.*``, for this row only."""

    @property
    def lacks_teacher(self) -> bool:
        """Whether a teacher must be trained for this row."""
        return self.method in WITHOUT_TEACHER and self.teacher is None

    @property
    def pretrains(self) -> bool:
        """Whether an initial net must be trained for this row."""
        return self.method in STUDENTS and self.init is None and self.pretrain > 0


def parse_request(overrides: Sequence[str]) -> Request:
    """Separate the recipe's own keys from those of the configuration; the last of equal keys wins.

    ``method`` is the name of a row, or a mapping: its ``kind`` is the name, and its other entries
    are ``method.*`` keys of that row. So a sweep over one parameter can run different methods.

    Raises:
        ConfigError: If the method is unknown or a value is not legal.
    """
    from omnisparse.comparison.rows import ROWS, SUPERNETS
    from omnisparse.config import ConfigError

    found: dict[str, str] = {}
    common: list[str] = []
    own: list[str] = []
    name = "base"
    for override in join_flags(overrides):
        key, _, value = override.partition("=")
        if key == "method":
            name, choices = _row_and_choices(value)
            own += choices
        elif key in KEYS:
            found[key] = value
        else:
            (own if key.startswith("method.") else common).append(override)
    method = ALIASES.get(name, name)
    if method not in ROWS:
        raise ConfigError(f"method {method!r} is unknown; legal: {', '.join(ROWS)}")
    given = {key: value for key, value in found.items() if value not in NONE}
    return Request(
        method=method,
        size=None if method in SUPERNETS else given.get("size"),  # it has every size
        teacher=Path(given["teacher"]) if "teacher" in given else None,
        init=Path(given["init"]) if "init" in given else None,
        pretrain=_share(found.get("pretrain", PRETRAIN)),
        max_layer_parameters=given.get("max_layer_parameters"),
        common=tuple(common),
        own=tuple(own),
    )


def _row_and_choices(text: str) -> tuple[str, list[str]]:
    """The row that ``method=`` names, and its overrides if it is a mapping."""
    from omnisparse.config import ConfigError, parse_value

    value = parse_value("method", text)
    if not isinstance(value, Mapping):
        return text, []
    if "kind" not in value:
        raise ConfigError(f"method={text}: has no kind; legal: kind and keys of that method")
    choices = {key: item for key, item in value.items() if key != "kind"}
    return str(value["kind"]), [f"method.{key}={json.dumps(item)}" for key, item in choices.items()]


def _share(text: str) -> float:
    from omnisparse.config import ConfigError

    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ConfigError(f"pretrain is {text!r}; legal: a share of the steps such as 20%, or 0")
    return share


def plan_baseline(
    config: Path, overrides: Sequence[str]
) -> Callable[[Report, Path | None], Mapping[str, Any]]:
    """Check the request and return the training function, called with report and run directory.

    Raises:
        ConfigError: If a key is unknown or a value is not legal.
        OmnisparseError: If the row cannot be made at this size.
    """
    from omnisparse.comparison.baselines import scale_length
    from omnisparse.config import load_config
    from omnisparse.errors import OmnisparseError
    from omnisparse.runs.record import PART

    request = parse_request(overrides)
    base = load_config(config, request.common)
    # Check as much as possible before the long training of a teacher.
    first = WITHOUT_TEACHER[request.method] if request.lacks_teacher else request.method
    row = configure(
        base, replace(request, method=first, own=request.own if first == request.method else ())
    )

    def train(report: Report, out: Path | None) -> Mapping[str, Any]:
        chosen, shared = request, base
        if report.dry_run and (request.lacks_teacher or request.pretrains):
            raise OmnisparseError(
                f"--dry-run measures one training, and {request.method} trains other nets first; "
                "legal: with their runs, teacher=RUN and init=RUN (or pretrain=0)"
            )
        if request.lacks_teacher:
            report.heading("teacher: the dense net")
            whole = replace(request, method="base", size=None, init=None, own=())
            chosen = replace(chosen, teacher=_train_first(report, base, whole))
        if request.pretrains:
            report.heading(f"initialisation: {request.pretrain:.0%} of the steps on labels")
            start = replace(request, method=WITHOUT_TEACHER[request.method], teacher=None, own=())
            part = _first_part(base, request.pretrain)
            chosen = replace(chosen, init=_train_first(report, part, start, row=PART))
            shared = scale_length(base, 1 - request.pretrain)
        final = row if chosen is request else configure(shared, chosen)
        result = train_and_report(report, final, out=out, row=request.method, size=request.size)
        return {**result, "needed": [] if chosen.teacher is None else [chosen.teacher]}

    return train


def configure(base: RunConfig, request: Request) -> RunConfig:
    """The configuration of one row; its name contains the row, its size and its seed."""
    from omnisparse.comparison.baselines import baseline_config, kind_of
    from omnisparse.config import override_config

    kind = kind_of(request.method)
    if kind is not None:  # its options decide how many steps its budget is
        chosen = [] if base.method.kind == kind else [f"method={kind}"]
        base = override_config(base, [*chosen, *request.own])
    config = baseline_config(
        base,
        method=request.method,
        size=request.size,
        teacher=request.teacher,
        init=request.init,
        max_layer_parameters=request.max_layer_parameters,
    )
    return override_config(config, [f"name={config.name}-s{base.seed}", *request.own])


def _first_part(base: RunConfig, share: float) -> RunConfig:
    """A run with the first steps of ``base``: like an early checkpoint, without final decay."""
    from omnisparse.comparison.baselines import scale_length

    part = scale_length(base, share)
    training = replace(part.training, schedule="constant")
    return replace(part, name=f"{base.name}-part", training=training)


def _train_first(report: Report, base: RunConfig, request: Request, row: str | None = None) -> Path:
    """Train a run that another run needs, unless it exists, and return its directory."""
    config = configure(base, request)
    if os.environ.get("WANDB_SWEEP_ID"):  # the agent's W&B run is that of the row itself
        config = replace(config, tracking=replace(config.tracking, wandb="off"))
    result = train_and_report(
        report, config, row=row or request.method, size=request.size, is_helper=True
    )
    return Path(result["run"])
