"""Which matrices share one sparsity: the layers that training and search choose for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omnisparse.sparsity.patterns import compile_patterns
from omnisparse.sparsity.report import layer_of


def group_matrices(
    names: Iterable[str], patterns: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    r"""Put matrices together that get one relative density.

    A matrix belongs to the group named by the text that the first pattern to be found in its name
    matches there: `encoder` makes one group of everything with that word in its name,
    `encoder\.layers\.\d+` one group per layer. What no pattern matches is grouped by layer, as
    everything is without patterns (the two matrices of an LSTM layer together).

    Args:
        names: Fully qualified names, in model order.
        patterns: Regular expressions, the first that matches decides.

    Returns:
        Names by group; groups in the order in which they appear.

    Raises:
        ValueError: If a pattern is malformed or decides for no matrix.
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
        raise ValueError(f"layer group {idle[0]!r} decides for none of: {', '.join(names)}")
    return groups
