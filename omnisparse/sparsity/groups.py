"""Groups of matrices that share one sparsity in training and search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omnisparse.sparsity.patterns import compile_patterns
from omnisparse.sparsity.report import layer_of


def group_matrices(
    names: Iterable[str], patterns: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    r"""Group the matrices that get one relative density.

    The first pattern found in the name of a matrix decides; the group is named by the text that it
    matches. So `encoder` makes one group of all matrices with that word in their names, and
    `encoder\.layers\.\d+` makes one group per layer. A matrix that no pattern matches is grouped by
    layer (the two matrices of an LSTM layer together); without patterns all matrices are.

    Args:
        names: Fully qualified names, in model order.
        patterns: Regular expressions, the first that matches decides.

    Returns:
        Names by group; groups in the order in which they appear.

    Raises:
        ValueError: If a pattern is malformed or no matrix is grouped by it.
    """
    compiled = compile_patterns("layer group", patterns)
    names = list(names)
    groups: dict[str, tuple[str, ...]] = {}
    used: set[str] = set()
    for fqn in names:
        group = layer_of(fqn)
        for pattern in compiled:
            match = pattern.search(fqn)
            if match is not None:
                group = match[0]
                used.add(pattern.pattern)
                break
        groups[group] = (*groups.get(group, ()), fqn)
    idle = [pattern.pattern for pattern in compiled if pattern.pattern not in used]
    if idle:
        raise ValueError(f"layer group {idle[0]!r} is used for none of: {', '.join(names)}")
    return groups
