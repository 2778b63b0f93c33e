"""One importance ranking per matrix, and the threshold of any size on it.

Weights (or blocks of weights) are ordered by magnitude, the largest first, equals by index. The
mask that keeps n weights is the longest prefix of that order which holds at most n weights: so
masks of different sizes are nested and counts are exact. Magnitudes are compared as the integers
that their bits spell (non-negative IEEE numbers sort like integers of the same bits), which makes
histograms and ties exact and the result the same on every device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from omnisparse.sparsity.budget import matrix_shape

Block = tuple[int, int]
Norm = Literal["l1", "l2"]
BLOCKS: tuple[Block, ...] = ((1, 1), (8, 1), (16, 1), (4, 4))

_KEY_DTYPES = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_DIGIT_BITS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a prefix of the ranking ends.

    Attributes:
        threshold: Blocks with a larger key are kept.
        num_ties: So many of the blocks whose key equals `threshold` are kept too, lowest index
            first (matrix by matrix where several are ranked together).
        num_kept: Weights in the prefix.
    """

    threshold: int
    num_ties: int
    num_kept: int


def rank(tensor: Tensor, block: Block = (1, 1), norm: Norm = "l1", name: str = "") -> Ranking:
    """Rank the weights of a tensor, or its blocks, by magnitude.

    Args:
        tensor: Weights of any rank, floating point; ranks above 2 are read as
            `[first, product of the others]`.
        block: Rows (outputs) and columns (inputs) of a block; those at the lower and right edge
            are partial when the shape is not a multiple.
        norm: Score of a block: sum of magnitudes, or of squares (orders like the L2 norm).
        name: Name of the tensor, for messages.

    Raises:
        ValueError: If the dtype, block or norm is not supported, or a weight is not finite.
    """
    return Ranking(tensor, block, norm, name)


class Ranking:
    """The order of one matrix's blocks, from which any number of masks is cut.

    Holds integer keys (one per block; 4 bytes per weight for float32 elements) and one histogram.
    """

    def __init__(
        self, tensor: Tensor, block: Block = (1, 1), norm: Norm = "l1", name: str = ""
    ) -> None:
        self.shape = tuple(tensor.shape)
        self.block = check_block(block)
        self.num_weights = tensor.numel()
        self.keys = score_keys(tensor, block, norm, name)
        self.sizes = block_sizes(self.shape, block, tensor.device)
        self._histogram: Tensor | None = None

    def cuts(self, num_kept: Sequence[int]) -> list[Cut]:
        """Cut for each requested number of weights, all from one pass over the keys.

        Raises:
            ValueError: If a request is negative or exceeds the matrix.
        """
        for request in num_kept:
            if not 0 <= request <= self.num_weights:
                raise ValueError(f"num_kept {request} is out of range; 0 to {self.num_weights}")
        if self._histogram is None:
            self._histogram = _histogram([self.keys], [self.sizes], _top_shift(self.keys))
        return find_cuts([self.keys], [self.sizes], num_kept, self._histogram)

    def masks(self, num_kept: Sequence[int]) -> Iterator[Tensor]:
        """Bool masks of the tensor's shape, True = kept, one per request, made one at a time.

        With blocks a mask may keep less than requested: the most whole blocks that fit.
        """
        for cut in self.cuts(num_kept):
            yield self.mask_at(cut)

    def mask_at(self, cut: Cut) -> Tensor:
        """Bool mask of the tensor's shape for a cut of this ranking."""
        kept = self.keys > cut.threshold
        if cut.num_ties:
            kept[(self.keys == cut.threshold).nonzero()[: cut.num_ties, 0]] = True
        return expand_blocks(kept, self.shape, self.block)

    def positions(self) -> Tensor:
        """Place of every block in the order, 0 = most important: int32 `[num_blocks]`."""
        order = descending_order(self.keys)
        positions = torch.empty(order.numel(), dtype=torch.int32, device=order.device)
        positions[order] = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
        return positions


def check_block(block: Block) -> Block:
    """Return the block if it is a pair of positive sizes.

    Raises:
        ValueError: If it is not.
    """
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block {block} is not a pair of positive sizes such as (8, 1)")
    return block


def parse_block(text: str) -> Block:
    """Parse ``8x1`` (8 outputs by 1 input).

    Raises:
        ValueError: If it is not two whole numbers of at least 1.
    """
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise ValueError(f"block is {text!r}; two whole numbers of at least 1 such as 8x1")
    return int(rows), int(columns)


