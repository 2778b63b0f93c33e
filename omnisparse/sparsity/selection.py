"""The weights that subnets keep of one numpy matrix, a chunk of rows at a time.

Extraction packs all sizes of a matrix in one pass: each chunk is read once, no whole mask is ever
stored, and the weights of a smaller subnet are selected from those of the next larger one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Host
from omnisparse.sparsity.budget import matrix_shape
from omnisparse.sparsity.cuts import Keeper
from omnisparse.sparsity.keys import Block, Norm, expand_blocks, magnitudes, row_step
from omnisparse.sparsity.ranking import rank


class Rows:
    """Some rows of a matrix, and the weights that several subnets keep of them.

    Args:
        weights: `[R, C]` as stored (uint16: bits of bfloat16), or integers.
        masks: For each subnet `[R, C]`, True = kept; None where all keep everything.
        thresholds: For each subnet the key above which its mask keeps a weight; None where a
            threshold alone does not describe the mask.
    """

    def __init__(
        self,
        weights: Host,
        masks: Sequence[Host] | None = None,
        thresholds: Sequence[int | None] = (),
    ) -> None:
        self.weights = weights
        self._masks = masks
        self._thresholds = thresholds

    @cached_property
    def floats(self) -> Host:
        """The weights as float32."""
        return np.asarray(arrays.as_floats(self.weights, "float32"))

    def is_sound(self, index: int) -> bool:
        """Whether all weights that a subnet keeps are known to be finite and non-zero (float32)."""
        threshold = self._thresholds[index] if self._masks is not None else None
        # The ranking rejects values that are not finite, and only zero has the key zero.
        return threshold is not None and threshold >= 0 and self.weights.dtype != np.float64

    def mask(self, index: int) -> Host:
        """Mask of the weights that a subnet keeps; of the non-zero weights if it keeps all."""
        return self.floats != 0 if self._masks is None else self._masks[index]

    def masked(self, index: int) -> Host:
        """The weights in float32, zero where a subnet does not keep them."""
        if self._masks is None:
            return self.floats
        return np.where(self._masks[index], self.floats, np.float32(0))

    def values(self, index: int) -> Host:
        """The weights where `mask` is True, in row-major order, as stored."""
        if self._masks is None:
            return self.weights.reshape(-1).take(np.flatnonzero(self.mask(index)))
        return self._values[index]

    @cached_property
    def _values(self) -> list[Host]:
        assert self._masks is not None
        flat = self.weights.reshape(-1)
        found = [flat[:0]] * len(self._masks)
        plain: list[tuple[int, int]] = []
        for index, threshold in enumerate(self._thresholds):
            if threshold is None:
                found[index] = flat.take(np.flatnonzero(self._masks[index]))
            else:
                plain.append((threshold, index))
        larger: Host | None = None
        for threshold, index in sorted(plain):  # the most weights first
            kept = self._masks[index] if larger is None else magnitudes(larger) > threshold
            larger = (flat if larger is None else larger).take(np.flatnonzero(kept))
            found[index] = larger
        return found


def kept_rows(
    array: Host,
    num_kept: Sequence[int] | None = None,
    block: Block = (1, 1),
    norm: Norm = "l1",
    name: str = "",
    *,
    drop_zeros: bool = False,
) -> Iterator[Rows]:
    """Iterate over a matrix and select the weights that subnets keep.

    Args:
        array: A tensor of any rank, read as a matrix; integers where nothing is pruned.
        num_kept: Weights that each subnet keeps; None where all keep everything.
        block: Block shape.
        norm: Block score.
        name: Name of the matrix, for messages.
        drop_zeros: Whether masks leave out weights that are exactly zero.

    Yields:
        Chunks of whole rows (and whole blocks), in order.

    Raises:
        ValueError: If the weights cannot be ranked.
    """
    matrix = array.reshape(matrix_shape(array.shape))
    step = row_step(matrix, block)
    numel = math.prod(matrix.shape)
    if num_kept is None or all(count == numel for count in num_kept):
        for start in range(0, matrix.shape[0], step):
            yield Rows(matrix[start : start + step])
        return
    ranking = rank(array, block, norm, name)
    keepers = [Keeper(cut) for cut in ranking.cuts(num_kept)]
    columns = -(-matrix.shape[1] // block[1])
    for start in range(0, matrix.shape[0], step):
        weights = matrix[start : start + step]
        bands = start // block[0], -(-(start + weights.shape[0]) // block[0])
        keys = ranking.scores.between(bands[0] * columns, bands[1] * columns)
        # A threshold describes the mask from where no ties are left to separate.
        plain = block == (1, 1) and not drop_zeros
        thresholds = [k.threshold if plain and not k.ties_left else None for k in keepers]
        masks = [expand_blocks(keep(keys), weights.shape, block) for keep in keepers]
        rows = Rows(weights, masks, thresholds)
        if drop_zeros:
            rows = Rows(weights, [mask & (rows.floats != 0) for mask in masks], thresholds)
        yield rows
