"""Which sizes a run was trained for, and what its artifacts say of where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from omnisparse.artifact import MAX_STEPS, SMALLEST
from omnisparse.artifact.reading import TRAINED_SECONDS
from omnisparse.runs import directory as runs
from omnisparse.runs.corpora import told_in_card
from omnisparse.runs.record import RunRecord
from omnisparse.sparsity.budget import Budget, num_nonzero
from omnisparse.sparsity.keys import parse_block

_SIZE_KEYS = ("min_size", "size")
"""Keys of a method that name the smallest net it trains, the first that is there counts."""


def source_of(
    run: Path, record: RunRecord, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """What an artifact or nested file of ``run`` says about where it comes from.

    Args:
        run: The run.
        record: What the checkpoint of its weights says.
        shapes: Shapes of all parameters.

    Raises:
        OmnisparseError: If the run cannot be read.
    """
    description = runs.read_description(run)
    source = {**record.source_block, "method": description.method}
    if description.trained_seconds is not None:
        source[TRAINED_SECONDS] = description.trained_seconds
    smallest = smallest_trained(run, shapes)
    if smallest is not None:
        source[SMALLEST] = smallest
    if record.max_steps is not None:
        source[MAX_STEPS] = record.max_steps
    return {**source, **told_in_card(run)}


def smallest_trained(run: Path, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Non-zero parameters of the smallest net that ``run`` trains.

    ``method.min_size`` of a supernet, ``method.size`` of a pruned net, what is there of one that
    was fine-tuned with its zeros; of any other method the whole net. None where the configuration
    of the run cannot be read.

    Args:
        run: The run.
        shapes: Shapes of all parameters.
    """
    description = runs.read_description(run)
    try:
        # `safe_load`, because reading the whole configuration would import torch.
        method = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["method"]
        budget = Budget(shapes, description.prunable, block=parse_block(description.block))
        if method.get("kind") == "fixed_mask":
            return num_nonzero(runs.newest_weights(run)[0], description.prunable)
        size = next((method[key] for key in _SIZE_KEYS if method.get(key) is not None), None)
        if size is None:
            return budget.dense_parameters
        return budget.unprunable + budget.solve(size)
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return None
