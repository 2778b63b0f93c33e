"""Where the prefixes of a ranking end: a radix select over the keys of one or several matrices.

Only the large arrays stay on the device of the weights. Histograms, and the keys of the bins in
which prefixes end, are processed on the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omnisparse.sparsity import arrays
from omnisparse.sparsity.arrays import Array, Host
from omnisparse.sparsity.keys import Keys, Magnitudes, Sizes, not_finite

Histogram = npt.NDArray[np.int64]

_DIGIT_BITS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a prefix of the ranking ends.

    Attributes:
        threshold: Blocks with a larger key are kept.
        num_ties: Number of blocks with a key equal to `threshold` that are also kept, lowest index
            first (matrix by matrix where several are ranked together).
        num_kept: Weights in the prefix.
    """

    threshold: int
    num_ties: int
    num_kept: int


class Keeper:
    """Applies a cut to keys, given in parts in the order of their indices."""

    def __init__(self, cut: Cut) -> None:
        self.threshold = cut.threshold
        self.ties_left = cut.num_ties

    def __call__(self, keys: Array) -> Array:
        """Mask of the blocks of the next part that the cut keeps."""
        kept = keys > self.threshold
        if self.ties_left:
            equal = arrays.find(keys == self.threshold)[: self.ties_left]
            kept[equal] = True
            self.ties_left -= len(equal)
        return kept


class Promoted(Keys):
    """Keys of a matrix in which a prefix is ranked before everything else."""

    def __init__(self, keys: Keys, first: Cut) -> None:
        self._keys = keys
        self._first = first
        self.sizes, self.bits = keys.sizes, keys.bits

    def __iter__(self) -> Iterator[tuple[Array, Sizes]]:
        keep = Keeper(self._first)
        for part, sizes in self._keys:
            promoted = part + 0  # a copy: the part may belong to the caller
            promoted[keep(part)] = 2 ** (self.bits - 1) - 1
            yield promoted, sizes


def find_cuts(
    keys: Sequence[Keys], num_kept: Sequence[int], histogram: Histogram | None = None
) -> list[Cut]:
    """Cuts of the ranking over one or several matrices: a radix select.

    A histogram of the leading 16 bits finds the bin in which each prefix ends. Only the blocks of
    those bins are read again, for the next 16 bits, until the whole keys are used.

    Args:
        keys: Non-negative integer keys of every matrix, all of one dtype.
        num_kept: Most weights that each prefix may hold.
        histogram: `leading_histogram` of the keys, if it is known.

    Returns:
        One cut per request, each the longest prefix that fits.

    Raises:
        ValueError: If a weight is not finite.
    """
    if histogram is None:
        histogram = leading_histogram(keys)
    return _refine(keys, num_kept, keys[0].bits - _DIGIT_BITS, histogram)


def leading_histogram(keys: Sequence[Keys]) -> Histogram:
    """Weights per value of the leading 16 bits of the keys, over all matrices: `[32768]`.

    Raises:
        ValueError: If a weight is not finite; names the matrix.
    """
    total = np.zeros(2 ** (_DIGIT_BITS - 1), np.int64)
    for group in keys:
        shift = group.bits - _DIGIT_BITS
        histogram = _histogram(group, shift, total.size)
        if isinstance(group, Magnitudes) and histogram[group.infinity >> shift :].any():
            raise not_finite(group.name)
        total += histogram
    return total


def members_of(keys: Keys, bin_: int) -> Keys:
    """The blocks in one bin of `leading_histogram`, on the host, in the order of their indices."""
    ((_, found),) = _members([keys], [bin_], keys.bits - _DIGIT_BITS)
    return found


def _refine(
    keys: Sequence[Keys], num_kept: Sequence[int], shift: int, histogram: Histogram
) -> list[Cut]:
    # Weights in a bin and all above it; the prefix ends in the highest bin that does not fit.
    inclusive = histogram[::-1].cumsum()
    last = inclusive.size - 1
    cuts: list[Cut | None] = [None] * len(num_kept)
    inside: dict[int, list[int]] = {}
    for request, reverse in enumerate(np.searchsorted(inclusive, num_kept, side="right").tolist()):
        if reverse > last:
            cuts[request] = Cut(threshold=-1, num_ties=0, num_kept=int(inclusive[last]))
        else:
            inside.setdefault(last - reverse, []).append(request)
    above = {bin_: int(inclusive[last - bin_] - histogram[bin_]) for bin_ in inside}
    rooms = {
        bin_: [num_kept[request] - above[bin_] for request in inside[bin_]]
        for bin_ in sorted(inside)
    }
    for bin_, found in _cut_bins(keys, rooms, shift, histogram):
        for request, cut in zip(inside[bin_], found, strict=True):
            threshold = cut.threshold + (bin_ << shift)
            cuts[request] = Cut(threshold, cut.num_ties, cut.num_kept + above[bin_])
    return [cut for cut in cuts if cut is not None]


