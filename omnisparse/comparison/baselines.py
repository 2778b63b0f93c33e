"""The rows of Pang et al. 2018, tables 3 and 4, as run configurations of the same parts.

A row is a method and a size. Everything else (corpus, features, batches, optimizer, length) comes
from the base configuration, so that rows differ only in the compression.

The order of combined methods is the paper's: the net is factored, the factored net is distilled,
and then it is pruned while it still learns from the teacher.

Every row takes as many utterance passes (one utterance, forward and backward, through any net) as
the dense net. A supernet makes fewer steps, because its subnets see utterances, too.
``supernet_double`` is a supernet with twice these passes; it is still one training for all sizes.

Choice: the paper does not state the size of the net that F+D+S prunes. Here its number of
parameters is the geometric mean of the dense net's and the target's, so that factorization and
pruning each compress by the same factor.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnisparse.comparison.rows import BUILT_IN, PLANS, REGISTERED, ROWS, SUPERNETS
from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.methods import (
    KINDS,
    DenseConfig,
    DistillationConfig,
    GradualPruningConfig,
    MethodConfig,
    ProgressiveConfig,
    SandwichConfig,
    has_key,
    passes_of,
)
from omnisparse.methods.progressive import plan_models
from omnisparse.methods.widths import count_parameters, solve_model, with_projections
from omnisparse.models import ModelConfig, TransducerConfig
from omnisparse.runs import directory as runs
from omnisparse.sparsity.layer_limit import parse_layer_limit
from omnisparse.sparsity.sizes import parse_count

SUPERNET_BUDGETS = {row: 2.0 if row == "supernet_double" else 1.0 for row in SUPERNETS}
"""Rows with models of every size, and their utterance passes relative to the dense net."""


def baseline_config(
    base: RunConfig,
    *,
    method: str,
    size: str | None,
    teacher: Path | None,
    init: Path | None,
    max_layer_parameters: str | None = None,
) -> RunConfig:
    """Return the run that trains one row at one size.

    Args:
        base: The dense net (its ``model`` is the net of 100 %) and everything that all rows share.
            If its ``method`` is of the kind that the row trains, its settings are kept. Pruned
            rows prune the same matrices as a supernet in ``base``.
        method: One of ``ROWS``. For a registered method, the settings of ``base`` are used if they
            are of this kind.
        size: ``25%`` (of the dense net) or ``16M``, in the syntax of ``--size``; None keeps the
            shape of ``base``. None is the only legal value for supernets, which have every size;
            rows with ``pruned`` in their name need a size.
        teacher: Run or artifact to distil; required by the rows with ``distilled`` in their name,
            optional for ``pruned``, refused by the others.
        init: Run, artifact or checkpoint folder with the initial weights; None for a new net. It
            becomes ``RunConfig.init``: weights of the same shape are copied; weights of the same
            net without projections are factorised by truncated SVD.
        max_layer_parameters: Most parameters of a recurrent layer, such as ``4M``. With
            ``size=None``, the widths are the largest within this limit, and factored rows project
            encoder and decoder, as in table 4 (other factored rows, as in table 2: the encoder
            only).

    Returns:
        The configuration, named ``<base name>-<method>-<size>``, with computed widths and sizes.

    Raises:
        OmnisparseError: If the method is unknown, a teacher is missing or not used, or the size is
            not legal for this net or above the teacher's; one line that names the legal values.
    """
    _check_arguments(method, size, teacher, max_layer_parameters)
    dimensions = {
        "input_dim": base.data.features.num_bins * base.data.features.stack,
        "vocab_size": base.data.vocab_size,
    }
    dense = count_parameters(base.model, **dimensions)
    target = None if size is None else _parameters(size, dense)
    try:
        limit = None if max_layer_parameters is None else parse_layer_limit(max_layer_parameters)
        family = base.model
        if method in BUILT_IN and method.startswith("factored"):
            decoder = limit is not None and not isinstance(family, TransducerConfig)
            family = with_projections(family, decoder=decoder)
        widest = _widest(method, target, dense)
        model: ModelConfig = family
        if (widest is not None or limit is not None) and method not in SUPERNET_BUDGETS:
            model = solve_model(family, parameters=widest, layer_limit=limit, **dimensions)
        trained_by = _method(base.method, method, size, target, teacher)
        if isinstance(trained_by, ProgressiveConfig):
            plan_models(trained_by, model, **dimensions)  # raises before a teacher is trained
    except ValueError as error:
        raise OmnisparseError(f"{method} of size {size}: {error}") from error
    if teacher is not None:
        trained = count_parameters(model, **dimensions)
        _check_teacher(teacher, trained if target is None else target)
    share = SUPERNET_BUDGETS.get(method, 1.0) / passes_of(trained_by)
    if share != 1:
        base = scale_length(base, share)
    return replace(
        base,
        name=_name(base.name, method, size, max_layer_parameters),
        model=model,
        method=trained_by,
        init=None if init is None else str(init),
        max_layer_parameters=max_layer_parameters,
    )


def scale_length(base: RunConfig, share: float) -> RunConfig:
    """``base`` with ``share`` times its steps."""
    training = base.training
    steps = None if training.max_steps is None else round(share * training.max_steps)
    training = replace(training, epochs=share * training.epochs, max_steps=steps)
    return replace(base, training=training)


def layer_limit_configs(base: RunConfig, limit: str, *, teacher: Path) -> dict[str, RunConfig]:
    """The experiments of table 4 that a limit per layer defines, E1 to E5 and E8.

    Args:
        base: The dense net with the depth of E1 to E4; the deep nets have twice as many layers.
        limit: Most parameters of a recurrent layer, such as 4M.
        teacher: Teacher of E2 and E4.

    Returns:
        Configurations named ``base``, ``distilled``, ``factored``, ``factored_distilled``,
        ``deep`` and ``deep_factored``.

    Raises:
        OmnisparseError: As :func:`baseline_config`.
    """
    deep = replace(base, name=f"{base.name}-deep", model=_twice_as_deep(base.model))
    rows = {
        "base": (base, "base", None),
        "distilled": (base, "distilled", teacher),
        "factored": (base, "factored", None),
        "factored_distilled": (base, "factored_distilled", teacher),
        "deep": (deep, "base", None),
        "deep_factored": (deep, "factored", None),
    }
    return {
        row: baseline_config(
            start, method=method, size=None, teacher=taught, init=None, max_layer_parameters=limit
        )
        for row, (start, method, taught) in rows.items()
    }


def kind_of(method: str) -> str | None:
    """Kind of the method that trains a row; None if other settings also define the row."""
    if method in REGISTERED:
        return method
    if method in PLANS:
        return PLANS[method][0]
    return SandwichConfig().kind if method in SUPERNETS else None


def _is_pruned(method: str) -> bool:
    """Whether a row compresses the net of the configuration to its size."""
    if method in PLANS:
        return True
    return has_key(method, "size") if method in REGISTERED else method.endswith("pruned")


def _takes_teacher(method: str) -> bool:
    """Whether a row may learn from a teacher."""
    if method in PLANS:
        return method != "progressive_scratch"
    if method in REGISTERED:
        return has_key(method, "distillation")
    return "distilled" in method or method == "pruned"


def _check_arguments(
    method: str, size: str | None, teacher: Path | None, max_layer_parameters: str | None
) -> None:
    if method not in ROWS:
        raise OmnisparseError(f"method {method!r} is unknown; legal: {', '.join(ROWS)}")
    if method in SUPERNET_BUDGETS and size is not None:
        raise OmnisparseError(f"a supernet has every size; give size {size} to its extraction")
    if _is_pruned(method) and size is None:
        raise OmnisparseError(f"method {method} needs a size to prune to, such as 25% or 16M")
    if method in BUILT_IN and "distilled" in method and teacher is None:
        raise OmnisparseError(f"method {method} needs a teacher: a run or artifact directory")
    if teacher is not None and not _takes_teacher(method):
        raise OmnisparseError(f"method {method} uses no teacher, but {teacher} is given")
    if max_layer_parameters is not None and method in SUPERNET_BUDGETS:
        raise OmnisparseError("a limit per layer is for the separate nets, not for a supernet")


def _parameters(size: str, dense: int) -> int:
    """Parameters of a size: a count, or a share of the dense net's."""
    try:
        parsed = parse_count(size)
    except ValueError as error:
        raise OmnisparseError(str(error)) from error
    target = round(parsed.value * dense if parsed.kind == "fraction" else parsed.value)
    if not 0 < target <= dense:
        raise OmnisparseError(
            f"size {size!r} is {target:,} parameters; legal: above 0, up to the dense net's "
            f"{dense:,}"
        )
    return target


