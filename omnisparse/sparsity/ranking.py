"""One importance ranking per matrix, and masks of any size from it.

Weights (or blocks of weights) are ordered by magnitude, the largest first, ties by index. The mask
that keeps n weights is the longest prefix of that order with at most n weights. So masks of
different sizes are nested and counts are exact.

The weights may be a torch tensor (training) or a numpy array (extraction); the definitions are the
same. :mod:`omnisparse.sparsity.arrays` holds the operations that the two libraries write
differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Array, descending_order
from omnisparse.sparsity.budget import matrix_shape
from omnisparse.sparsity.cuts import Cut, Histogram, Keeper, find_cuts, leading_histogram
from omnisparse.sparsity.keys import (
    BLOCKS,
    Block,
    Magnitudes,
    Norm,
    check_block,
    expand_blocks,
    score,
)

__all__ = ["BLOCKS", "Block", "Norm", "Ranking", "rank"]


def rank(tensor: Array, block: Block = (1, 1), norm: Norm = "l1", name: str = "") -> Ranking:
    """Rank the weights of a tensor, or its blocks, by magnitude.

    Args:
        tensor: Weights of any rank, floating point, of torch or numpy (uint16: bits of bfloat16);
            ranks above 2 are read as `[first, product of the others]`.
        block: Rows (outputs) and columns (inputs) of a block; those at the lower and right edge
            are partial when the shape is not a multiple.
        norm: Score of a block: sum of magnitudes, or of squares (orders like the L2 norm); a
            partial block's is scaled up to a whole one, so that blocks compete by their means.
        name: Name of the tensor, for messages.

    Raises:
        ValueError: If the dtype, block or norm is not supported, or a weight is not finite.
    """
    return Ranking(tensor, block, norm, name)


class Ranking:
    """The order of one matrix's blocks, from which any number of masks is made.

    Holds one histogram and integer keys, one per block. The keys of single float32 weights take 4
    bytes per weight for torch and no memory for numpy.
    """

    def __init__(
        self, tensor: Array, block: Block = (1, 1), norm: Norm = "l1", name: str = ""
    ) -> None:
        self.shape = tuple(tensor.shape)
        self.block = check_block(block)
        rows, columns = matrix_shape(self.shape)
        self.num_weights = rows * columns
        self.scores = score(tensor, block, norm, name)
        self._histogram: Histogram | None = None
        if isinstance(self.scores, Magnitudes):
            self._histogram = leading_histogram([self.scores])  # also finds NaN and infinity

    @property
    def keys(self) -> Array:
        """Importance of every block: flat integers."""
        return arrays.joined(part for part, _ in self.scores)

    def cuts(self, num_kept: Sequence[int]) -> list[Cut]:
        """One cut per requested number of weights, all from one pass over the keys.

        Raises:
            ValueError: If a request is negative or exceeds the matrix.
        """
        for request in num_kept:
            if not 0 <= request <= self.num_weights:
                raise ValueError(f"num_kept {request} is out of range; 0 to {self.num_weights}")
        if self._histogram is None:
            self._histogram = leading_histogram([self.scores])
        return find_cuts([self.scores], num_kept, self._histogram)

    def masks(self, num_kept: Sequence[int]) -> Iterator[Array]:
        """Bool masks of the tensor's shape, True = kept, one per request, made one at a time.

        With blocks a mask may keep less than requested: the most whole blocks that fit.
        """
        for cut in self.cuts(num_kept):
            yield self.mask_at(cut)

    def mask_at(self, cut: Cut) -> Array:
        """Bool mask of the tensor's shape for a cut of this ranking."""
        keep = Keeper(cut)
        kept = arrays.joined(keep(part) for part, _ in self.scores)
        return expand_blocks(kept, self.shape, self.block)

    def positions(self) -> Array:
        """Place of every block in the order, 0 = most important: int32 `[num_blocks]`."""
        return arrays.inverse(descending_order(self.keys))