def score_keys(tensor: Tensor, block: Block, norm: Norm, name: str = "") -> Tensor:
    """Importance of every block as a non-negative integer: flat, row-major over blocks.

    Elements keep the bits of their magnitude. Blocks add up in float64, one element position
    after the other, so that the order of additions is the same on every device.

    Raises:
        ValueError: If the dtype or norm is not supported, or a weight is not finite.
    """
    if tensor.dtype not in _KEY_DTYPES:
        legal = ", ".join(str(dtype) for dtype in _KEY_DTYPES)
        raise ValueError(f"weights {name or '?'} have dtype {tensor.dtype}; legal: {legal}")
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm {norm!r} is not known; legal: l1, l2")
    weights = tensor.detach().reshape(matrix_shape(tensor.shape))
    bits = _KEY_DTYPES[tensor.dtype]
    if block == (1, 1):
        # Shape [R, C] -> [R * C]; clearing the sign bit takes the magnitude.
        keys = weights.contiguous().view(bits).flatten().bitwise_and(torch.iinfo(bits).max)
        infinity = torch.tensor(torch.inf, dtype=tensor.dtype).view(bits)
        if keys.numel() and int(keys.max()) >= int(infinity):
            raise ValueError(f"weights {name or '?'} hold NaN or infinite values")
        return keys
    scores = _block_scores(weights, block, norm)
    if not bool(scores.isfinite().all()):
        if not bool(weights.isfinite().all()):
            raise ValueError(f"weights {name or '?'} hold NaN or infinite values")
        scores.clamp_(max=torch.finfo(torch.float64).max)
    return scores.view(torch.int64).flatten()


