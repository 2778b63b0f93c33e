"""Sizes: every number of parameters or bytes in omnisparse is computed here.

Terms: `dense` is every parameter of the model. `prunable` are the matrices that a mask may prune.
`unprunable` is the rest; it counts in full, even where a bias is zero. `nonzero` is the kept
prunable weights plus the unprunable part. In a request and during training, a kept weight of
exactly 0.0 counts as kept. A file does not store it, so reports on a file do not count it: they
count the non-zero weights that the file holds.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from omnisparse.errors import UsageError
from omnisparse.sparsity import arrays
from omnisparse.sparsity.apportion import apportion
from omnisparse.sparsity.arrays import Array
from omnisparse.sparsity.report import SizeReport, TensorCount, size_report
from omnisparse.sparsity.sizes import Size, parse_size

if TYPE_CHECKING:
    from torch import nn


def num_parameters(parameters: Mapping[str, Array] | Iterable[tuple[str, Array]]) -> int:
    """Number of values in named arrays (a state dict, or `model.named_parameters()`)."""
    pairs = parameters.items() if isinstance(parameters, Mapping) else parameters
    return sum(math.prod(array.shape) for _, array in pairs)


def num_nonzero(state: Mapping[str, Array], prunable: Iterable[str]) -> int:
    """Count a state dict: non-zero values of the prunable matrices plus all other values."""
    names = frozenset(prunable)
    return sum(
        arrays.count_nonzero(array) if fqn in names else math.prod(array.shape)
        for fqn, array in state.items()
    )


def num_blocks(shape: Sequence[int], block: tuple[int, int] = (1, 1)) -> int:
    """Number of blocks in a matrix, including partial ones at the lower and right edge."""
    rows, columns = matrix_shape(shape)
    return -(-rows // block[0]) * -(-columns // block[1])


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """`[rows, columns]` of a weight of any rank: first dimension, product of all others."""
    rows = int(shape[0]) if shape else 1
    return rows, math.prod(int(size) for size in shape[1:])


def compression_rate(sparsity: float, bits: int = 32, block_size: int = 1) -> float:
    """Dense bytes over sparse bytes when each block costs one mask bit.

    Args:
        sparsity: Share of zeros, in [0, 1].
        bits: Width of a kept value; 32 gives the equation as printed.
        block_size: Weights per mask bit.

    Returns:
        eta = 1 / (1 - s + 1 / (bits * block_size)); below 1 if s is below the mask's overhead.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Pang et al. 2018, eq. 13, eta = 1 / (1 - s + 1/32).
    Deviation: the printed 1/32 holds for 32-bit values; the mask bit weighs 1/bits of a value.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is out of range; legal: 0 <= sparsity <= 1")
    if bits < 1 or block_size < 1:
        raise ValueError(f"bits {bits} and block_size {block_size} must be at least 1")
    return 1 / (1 - sparsity + 1 / (bits * block_size))


