"""Models of other sizes that one pruning kept on its way, for ``omnisparse extract --size``."""

from __future__ import annotations

from pathlib import Path

from omnisparse.errors import UsageError
from omnisparse.runs import directory as runs
from omnisparse.runs.weights import kept_sizes
from omnisparse.sparsity.arrays import count_nonzero
from omnisparse.sparsity.budget import Budget


def nearest_kept(run: Path, size: str | None) -> Path:
    """The smallest model that has ``size`` of those that one pruning kept.

    That is the run itself, if it kept no others, or is large enough.
    """
    kept = kept_sizes(run)
    if size is None or not kept:
        return run
    description = runs.read_description(run)
    weights, _ = runs.newest_weights(run)
    shapes = {name: tuple(weights[name].shape) for name in description.parameters}
    budget = Budget(shapes, description.prunable)
    request = budget.parse(size)
    if request.kind == "bytes":
        raise UsageError(
            f"{run} has models of several sizes ({', '.join(kept)}, and its last); legal: a size "
            "in parameters or a share"
        )
    wanted = budget.solve(request)
    own = sum(count_nonzero(weights[name]) for name in description.prunable)
    larger = {budget.solve(text): path for text, path in kept.items()}
    larger = {count: path for count, path in larger.items() if count >= wanted}
    if wanted <= own or not larger:
        return run
    return larger[min(larger)]