def _block_scores(weights: Tensor, block: Block, norm: Norm) -> Tensor:
    rows, columns = (-(-size // step) for size, step in zip(weights.shape, block, strict=True))
    scores = torch.zeros(rows, columns, dtype=torch.float64, device=weights.device)
    for row in range(block[0]):
        for column in range(block[1]):
            part = weights[row :: block[0], column :: block[1]].to(torch.float64)
            part = part.abs() if norm == "l1" else part.square()
            scores[: part.shape[0], : part.shape[1]] += part
    return scores


def block_sizes(shape: Sequence[int], block: Block, device: torch.device) -> int | Tensor:
    """Weights per block: one number if all are whole, else int64 `[num_blocks]`."""
    extents = matrix_shape(shape)
    if extents[0] % block[0] == 0 and extents[1] % block[1] == 0:
        return block[0] * block[1]
    sides = []
    for extent, step in zip(extents, block, strict=True):
        starts = torch.arange(0, extent, step, device=device)
        sides.append((extent - starts).clamp(max=step))
    return torch.outer(sides[0], sides[1]).flatten()


def expand_blocks(kept: Tensor, shape: Sequence[int], block: Block) -> Tensor:
    """One value per block `[num_blocks]` -> one per weight, in the weights' shape."""
    if block == (1, 1):
        return kept.view(*shape)
    rows, columns = matrix_shape(shape)
    grid = kept.view(-(-rows // block[0]), 1, -(-columns // block[1]), 1)
    whole = grid.expand(-1, block[0], -1, block[1])
    padded = whole.reshape(grid.shape[0] * block[0], grid.shape[2] * block[1])
    return padded[:rows, :columns].reshape(*shape)


def descending_order(keys: Tensor) -> Tensor:
    """Indices of keys from the largest to the smallest, equals by index: int64 `[N]`."""
    if keys.device.type == "cpu" and keys.dtype != torch.int64 and keys.numel() < 2**31:
        # Key and index in one integer make every entry distinct: an unstable (vectorised) sort
        # of these is several times faster than torch's stable sort on CPU.
        joint = (torch.iinfo(torch.int32).max - keys.to(torch.int64)).bitwise_left_shift_(32)
        joint += torch.arange(keys.numel())
        joint.numpy().sort()
        return joint.bitwise_and_(2**32 - 1)
    return torch.sort(keys, descending=True, stable=True).indices


def find_cuts(
    keys: Sequence[Tensor],
    sizes: Sequence[int | Tensor],
    num_kept: Sequence[int],
    histogram: Tensor | None = None,
) -> list[Cut]:
    """Cuts of the ranking over one or several matrices: a radix select.

    A histogram of the leading 16 bits finds the bin in which each prefix ends; only the blocks of
    those bins are looked at again, 16 bits further down, until keys are exact.

    Args:
        keys: Flat non-negative integer keys, all of one dtype and device.
        sizes: Weights per block, per matrix: one number, or one tensor like the keys.
        num_kept: Most weights that each prefix may hold.
        histogram: That of the leading bits, if it is known.

    Returns:
        One cut per request, each the longest prefix that fits.
    """
    shift = _top_shift(keys[0])
    return _refine(keys, sizes, num_kept, shift, histogram)


def _refine(
    keys: Sequence[Tensor],
    sizes: Sequence[int | Tensor],
    num_kept: Sequence[int],
    shift: int,
    histogram: Tensor | None = None,
) -> list[Cut]:
    if histogram is None:
        histogram = _histogram(keys, sizes, shift)
    # Weights in a bin and all above it; the prefix ends in the highest bin that does not fit.
    inclusive = histogram.flip(0).cumsum(0)
    reversed_bins = torch.searchsorted(
        inclusive, torch.tensor(num_kept, dtype=torch.int64, device=inclusive.device), right=True
    ).tolist()
    totals = inclusive.tolist()
    last = len(totals) - 1
    cuts: list[Cut | None] = [None] * len(num_kept)
    inside: dict[int, list[int]] = {}
    for request, reverse in enumerate(reversed_bins):
        if reverse > last:
            cuts[request] = Cut(threshold=-1, num_ties=0, num_kept=totals[last])
        else:
            inside.setdefault(last - reverse, []).append(request)
    digit_bins = _members(keys, sizes, sorted(inside), shift)
    for (bin_, requests), (bin_keys, bin_sizes) in zip(
        sorted(inside.items()), digit_bins, strict=True
    ):
        above = totals[last - bin_ - 1] if bin_ < last else 0
        rest = [num_kept[request] - above for request in requests]
        if shift == 0:
            found = [_cut_ties(bin_keys, bin_sizes, room) for room in rest]
        else:
            found = _refine(bin_keys, bin_sizes, rest, shift - _DIGIT_BITS)
        for request, cut in zip(requests, found, strict=True):
            threshold = cut.threshold + (bin_ << shift)
            cuts[request] = Cut(threshold, cut.num_ties, cut.num_kept + above)
    return [cut for cut in cuts if cut is not None]


def _cut_ties(keys: Sequence[Tensor], sizes: Sequence[int | Tensor], room: int) -> Cut:
    """Cut inside a group of equal keys: blocks in index order while they fit."""
    kept = ties = 0
    for group, size in zip(keys, sizes, strict=True):
        if isinstance(size, int):
            fit = min(group.numel(), (room - kept) // size)
            weights = fit * size
        else:
            running = size.cumsum(0)
            fit = int(torch.searchsorted(running, room - kept, right=True))
            weights = int(running[fit - 1]) if fit else 0
        kept, ties = kept + weights, ties + fit
        if fit < group.numel():
            return Cut(threshold=0, num_ties=ties, num_kept=kept)
    # All of the group is kept: a threshold just below it says so, and masks need not look for ties.
    return Cut(threshold=-1, num_ties=0, num_kept=kept)


def _top_shift(keys: Tensor) -> int:
    return torch.iinfo(keys.dtype).bits - _DIGIT_BITS


def _digits(keys: Tensor, shift: int) -> Tensor:
    digits = keys.bitwise_right_shift(shift) if shift else keys
    if shift == _top_shift(keys):
        return digits
    return digits.bitwise_and(2**_DIGIT_BITS - 1)


def _histogram(keys: Sequence[Tensor], sizes: Sequence[int | Tensor], shift: int) -> Tensor:
    """Weights per 16-bit digit over all matrices: int64 `[32768 or 65536]`."""
    length = 2 ** (_DIGIT_BITS - (shift == _top_shift(keys[0])))
    total = torch.zeros(length, dtype=torch.int64, device=keys[0].device)
    for values, size in zip(keys, sizes, strict=True):
        digits = _digits(values, shift)
        counts = torch.bincount(digits, minlength=length)
        if isinstance(size, int):
            total += counts * size
        else:
            # Partial blocks are few: correct the full count for them instead of weighing all.
            whole = int(size.max()) if size.numel() else 1
            partial = size < whole
            total += counts * whole
            total.index_add_(0, digits[partial].long(), size[partial] - whole)
    return total


def _members(
    keys: Sequence[Tensor], sizes: Sequence[int | Tensor], bins: Sequence[int], shift: int
) -> Iterator[tuple[list[Tensor], list[int | Tensor]]]:
    """Keys and sizes of the blocks in each of a few bins; one pass over the keys for all bins."""
    pool_keys, pool_sizes = list(keys), list(sizes)
    if len(bins) > 1:
        needed = torch.zeros(2**_DIGIT_BITS, dtype=torch.bool, device=keys[0].device)
        needed[list(bins)] = True
        for index, values in enumerate(keys):
            chosen = needed.index_select(0, _digits(values, shift).int())
            pool_keys[index] = values[chosen]
            size = pool_sizes[index]
            pool_sizes[index] = size if isinstance(size, int) else size[chosen]
    for bin_ in bins:
        chosen_keys, chosen_sizes = [], []
        for values, size in zip(pool_keys, pool_sizes, strict=True):
            chosen = _digits(values, shift) == bin_
            chosen_keys.append(values[chosen])
            chosen_sizes.append(size if isinstance(size, int) else size[chosen])
        yield chosen_keys, chosen_sizes