def _cut_bins(
    keys: Sequence[Keys], rooms: Mapping[int, Sequence[int]], shift: int, histogram: Histogram
) -> Iterator[tuple[int, list[Cut]]]:
    """Cuts inside some bins, relative to the lowest key of each."""
    size = _common_size(keys)
    if shift == 0 and size is not None:
        for bin_, room in rooms.items():
            num_blocks = int(histogram[bin_]) // size
            yield bin_, [_cut_ties(num_blocks, size, limit) for limit in room]
        return
    for bin_, members in _members(keys, list(rooms), shift):
        if shift == 0:
            sizes = members.sizes
            assert not isinstance(sizes, int)
            yield bin_, [_cut_ties(sizes.size, sizes, limit) for limit in rooms[bin_]]
        else:
            lower = shift - _DIGIT_BITS
            counts = _histogram(members, lower, 2**_DIGIT_BITS)
            yield bin_, _refine([members], rooms[bin_], lower, counts)


def _common_size(keys: Sequence[Keys]) -> int | None:
    """Weights per block where it is one number for all matrices."""
    sizes = {group.sizes if isinstance(group.sizes, int) else None for group in keys}
    return sizes.pop() if len(sizes) == 1 else None


def _cut_ties(num_blocks: int, sizes: Sizes, room: int) -> Cut:
    """Cut inside a group of equal keys: blocks in index order while they fit."""
    if isinstance(sizes, int):
        ties = min(num_blocks, room // sizes)
        kept = ties * sizes
    else:
        running = sizes.cumsum()
        ties = int(np.searchsorted(running, room, side="right"))
        kept = int(running[ties - 1]) if ties else 0
    if ties < num_blocks:
        return Cut(threshold=0, num_ties=ties, num_kept=kept)
    # The whole group is kept: with a threshold just below it, masks need no search for ties.
    return Cut(threshold=-1, num_ties=0, num_kept=kept)


def _digits(keys: Array, shift: int) -> Array:
    digits = keys >> shift if shift else keys
    if shift == keys.dtype.itemsize * 8 - _DIGIT_BITS:
        return digits
    return digits & (2**_DIGIT_BITS - 1)


def _histogram(keys: Keys, shift: int, length: int) -> Histogram:
    """Weights per 16-bit digit."""
    total = np.zeros(length, np.int64)
    whole = keys.sizes if isinstance(keys.sizes, int) else int(keys.sizes.max(initial=1))
    for part, sizes in keys:
        digits = _digits(part, shift)
        total += arrays.count_values(digits, length) * whole
        if not isinstance(sizes, int):
            # There are few partial blocks: correct the full count instead of weighting all blocks.
            partial = sizes < whole
            np.add.at(total, arrays.host(digits)[partial], sizes[partial] - whole)
    return total


def _members(keys: Sequence[Keys], bins: Sequence[int], shift: int) -> Iterator[tuple[int, Keys]]:
    """The blocks in each of a few bins, on the host; one pass over the keys for all bins."""
    if not bins:
        return
    table = np.zeros(2**_DIGIT_BITS, np.bool_)
    table[list(bins)] = True
    size = _common_size(keys)
    pool: list[Host] = []
    pool_sizes: list[npt.NDArray[np.int64]] = []
    for group in keys:
        for part, sizes in group:
            digits = _digits(part, shift)
            chosen = digits == bins[0] if len(bins) == 1 else arrays.is_in(digits, table)
            places = arrays.find(chosen)
            pool.append(arrays.host(part[places]))
            if size is None:
                whole = np.full(len(part), sizes) if isinstance(sizes, int) else sizes
                pool_sizes.append(whole[arrays.host(places)])
    members = np.concatenate(pool)
    each = np.concatenate(pool_sizes) if size is None else size
    digits = _digits(members, shift)
    for bin_ in bins:
        inside = arrays.find(digits == bin_)
        yield bin_, Keys(members[inside], each if isinstance(each, int) else each[inside])
