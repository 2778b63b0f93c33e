"""The limit on the parameters of a layer: they should fit into a processor's fast memory.

Source: Pang et al. 2018, section 5.3.2: if all parameters of a layer are in fast memory, its
products can be batched over time steps. Choice: the limit holds for recurrent layers, weights and
biases together. The paper's model E1 has 4,096 word pieces after 512 cells and a context, so its
output layer exceeds the limit of 4 M; the paper therefore does not count it. An embedding is only
looked up, never multiplied.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omnisparse.sparsity.report import layer_of
from omnisparse.sparsity.sizes import parse_size

_RECURRENT_WEIGHT = re.compile(r"(?:^|\.)weight_hh(?:_l\d+(?:_reverse)?)?$")


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One layer of a dense net.

    Attributes:
        layer: Name, see ``report.layer_of``.
        parameters: All its parameters.
        is_recurrent: Whether it has a recurrent matrix, so that the limit holds for it.
    """

    layer: str
    parameters: int
    is_recurrent: bool


def parse_layer_limit(text: str | int) -> int:
    """Parse ``4M``.

    Raises:
        ValueError: If the text is not a whole number of parameters above 0.
    """
    size = parse_size(text)
    if size.kind != "nonzero" or size.value < 1:
        raise ValueError(
            f"max_layer_parameters is {str(text)!r}; legal: parameters of a layer, such as 4M"
        )
    return int(size.value)


def count_layers(shapes: Mapping[str, Sequence[int]]) -> list[LayerCount]:
    """Parameters of every layer, in model order, from the shapes of all parameters by name."""
    counts: dict[str, int] = {}
    recurrent: set[str] = set()
    for fqn, shape in shapes.items():
        layer = layer_of(fqn)
        counts[layer] = counts.get(layer, 0) + math.prod(shape)
        if _RECURRENT_WEIGHT.search(fqn):
            recurrent.add(layer)
    return [LayerCount(layer, count, layer in recurrent) for layer, count in counts.items()]


def check_layer_limit(layers: Sequence[LayerCount], limit: int) -> None:
    """Refuse a net with a recurrent layer above the limit.

    Raises:
        ValueError: Naming the largest such layer and its parameters.
    """
    largest = max(
        (layer for layer in layers if layer.is_recurrent),
        key=lambda layer: layer.parameters,
        default=None,
    )
    if largest is not None and largest.parameters > limit:
        raise ValueError(
            f"layer {largest.layer} has {largest.parameters:,} parameters; "
            f"max_layer_parameters allows {limit:,}"
        )
