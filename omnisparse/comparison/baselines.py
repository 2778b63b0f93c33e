"""The rows of Pang et al. 2018, tables 3 and 4, as run configurations of the same parts.

A row is a method and a size. Everything else (corpus, features, batches, optimizer, length) comes
from the base configuration, so that rows differ only in the compression.

The order of combined methods is the paper's: the net is factored, the factored net is distilled,
and then it is pruned while it still learns from the teacher. It is one training: labels alone for
``label_fraction`` of the steps, then the teacher, and pruning from half of the run on.

Every row takes as many utterance passes (one utterance, forward and backward, through any net) as
the dense net. A supernet makes fewer steps, because its subnets see utterances, too.
``supernet_double`` is a supernet with twice these passes; it is still one training for all sizes,
and ``pruned_double`` gives each pruned net twice, too.

Two rows have models of all sizes for one budget without a supernet. ``pruned_once`` is one gradual
pruning that rests at each size and keeps a model there. ``cut`` trains the dense net for a share of
the budget, and divides the rest among sizes: the net is cut to a size at once and fine-tuned, with
a schedule of its own (Renda et al. 2020, arXiv:2003.02389; Le & Hua 2021, arXiv:2105.03193).
``supernet_labels`` is a supernet without distillation, ``supernet_single`` without the sandwich.

Choice: the paper does not state the size of the net that F+D+S prunes. Here its number of
parameters is the geometric mean of the dense net's and the target's, so that factorization and
pruning each compress by the same factor.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnisparse.comparison.rows import (
    BUILT_IN,
    CUT,
    PLANS,
    PRUNED,
    PRUNED_ONCE,
    REGISTERED,
    ROWS,
    SUPERNETS,
)
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
    distillation_of,
    has_key,
    passes_of,
)
from omnisparse.methods.progressive import plan_models
from omnisparse.methods.widths import (
    PROJECTION_SHARE,
    count_parameters,
    solve_model,
    with_projections,
)
from omnisparse.models import ModelConfig, TransducerConfig
from omnisparse.runs import directory as runs
from omnisparse.sparsity.layer_limit import parse_layer_limit
from omnisparse.sparsity.sizes import parse_count

SUPERNET_BUDGETS = {row: 2.0 if row == "supernet_double" else 1.0 for row in SUPERNETS}
"""Rows with models of every size, and their utterance passes relative to the dense net."""

BUDGETS = {**SUPERNET_BUDGETS, "pruned_double": 2.0}
"""Utterance passes of rows relative to the dense net, if they are not equal."""

LABEL_FRACTION = 0.2
"""Share of the steps in which a student learns from labels alone, unless it starts from a net."""

CONTROL_SIZES = ("50%", "25%", "12.5%")
"""Sizes of ``pruned_once`` and ``cut`` where no others are given."""

CUT_DENSE_SHARE = 0.7
"""Share of the budget of ``cut`` in which the dense net trains."""

FACTORED_DISTILLED_PRUNED = (0.5, 0.8)
"""Where F + D + S begins and ends to prune, as shares of the run: it prunes an F + D net."""


def baseline_config(
    base: RunConfig,
    *,
    method: str,
    size: str | None,
    teacher: Path | None,
    init: Path | None,
    max_layer_parameters: str | None = None,
    label_fraction: float | None = None,
    sizes: tuple[str, ...] = CONTROL_SIZES,
    projection_share: float = PROJECTION_SHARE,
    decoder_share: float = 1.0,
) -> RunConfig:
    """Return the run that trains one row at one size.

    Args:
        base: The dense net (its ``model`` is the net of 100 %) and everything that all rows share.
            If its ``method`` is of the kind that the row trains, its settings are kept. All rows
            prune the same matrices: those that ``base`` names, or those of its model.
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
        label_fraction: Of rows with a teacher, the share of the steps on labels alone, in [0, 1];
            None for that of ``base``.
        sizes: Sizes of ``pruned_once``, whose ``size`` is None; others do not read it.
        projection_share: Of factored rows; see :func:`with_projections`.
        decoder_share: Of factored rows; see :func:`with_projections`.

    Returns:
        The configuration, named ``<base name>-<method>-<size>``, with computed widths and sizes.

    Raises:
        OmnisparseError: If the method is unknown, a teacher is missing or not used, or the size is
            not legal for this net or above the teacher's; one line that names the legal values.
    """
    _check_arguments(method, size, teacher, init, max_layer_parameters)
    name = _name(base.name, method, size, max_layer_parameters)
    dimensions = {
        "input_dim": base.data.features.num_bins * base.data.features.stack,
        "vocab_size": base.data.vocab_size,
    }
    dense = count_parameters(base.model, **dimensions)
    kept: tuple[str, ...] = ()
    if method == PRUNED_ONCE:
        *kept_list, size = sorted(sizes, key=lambda text: -_parameters(text, dense))
        kept = tuple(kept_list)
    target = None if size is None else _parameters(size, dense)
    try:
        limit = None if max_layer_parameters is None else parse_layer_limit(max_layer_parameters)
        family = base.model
        if method in BUILT_IN and method.startswith("factored"):
            decoder = limit is not None and not isinstance(family, TransducerConfig)
            family = with_projections(
                family,
                decoder=decoder,
                projection_share=projection_share,
                decoder_share=decoder_share,
            )
        widest = _widest(method, target, dense)
        model: ModelConfig = family
        if (widest is not None or limit is not None) and method not in SUPERNET_BUDGETS:
            model = solve_model(family, parameters=widest, layer_limit=limit, **dimensions)
        trained_by = _method(base.method, method, size, target, teacher, label_fraction)
        if isinstance(trained_by, ProgressiveConfig):
            plan_models(trained_by, model, **dimensions)  # raises before a teacher is trained
    except ValueError as error:
        raise OmnisparseError(f"{method} of size {size}: {error}") from error
    if teacher is not None:
        trained = count_parameters(model, **dimensions)
        _check_teacher(teacher, trained if target is None else target)
    if kept:
        assert isinstance(trained_by, GradualPruningConfig)
        trained_by = replace(trained_by, sizes=kept)
    share = _share_of_length(base, trained_by, model, BUDGETS.get(method, 1.0))
    if share != 1:
        base = scale_length(base, share)
    return replace(
        base,
        name=name,
        model=model,
        method=trained_by,
        init=None if init is None else str(init),
        max_layer_parameters=max_layer_parameters,
    )


def _share_of_length(
    base: RunConfig, method: MethodConfig, model: ModelConfig, budget: float
) -> float:
    """Length of a run relative to ``base``, so that its utterance passes are ``budget`` times.

    A student of hypotheses makes a pass for each, and decoding an utterance is one pass.

    Raises:
        OmnisparseError: If decoding the hypotheses takes the whole budget.
    """
    distillation = distillation_of(method)
    if distillation is None or not distillation.num_hypotheses:
        return budget / passes_of(method)
    weight = distillation.label_weight
    is_transducer = isinstance(model, TransducerConfig)
    labels = is_transducer if weight is None else weight > 0
    each = distillation.num_hypotheses + (labels or model.ctc_weight > 0)
    alone = distillation.label_fraction
    decoding = 0.0 if base.training.max_steps is not None else 1 / (base.training.epochs or 1)
    if decoding >= budget:
        raise OmnisparseError(
            f"decoding the hypotheses of objective {distillation.objective} takes a pass of every "
            f"utterance, all of a budget of {budget * base.training.epochs:g} epochs; legal: more"
        )
    return (budget - decoding) / (alone + (1 - alone) * each)


def scale_length(base: RunConfig, share: float) -> RunConfig:
    """``base`` with ``share`` times its steps."""
    training = base.training
    steps = None if training.max_steps is None else round(share * training.max_steps)
    training = replace(training, epochs=share * training.epochs, max_steps=steps)
    return replace(base, training=training)


def kind_of(method: str) -> str | None:
    """Kind of the method that trains a row; None if other settings also define the row."""
    if method in REGISTERED:
        return method
    if method in PLANS:
        return PLANS[method][0]
    return SandwichConfig().kind if method in SUPERNETS else None


PRUNED_ROWS = (PRUNED, "pruned_double", PRUNED_ONCE, CUT, "factored_distilled_pruned")
"""Built-in rows that prune."""


def _is_pruned(method: str) -> bool:
    """Whether a row compresses the net of the configuration to its size."""
    if method in REGISTERED:
        return has_key(method, "size")
    return method in PLANS or method in PRUNED_ROWS


def _takes_teacher(method: str) -> bool:
    """Whether a row may learn from a teacher."""
    if method in PLANS:
        return method != "progressive_scratch"
    if method in REGISTERED:
        return has_key(method, "distillation")
    return "distilled" in method or method in (PRUNED, "pruned_double", PRUNED_ONCE)


def _check_arguments(
    method: str,
    size: str | None,
    teacher: Path | None,
    init: Path | None,
    max_layer_parameters: str | None,
) -> None:
    if method not in ROWS:
        raise OmnisparseError(f"method {method!r} is unknown; legal: {', '.join(ROWS)}")
    if method in SUPERNET_BUDGETS and size is not None:
        raise OmnisparseError(f"a supernet has every size; give size {size} to its extraction")
    if method == PRUNED_ONCE and size is not None:
        raise OmnisparseError(
            f"{method} has all its sizes in one training, so size={size} is not legal; sizes=[...]"
        )
    if method == CUT and init is None:
        raise OmnisparseError(f"method {method} needs init: the dense net that it cuts")
    if _is_pruned(method) and method != PRUNED_ONCE and size is None:
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
    given: MethodConfig,
    method: str,
    size: str | None,
    target: int | None,
    teacher: Path | None,
    label_fraction: float | None,
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
        return _supernet(given, method)
    distillation = None
    if teacher is not None:
        inner = given.distillation if isinstance(given, GradualPruningConfig) else given
        distillation = (
            replace(inner, teacher=str(teacher))
            if isinstance(inner, DistillationConfig)
            else DistillationConfig(teacher=str(teacher))
        )
        if label_fraction is not None:
            distillation = replace(distillation, label_fraction=label_fraction)
    if method in PRUNED_ROWS:
        assert target is not None
        return _pruning(given, method, target, distillation)
    return distillation or DenseConfig()


def _supernet(given: MethodConfig, method: str) -> SandwichConfig:
    """A supernet with the settings of ``given``, or without one of its parts."""
    config = given
    if not isinstance(config, SandwichConfig):
        config = SandwichConfig(prunable=_prunable(given))
    if method == "supernet_labels":
        return replace(config, label_weight=1.0, distillation_weight=0.0, distill="posteriors")
    return replace(config, rule="single") if method == "supernet_single" else config


def _pruning(
    given: MethodConfig, method: str, target: int, distillation: DistillationConfig | None
) -> GradualPruningConfig:
    """Pruning with the settings of ``given``.

    The size is a number of parameters, because a share would refer to the net that is pruned.
    """
    pruning = given if isinstance(given, GradualPruningConfig) else GradualPruningConfig()
    begin, end = pruning.begin, pruning.end
    if method == "factored_distilled_pruned" and pruning is not given:
        begin, end = FACTORED_DISTILLED_PRUNED  # after F and D
    elif method == CUT:
        begin = end = 0
    return replace(
        pruning,
        size=str(target),
        begin=begin,
        end=end,
        prunable=_prunable(given),
        distillation=distillation,
    )


def _prunable(given: MethodConfig) -> tuple[str, ...]:
    """The matrices that a configuration names; all rows prune these, or those of the model."""
    return tuple(getattr(given, "prunable", ()))


def _registered(
    given: MethodConfig, method: str, target: int | None, teacher: Path | None
) -> MethodConfig:
    """The configuration of a registered method, which is a row of its own."""
    config: Any = given if given.kind == method else KINDS[method]()
    choices: dict[str, Any] = {}
    if has_key(method, "prunable") and _prunable(given):
        choices["prunable"] = _prunable(given)
    if target is not None and has_key(method, "size"):
        choices["size"] = str(target)
    if teacher is not None:
        choices["distillation"] = DistillationConfig(teacher=str(teacher))
    chosen: MethodConfig = replace(config, **choices)
    return chosen


def _name(base: str, method: str, size: str | None, limit: str | None) -> str:
    parts = [base, method, size, None if limit is None else f"layer{limit}"]
    return "-".join(part for part in parts if part).replace("_", "-").replace("%", "pct")