class Budget:
    """Turns requests into numbers of kept weights for one model.

    Args:
        shapes: Shape of every parameter of the model, by fully qualified name, in model order.
        prunable: Names of the matrices that masks may prune.
        floor: Smallest density of any prunable matrix, in [0, 1]; at least one weight is kept.
        block: Block shape of the masks.

    Raises:
        ValueError: If `prunable` is empty or names unknown or empty parameters, or `floor` is out
            of range.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        prunable: Sequence[str],
        *,
        floor: float = 0.0,
        block: tuple[int, int] = (1, 1),
    ) -> None:
        check_names(prunable, shapes, "prunable")
        if not prunable:
            raise ValueError(
                "the net has no matrix to prune (prunable is empty): all are products of factors, "
                f"or none was named; its parameters are {', '.join(list(shapes)[:3])}, ..."
            )
        self.shapes = {fqn: tuple(int(size) for size in shape) for fqn, shape in shapes.items()}
        self.numel = {fqn: math.prod(shape) for fqn, shape in self.shapes.items()}
        names = frozenset(prunable)
        self.prunable = {fqn: count for fqn, count in self.numel.items() if fqn in names}
        if not all(self.prunable.values()):
            raise ValueError("prunable names parameters without any values")
        self.floor = floor
        self.block = block
        self.floors = floors_of(self.prunable, floor, block)
        self.dense_parameters = sum(self.numel.values())
        self.prunable_parameters = sum(self.prunable.values())
        self.unprunable = self.dense_parameters - self.prunable_parameters

    @classmethod
    def of(
        cls,
        model: nn.Module,
        prunable: Sequence[str],
        *,
        floor: float = 0.0,
        block: tuple[int, int] = (1, 1),
    ) -> Budget:
        """Budget of a module's parameters; a tied parameter counts once.

        A module may have a method `training_only` with the names of parameters that are in no
        model made from it; these count in no budget.
        """
        training_only = getattr(model, "training_only", None)
        left_out = set(training_only()) if training_only is not None else set()
        shapes = {
            fqn: tuple(parameter.shape)
            for fqn, parameter in model.named_parameters()
            if fqn not in left_out
        }
        return cls(shapes, prunable, floor=floor, block=block)

    def nonzero_range(self) -> tuple[int, int]:
        """Smallest and largest legal number of non-zeros."""
        return self.unprunable + sum(self.floors.values()), self.dense_parameters

    def parse(self, size: str | int) -> Size:
        """`parse_size` whose error also names this model's legal range.

        Raises:
            UsageError: If the text is not a size.
        """
        try:
            return parse_size(size)
        except UsageError as error:
            low, high = self.nonzero_range()
            raise UsageError(
                f"{error}; legal for this model: {low} to {high} non-zero parameters"
            ) from error

    def solve(self, size: Size | str | int) -> int:
        """Number of prunable weights to keep, exact to the weight.

        A fraction or sparsity is rounded to the nearest whole weight, ties to even.

        Raises:
            ValueError: If the request cannot be met; the message names the legal range. Also
                for sizes in bytes, which need `solve_bytes`.
        """
        low, high = self.nonzero_range()
        legal = f"legal: {low} to {high} non-zero parameters"
        if not isinstance(size, Size):
            size = self.parse(size)
        if size.kind == "bytes":
            raise ValueError(f"size {size.text!r} is in bytes, which is not legal here; {legal}")
        if size.kind == "nonzero":
            nonzero = int(size.value)
        elif size.kind == "fraction":
            nonzero = round(size.value * self.dense_parameters)
            legal = f"legal: {_percent(low, high)}% to 100% of the dense parameters ({legal[7:]})"
        else:
            nonzero = self.unprunable + round((1 - size.value) * self.prunable_parameters)
            most = (high - low) / self.prunable_parameters
            legal = f"legal: 0 to {math.floor(most * 1e6) / 1e6:g} ({legal[7:]})"
        if not low <= nonzero <= high or (size.kind != "nonzero" and not 0 <= size.value <= 1):
            what = "sparsity" if size.kind == "sparsity" else "size"
            raise ValueError(f"{what} {size.text!r} is out of range for this model; {legal}")
        return nonzero - self.unprunable

    def solve_bytes(
        self,
        limit: Size | str | int,
        size_of: Callable[[Mapping[str, int]], int],
        allocate: Callable[[int], Mapping[str, int]] | None = None,
        *,
        milestones: Sequence[int] = (),
    ) -> dict[str, int]:
        """Kept weights per prunable matrix of the largest model whose file fits.

        Bisection over all totals. It is exact because `size_of` and `allocate` never fall.

        Args:
            limit: Bytes: an int, or a `Size`/text of kind `bytes`.
            size_of: Bytes of the file that would be written for given kept counts; must not fall
                when a count grows (`artifact.planned_bytes` does not).
            allocate: Kept counts for a total; no count may fall when the total grows. Default: the
                same sparsity in every matrix.
            milestones: Totals in rising order to try first, where `allocate` is cheapest.

        Raises:
            ValueError: If the limit is below this model's smallest file or above its largest.
        """
        split = allocate or self.allocate_uniform
        request = Size("bytes", Fraction(limit), f"{limit}B") if isinstance(limit, int) else limit
        size = self.parse(request) if isinstance(request, str) else request
        if size.kind != "bytes":
            raise ValueError(f"size {size.text!r} is not in bytes")
        most = math.floor(size.value)
        low, high = sum(self.floors.values()), self.prunable_parameters
        smallest, largest = size_of(split(low)), size_of(split(high))
        if not smallest <= most <= largest:
            raise ValueError(
                f"size {size.text!r} is out of range for this model; "
                f"legal: {smallest}B to {largest}B"
            )
        if most == largest:
            return dict(split(high))

        def last_that_fits(totals: Sequence[int]) -> int:
            """Number of totals, from the first on, whose file fits."""
            return bisect.bisect_right(totals, most, key=lambda total: size_of(split(total)))

        inner = [total for total in milestones if low < total < high]
        fitting = last_that_fits(inner)
        low, high = [low, *inner, high][fitting : fitting + 2]
        return dict(split(low + last_that_fits(range(low + 1, high))))

    def allocate_uniform(self, total: int) -> dict[str, int]:
        """Divide exactly `total` kept weights among the prunable matrices at one density."""
        shapes = {fqn: self.shapes[fqn] for fqn in self.prunable}
        return allocate_uniform(shapes, total, self.floor, self.block)

    def report(self, kept: Mapping[str, int], *, bits: int = 32) -> SizeReport:
        """Counts of the subnet that keeps `kept[fqn]` weights; other matrices are kept whole.

        Raises:
            ValueError: If `kept` names an unknown matrix.
        """
        check_names(kept, self.prunable, "kept")
        counts = []
        for fqn, numel in self.numel.items():
            nonzero = kept.get(fqn, numel)
            mask_bits = num_blocks(self.shapes[fqn], self.block) if nonzero < numel else 0
            counts.append(TensorCount(fqn, numel, nonzero, mask_bits, fqn in self.prunable))
        return size_report(counts, bits)


def floors_of(
    prunable: Mapping[str, int], floor: float, block: tuple[int, int] = (1, 1)
) -> dict[str, int]:
    """Fewest kept weights per matrix: the share `floor`, and at least one weight.

    So no layer loses all its weights. With blocks, the number is large enough for any choice of
    whole blocks to satisfy this.

    Raises:
        UsageError: If `floor` is outside [0, 1].
    """
    if not 0 <= floor <= 1:
        raise UsageError(f"floor {floor} is out of range; legal: 0 <= floor <= 1")
    spare = block[0] * block[1] - 1
    return {
        fqn: min(numel, max(1, math.ceil(floor * numel)) + spare) for fqn, numel in prunable.items()
    }


def allocate_uniform(
    shapes: Mapping[str, Sequence[int]],
    total: int,
    floor: float = 0.0,
    block: tuple[int, int] = (1, 1),
) -> dict[str, int]:
    """One density for all matrices: see `allocate_proportional` with factors of 1."""
    return allocate_proportional(shapes, total, {}, floor, block)


def allocate_proportional(
    shapes: Mapping[str, Sequence[int]],
    total: int,
    factors: Mapping[str, float],
    floor: float = 0.0,
    block: tuple[int, int] = (1, 1),
) -> dict[str, int]:
    """Densities in given proportions: kept weights per matrix, adding up to exactly `total`.

    With blocks: whole blocks that add up to the most that does not exceed `total`. If blocks do
    not tile every matrix, the counts add up to `total`, and each mask keeps the whole blocks that
    fit. For given factors, counts never shrink when the total grows.

    Args:
        shapes: Shapes by name.
        total: Weights to keep in total.
        factors: Relative density of each matrix, above 0; 1 where not named. A matrix whose
            density would exceed 1 is kept whole, and the others share the rest.
        floor: Least density of any matrix.
        block: Block shape.

    Raises:
        ValueError: If the total is below the floors or above the dense count.
    """
    size = block[0] * block[1]
    numel = {fqn: math.prod(shape) for fqn, shape in shapes.items()}
    floors = floors_of(numel, floor, block)
    check_total(total, floors, numel, floor, block)
    if total == sum(numel.values()):
        return numel
    if not all(is_tiled(shape, block) for shape in shapes.values()):
        # Matrices with partial blocks at their edges: masks keep what fits of these counts.
        sizes = list(numel.values())
        shares = [count * factors.get(fqn, 1.0) for fqn, count in numel.items()]
        split = apportion(total, shares, list(floors.values()), sizes)
        return dict(zip(shapes, split, strict=True))
    most = [num_blocks(shape, block) for shape in shapes.values()]
    shares = [count * factors.get(fqn, 1.0) for fqn, count in zip(shapes, most, strict=True)]
    counts = apportion(total // size, shares, [floors[fqn] // size for fqn in shapes], most)
    return {fqn: min(numel[fqn], count * size) for fqn, count in zip(shapes, counts, strict=True)}


def check_total(
    total: int,
    floors: Mapping[str, int],
    numel: Mapping[str, int],
    floor: float,
    block: tuple[int, int],
) -> None:
    """Check that matrices with these floors and sizes can keep `total` weights.

    Raises:
        ValueError: Naming the legal range.
    """
    low, high = sum(floors.values()), sum(numel.values())
    if not low <= total <= high:
        raise ValueError(
            f"total_kept {total} is out of range; legal: {low} to {high} prunable weights "
            f"with floor {floor} and block {block[0]}x{block[1]}"
        )


def is_tiled(shape: Sequence[int], block: tuple[int, int]) -> bool:
    """Whether no block is cut by an edge of the matrix."""
    rows, columns = matrix_shape(shape)
    return rows % block[0] == 0 and columns % block[1] == 0


def check_names(names: Iterable[str], legal: Iterable[str], what: str) -> None:
    """Refuse names that are not legal.

    Raises:
        ValueError: Naming the unknown and the legal names.
    """
    allowed = list(legal)
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise ValueError(
            f"{what} names unknown layers: {', '.join(unknown)}; legal names: {', '.join(allowed)}"
        )


def _percent(part: int, whole: int) -> str:
    """Percentage rounded up to six decimals, so that the printed bound is itself legal."""
    return f"{math.ceil(part / whole * 1e8) / 1e6:g}"
