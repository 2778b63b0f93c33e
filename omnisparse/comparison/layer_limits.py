"""Table 4 of Pang et al. 2018: nets whose recurrent layers have a limited number of parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from omnisparse.comparison.baselines import LABEL_FRACTION, baseline_config
from omnisparse.config import RunConfig
from omnisparse.models import ModelConfig, TransducerConfig


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
            start,
            method=method,
            size=None,
            teacher=taught,
            init=None,
            max_layer_parameters=limit,
            label_fraction=None if taught is None else LABEL_FRACTION,
        )
        for row, (start, method, taught) in rows.items()
    }


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