def _check_teacher(teacher: Path, target: int) -> None:
    counted = int(runs.inspect(teacher)["nonzero"])
    if target > counted:
        raise OmnisparseError(
            f"the target of {target:,} parameters is above the {counted:,} of teacher {teacher}; "
            f"legal: up to {counted:,}"
        )


def _widest(method: str, target: int | None, dense: int) -> int | None:
    """Parameters of the net before any pruning; None keeps those of the given net."""
    if target is None:
        return None
    if method == "factored_distilled_pruned":
        return round(math.sqrt(target * dense))
    return None if _is_pruned(method) else target


def _method(
    given: MethodConfig, method: str, size: str | None, target: int | None, teacher: Path | None
) -> MethodConfig:
    """The training method of a row, with the settings of ``given`` if the kinds agree."""
    if method in REGISTERED:
        return _registered(given, method, target, teacher)
    if method in PLANS:
        kind, decided = PLANS[method]
        stages: Any = given if given.kind == kind else KINDS[kind]()
        taught = None if teacher is None else str(teacher)
        several: MethodConfig = replace(stages, **decided, size=str(target), teacher=taught)
        return several
    if method in SUPERNET_BUDGETS:
        return given if isinstance(given, SandwichConfig) else SandwichConfig()
    distillation = None
    if teacher is not None:
        inner = given.distillation if isinstance(given, GradualPruningConfig) else given
        distillation = (
            replace(inner, teacher=str(teacher))
            if isinstance(inner, DistillationConfig)
            else DistillationConfig(teacher=str(teacher))
        )
    if method.endswith("pruned"):
        assert size is not None
        assert target is not None
        pruning = given if isinstance(given, GradualPruningConfig) else GradualPruningConfig()
        if isinstance(given, SandwichConfig) and given.prunable:
            pruning = replace(pruning, prunable=given.prunable)
        # As a number of parameters, because a share would refer to the net that is pruned.
        return replace(pruning, size=str(target), distillation=distillation)
    return distillation or DenseConfig()


def _registered(
    given: MethodConfig, method: str, target: int | None, teacher: Path | None
) -> MethodConfig:
    """The configuration of a registered method, which is a row of its own."""
    config: Any = given if given.kind == method else KINDS[method]()
    choices: dict[str, Any] = {}
    if target is not None and has_key(method, "size"):
        choices["size"] = str(target)
    if teacher is not None:
        choices["distillation"] = DistillationConfig(teacher=str(teacher))
    chosen: MethodConfig = replace(config, **choices)
    return chosen


def _twice_as_deep(model: ModelConfig) -> ModelConfig:
    if isinstance(model, TransducerConfig):
        return replace(
            model,
            encoder_layers=2 * model.encoder_layers,
            predictor_layers=2 * model.predictor_layers,
        )
    return replace(
        model, encoder_layers=2 * model.encoder_layers, decoder_layers=2 * model.decoder_layers
    )


def _name(base: str, method: str, size: str | None, limit: str | None) -> str:
    parts = [base, method, size, None if limit is None else f"layer{limit}"]
    return "-".join(part for part in parts if part).replace("_", "-").replace("%", "pct")
