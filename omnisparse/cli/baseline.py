"""Implementation of ``recipes/train_baseline.py``: one row of the comparison at one size.

A row with distillation gets a teacher: the dense net of the same configuration and seed, which is
trained first unless it exists already. The student learns from labels alone for the first part of
its steps, and has as many as every other row. ``cut`` trains its dense net first, with a share of
the budget, once for all sizes. So each point of a sweep is a separate command, and the order of
commands does not matter.

Source: Pang et al. 2018, sections 3.1.2 and 5.1 (all their later distillation results start from a
partially trained student).
Deviation: the paper says "partially to convergence" without a number; ours is ``pretrain``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnisparse.cli.group import Report
from omnisparse.cli.train import join_flags, train_and_report

if TYPE_CHECKING:
    from omnisparse.config import RunConfig

KEYS = (
    "method", "size", "sizes", "teacher", "init", "pretrain", "max_layer_parameters",
    "projection_share", "decoder_share", "budget",
)  # fmt: skip
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

FINE_TUNING_WARMUP = 0.1
"""Warm-up of the fine-tuning of ``cut``, as a share of it."""

NONE = {"", "none", "null", "None"}


@dataclass(frozen=True)
class Request:
    """The request of a command line to the recipe."""

    method: str
    size: str | None
    sizes: tuple[str, ...]
    """Sizes of ``pruned_once``, and those among which ``cut`` divides its budget."""
    teacher: Path | None
    init: Path | None
    pretrain: float | None
    """Share of the steps, in [0, 1), in which a student trains only on labels; None if unset."""
    max_layer_parameters: str | None
    projection_share: float
    """Of factored rows: cells of an encoder layer per column of its projection."""
    decoder_share: float
    """Of factored rows: cells of the decoder relative to the dense net's."""
    budget: float
    """Times the length of the configuration, above 0."""
    common: tuple[str, ...]
    """Overrides of the configuration that all rows share."""
    own: tuple[str, ...]
    """Overrides of ``method.*``, for this row only."""

    @property
    def lacks_teacher(self) -> bool:
        """Whether a teacher must be trained for this row."""
        return self.method in WITHOUT_TEACHER and self.teacher is None

    @property
    def cuts(self) -> bool:
        """Whether the dense net that is cut must be trained for this row."""
        return self.method == "cut" and self.init is None

    @property
    def label_fraction(self) -> float | None:
        """Share of the steps on labels alone; None where there is no teacher."""
        if self.teacher is None:
            return None
        if self.pretrain is not None:
            return self.pretrain
        from omnisparse.comparison.baselines import LABEL_FRACTION

        return LABEL_FRACTION if self.init is None else 0.0


def parse_request(overrides: Sequence[str]) -> Request:
    """Separate the recipe's own keys from those of the configuration; the last of equal keys wins.

    ``method`` is the name of a row, or a mapping: its ``kind`` is the name, and its other entries
    are ``method.*`` keys of that row, keys of the recipe, or, with a dot, of the configuration. So
    a sweep over one parameter can run different methods.

    Raises:
        ConfigError: If the method is unknown or a value is not legal.
    """
    from omnisparse.comparison.baselines import CONTROL_SIZES
    from omnisparse.comparison.rows import CUT, PRUNED, PRUNED_ONCE, ROWS, SUPERNETS
    from omnisparse.config import ConfigError

    found: dict[str, str] = {}
    common: list[str] = []
    own: list[str] = []
    name = "base"
    for override in join_flags(overrides):
        key, _, value = override.partition("=")
        if key == "method":
            name, choices = _row_and_choices(value)
            for choice in choices:
                chosen, _, text = choice.partition("=")
                if chosen in KEYS:
                    found[chosen] = text
                else:
                    (own if chosen.startswith("method.") else common).append(choice)
        elif key in KEYS:
            found[key] = value
        else:
            (own if key.startswith("method.") else common).append(override)
    method = ALIASES.get(name, name)
    if method not in ROWS:
        raise ConfigError(f"method {method!r} is unknown; legal: {', '.join(ROWS)}")
    sizes = _sizes(found.pop("sizes", None))
    if method == PRUNED and sizes:
        method = PRUNED_ONCE
    if sizes and method not in (PRUNED_ONCE, CUT):
        raise ConfigError(f"sizes is for pruned and {CUT}; {method} takes size=")
    whole = (*SUPERNETS, PRUNED_ONCE)
    given = {key: value for key, value in found.items() if value not in NONE}
    return Request(
        method=method,
        size=None if method in whole else given.get("size"),  # it has every size
        sizes=sizes or CONTROL_SIZES,
        teacher=Path(given["teacher"]) if "teacher" in given else None,
        init=Path(given["init"]) if "init" in given else None,
        pretrain=_share(found["pretrain"]) if "pretrain" in found else None,
        max_layer_parameters=given.get("max_layer_parameters"),
        projection_share=_number("projection_share", given.get("projection_share", "4")),
        decoder_share=_number("decoder_share", given.get("decoder_share", "1")),
        budget=_budget(given.get("budget", "1")),
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
    choices = []
    for key, item in value.items():
        is_whole = key in KEYS or "." in key
        text = item if isinstance(item, str) and key in KEYS else json.dumps(item)
        choices.append(f"{key if is_whole else f'method.{key}'}={text}")
    return str(value["kind"]), [
        choice for choice in choices if not choice.startswith("method.kind=")
    ]


def _sizes(text: str | None) -> tuple[str, ...]:
    """The sizes of ``sizes=[50%,25%]``; none if it is not given."""
    from omnisparse.config import ConfigError, parse_value

    if text is None or text in NONE:
        return ()
    value = parse_value("sizes", text)
    listed = value if isinstance(value, list) else str(value).split(",")
    if not all(isinstance(item, str | int) for item in listed) or len(set(listed)) < 2:
        raise ConfigError(f"sizes is {text!r}; legal: two or more different sizes, [50%,25%,12.5%]")
    return tuple(str(item).strip() for item in listed)


def _number(name: str, text: str) -> float:
    from omnisparse.config import ConfigError

    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} is {text!r}; a number is expected") from None


