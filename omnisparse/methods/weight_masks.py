"""Masks that a net in training keeps to: what they hide is exactly zero after every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

_MASK = "mask/"


class WeightMasks:
    """Masks of some matrices of a net; hidden weights are zero and have no gradient.

    Args:
        model: The net.
        names: Names of the matrices.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = model
        self.shapes = {fqn: tuple(model.get_parameter(fqn).shape) for fqn in names}
        self.masks: dict[str, Tensor] = {}
        """Bools of each matrix's shape, True = kept; empty while nothing is hidden."""
        for fqn in names:
            parameter = model.get_parameter(fqn)
            if parameter.requires_grad:  # a frozen matrix has no gradient at all
                parameter.register_hook(self._hide_gradient(fqn))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def apply(self) -> None:
        """Set what is hidden to zero."""
        for fqn, mask in self.masks.items():
            parameter = self.model.get_parameter(fqn)
            if mask.device != parameter.device:
                mask = self.masks[fqn] = mask.to(parameter.device)
            # Not a product: a masked weight that overflowed must not become NaN.
            parameter.masked_fill_(~mask, 0.0)

    def num_kept(self) -> int:
        """Weights that the masks keep."""
        return sum(int(mask.sum()) for mask in self.masks.values())

    def state_dict(self) -> dict[str, Tensor]:
        """The masks, a bit per weight."""
        return {f"{_MASK}{fqn}": _pack(mask) for fqn, mask in self.masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the masks, and apply them; other entries of ``state`` are not read.

        Raises:
            ValueError: If the masks belong to another model.
        """
        found = {k.removeprefix(_MASK): v for k, v in state.items() if k.startswith(_MASK)}
        if found and found.keys() != self.shapes.keys():
            raise ValueError(f"the checkpoint has masks of other matrices: {list(found)}")
        self.masks = {fqn: _unpack(bits, self.shapes[fqn]) for fqn, bits in found.items()}
        self.apply()

    def _hide_gradient(self, fqn: str) -> object:
        """A hook that keeps masked weights out of the gradient, its norm and the moments."""

        def hide(gradient: Tensor) -> Tensor:
            mask = self.masks.get(fqn)
            return gradient if mask is None else gradient * mask.to(gradient.device)

        return hide


def _pack(mask: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=None, bitorder="little"))


def _unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = int(np.prod(shape))
    flat = np.unpackbits(bits.cpu().numpy(), count=count, bitorder="little")
    return torch.from_numpy(flat.astype(bool).reshape(shape))
