"""The counts of a subnet of some size, which every report states."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

_RNN_PARAMETER = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)_l(\d+(?:_reverse)?)")


def layer_of(fqn: str) -> str:
    """Layer that a parameter belongs to: its module, and the level within a stacked LSTM.

    `encoder.lstm.weight_ih_l2` -> `encoder.lstm.l2`; `joiner.output.weight` -> `joiner.output`.
    """
    module, _, name = fqn.rpartition(".")
    match = _RNN_PARAMETER.fullmatch(name)
    return ".".join(part for part in (module, f"l{match[1]}" if match else "") if part) or fqn


class TensorCount(NamedTuple):
    """Counts of one parameter; `mask_bits` is 0 if it is stored without a mask."""

    fqn: str
    parameters: int
    nonzero: int
    mask_bits: int
    prunable: bool


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Counts of one layer (all its parameters, see `layer_of`)."""

    layer: str
    parameters: int
    nonzero: int


@dataclass(frozen=True, slots=True)
class SizeReport:
    """The counts of one subnet (with and without masks), in total and per layer.

    Attributes:
        dense_parameters: Parameters of the dense net.
        nonzero: Kept prunable weights plus every parameter that is never pruned.
        sparsity: Share of the prunable weights that is zero; 0 where nothing is prunable.
        nonzero_with_mask: `nonzero` plus the mask bits in units of one stored value; matrices
            that keep everything need no mask.
        compression_rate: `dense_parameters / nonzero_with_mask`.
        layers: Per layer, in model order.
    """

    dense_parameters: int
    nonzero: int
    sparsity: float
    nonzero_with_mask: float
    compression_rate: float
    layers: tuple[LayerSize, ...]

    @property
    def largest_layer(self) -> LayerSize:
        """The layer with the most non-zeros; the first one in a tie."""
        return max(self.layers, key=lambda layer: layer.nonzero)

    def to_dict(self) -> dict[str, object]:
        """JSON view."""
        return {
            "dense_parameters": self.dense_parameters,
            "nonzero": self.nonzero,
            "sparsity": self.sparsity,
            "nonzero_with_mask": self.nonzero_with_mask,
            "compression_rate": self.compression_rate,
            "layers": {
                layer.layer: {"parameters": layer.parameters, "nonzero": layer.nonzero}
                for layer in self.layers
            },
            "largest_layer": self.largest_layer.layer,
        }

    def summary(self) -> dict[str, object]:
        """The counts that every report of a model states beside its non-zeros.

        The count with masks, the compression rate (Pang et al. 2018, eq. 13, over the whole
        model) and the largest layer.
        """
        largest = self.largest_layer
        return {
            "nonzero_with_mask": self.nonzero_with_mask,
            "compression_rate": self.compression_rate,
            "largest_layer": {"layer": largest.layer, "nonzero": largest.nonzero},
        }


def size_report(counts: Iterable[TensorCount], bits: int) -> SizeReport:
    """Adds up the tensors of a model, in model order.

    Args:
        counts: Every parameter.
        bits: Width of a stored value.
    """
    layers: dict[str, tuple[int, int]] = {}
    dense = nonzero = mask_bits = prunable = 0
    for count in counts:
        dense, nonzero = dense + count.parameters, nonzero + count.nonzero
        mask_bits += count.mask_bits
        prunable += count.parameters if count.prunable else 0
        before = layers.get(layer_of(count.fqn), (0, 0))
        layers[layer_of(count.fqn)] = (before[0] + count.parameters, before[1] + count.nonzero)
    with_mask = nonzero + mask_bits / bits
    return SizeReport(
        dense_parameters=dense,
        nonzero=nonzero,
        sparsity=(dense - nonzero) / prunable if prunable else 0.0,
        nonzero_with_mask=with_mask,
        compression_rate=dense / with_mask if with_mask else 1.0,
        layers=tuple(LayerSize(name, *sizes) for name, sizes in layers.items()),
    )