def _budget(text: str) -> float:
    """The factor of ``budget=2x`` or ``budget=2``."""
    from omnisparse.config import ConfigError

    budget = _number("budget", text.removesuffix("x"))
    if not 0 < budget < math.inf:
        raise ConfigError(f"budget is {text!r}; legal: a number above 0, such as 2x")
    return budget


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
    from omnisparse.comparison.baselines import CUT_DENSE_SHARE
    from omnisparse.comparison.rows import PRUNED_ONCE
    from omnisparse.errors import OmnisparseError
    from omnisparse.runs.record import PART

    request, base, row = read_row(config, overrides)

    def train(report: Report, out: Path | None) -> Mapping[str, Any]:
        chosen = request
        if report.dry_run and (request.lacks_teacher or request.cuts):
            raise OmnisparseError(
                f"--dry-run measures one training, and {request.method} trains other nets first; "
                "legal: with their runs, teacher=RUN or init=RUN"
            )
        if request.lacks_teacher:
            report.heading("teacher: the dense net")
            whole = replace(request, method="base", size=None, init=None, own=())
            chosen = replace(chosen, teacher=_train_first(report, base, whole))
        shared = base
        if request.cuts:
            report.heading(f"the dense net: {CUT_DENSE_SHARE:.0%} of the steps")
            whole = replace(request, method="base", size=None, own=())
            part = _dense_part(base)
            chosen = replace(chosen, init=_train_first(report, part, whole, row=PART))
            shared = _fine_tuning(base, len(request.sizes))
        final = row if chosen is request else configure(shared, chosen)
        size = None
        if request.method == PRUNED_ONCE:
            (size,) = set(request.sizes) - set(getattr(final.method, "sizes", ()))
        result = train_and_report(
            report, final, out=out, row=request.method, size=request.size or size
        )
        return {**result, "needed": [] if chosen.teacher is None else [chosen.teacher]}

    return train


def read_row(config: Path, overrides: Sequence[str]) -> tuple[Request, RunConfig, RunConfig]:
    """What a command line asks for, what all rows share, and the row.

    For a row that needs another net first, the last is a row of the same size that does not: as
    much as can be checked before that long training.

    Raises:
        ConfigError: If a key is unknown or a value is not legal.
        OmnisparseError: If the row cannot be made at this size.
    """
    from omnisparse.comparison.rows import PRUNED
    from omnisparse.config import load_config

    request = parse_request(overrides)
    base = _of_budget(load_config(config, request.common), request.budget)
    first = WITHOUT_TEACHER[request.method] if request.lacks_teacher else request.method
    first = PRUNED if request.cuts else first
    own = request.own if first == request.method else ()
    return request, base, configure(base, replace(request, method=first, own=own))


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
        label_fraction=request.label_fraction,
        sizes=request.sizes,
        projection_share=request.projection_share,
        decoder_share=request.decoder_share,
    )
    return override_config(config, [f"name={config.name}-s{base.seed}", *request.own])


def _of_budget(base: RunConfig, budget: float) -> RunConfig:
    """``base`` with a multiple of its length, which is in its name.

    A part of the length has the same part of the steps in which a transducer learns without its
    predictor, or a short row from scratch would never train it. A longer row needs no more of them.
    """
    from omnisparse.comparison.baselines import scale_length
    from omnisparse.models import TransducerConfig

    if budget == 1:
        return base
    model = base.model
    if budget < 1 and isinstance(model, TransducerConfig):
        model = replace(
            model,
            predictor_warmup=round(budget * model.predictor_warmup),
            joiner_warmup=round(budget * model.joiner_warmup),
        )
    name = f"{base.name}-{budget:g}x"
    return replace(scale_length(base, budget), model=model, name=name)


def _dense_part(base: RunConfig) -> RunConfig:
    """The dense training of ``cut``: complete, with a share of the budget."""
    from omnisparse.comparison.baselines import CUT_DENSE_SHARE, scale_length

    return replace(scale_length(base, CUT_DENSE_SHARE), name=f"{base.name}-cut")


def _fine_tuning(base: RunConfig, sizes: int) -> RunConfig:
    """The training of ``cut`` at one of a number of sizes: its part of what is left."""
    from omnisparse.comparison.baselines import CUT_DENSE_SHARE, scale_length

    part = scale_length(base, (1 - CUT_DENSE_SHARE) / sizes)
    augmentation = replace(part.data.augmentation, unmasked_epochs=0)
    return replace(
        part,
        data=replace(part.data, augmentation=augmentation, short_first_epochs=0),
        training=replace(part.training, warmup_fraction=FINE_TUNING_WARMUP),
    )


def _train_first(report: Report, base: RunConfig, request: Request, row: str | None = None) -> Path:
    """Train a run that another run needs, unless it exists, and return its directory."""
    config = configure(base, request)
    if os.environ.get("WANDB_SWEEP_ID"):  # the agent's W&B run is that of the row itself
        config = replace(config, tracking=replace(config.tracking, wandb="off"))
    result = train_and_report(
        report, config, row=row or request.method, size=request.size, is_helper=True
    )
    return Path(result["run"])
