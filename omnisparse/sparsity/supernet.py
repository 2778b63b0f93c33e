"""A model and all its magnitude-masked subnets, with one set of weights.

    supernet = Supernet(model, prunable=find_prunable(model))
    with supernet.active(supernet.spec_for("16M")):
        loss = supernet(features)          # gradients reach the dense weights
    state = supernet.extract(supernet.spec_for("16M"))

While a subnet is active, `forward` runs the model on masked copies of its weights through
`functional_call`. It does not write the parameters, so several subnets may share one optimizer
step. The copies have the dtype of autocast, and exist only during the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from omnisparse.sparsity.allocation import Allocator, Scope
from omnisparse.sparsity.budget import Budget, check_names, num_blocks
from omnisparse.sparsity.keys import Block, Norm, block_of, block_sizes, check_block
from omnisparse.sparsity.masked_copy import Thinning, by_module, damped, masked_parameters
from omnisparse.sparsity.masks import apply_mask, masked_tensors
from omnisparse.sparsity.prunable import check_plain, find_prunable_anywhere
from omnisparse.sparsity.ranking import rank
from omnisparse.sparsity.sharded_tensors import as_sharded, fill_where_zero, whole
from omnisparse.sparsity.sizes import Size, parse_sparsity
from omnisparse.sparsity.space import SubnetSpec

_FLIP_DENSITY = 0.25
_FLIP_RATE = "mask_flip_rate"


class Supernet(nn.Module):
    """The dense net and its subnets.

    Masks are a function of the weights at the last `refresh` and of the spec. Between refreshes the
    place of every weight in its matrix's ranking is stored (4 bytes per weight or block); a mask of
    any size is one comparison with it. This is training state (`ranking_state`), not part of
    `state_dict`, which holds only the model's own tensors under `model.`.

    Args:
        model: The dense net.
        prunable: Names of the matrices that masks may prune (see `prunable.find_prunable`); by
            default, those of `prunable.find_prunable_anywhere`.
        block: Block shape of the masks.
        single: Names of the prunable matrices whose masks are of single weights nevertheless.
        norm: Block score.
        straight_through: Pass the gradient of a masked weight as if it had not been masked. By
            default, a weight gets gradient only from the subnets that keep it.
        floor: Least density of any prunable matrix.

    Raises:
        ValueError: If an argument is out of range, `prunable` names unknown parameters, or a mask
            cannot reach a weight, because it is computed from other parameters.

    Deviation: the omni-sparsity abstract does not say how masks are chosen while training; one
    magnitude ranking for all sizes, refreshed every 100 steps, is our choice.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prunable: Sequence[str] | None = None,
        block: Block = (1, 1),
        single: Collection[str] = (),
        norm: Norm = "l1",
        straight_through: bool = False,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.block = check_block(block)
        self.norm: Norm = norm
        if prunable is None:
            prunable = find_prunable_anywhere(model)
        self.budget = _budget(model, prunable, floor, block)
        check_names(single, self.budget.prunable, "single")
        self.single = frozenset(single)
        self.straight_through = straight_through
        self.mask_flip_rate: float | None = None
        """Share of the largest quarter of the weights that the last refresh exchanged."""
        self._positions: dict[str, Tensor] = {}
        self._groups = by_module(model, self.budget.prunable)
        self._spec: SubnetSpec | None = None
        self._kept: dict[str, int] = {}
        self._protected: SubnetSpec | None = None
        self._gradient_share = 1.0

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the matrices that masks may prune, in model order."""
        return tuple(self.budget.prunable)

    def block_of(self, fqn: str) -> Block:
        """Block shape of the masks of a matrix."""
        return block_of(fqn, self.block, self.single)

    @property
    def spec(self) -> SubnetSpec | None:
        """The active subnet; None is the dense net."""
        return self._spec

    @property
    def has_ranking(self) -> bool:
        """Whether there are masks yet."""
        return bool(self._positions)

    def weights(self) -> dict[str, Tensor]:
        """The prunable matrices by name, detached, sharing memory with the model if they are whole.

        Of a sharded model they are gathered; all processes must ask for them.
        """
        return {fqn: self._weight(fqn) for fqn in self.budget.prunable}

    def _weight(self, fqn: str) -> Tensor:
        return whole(self.model.get_parameter(fqn).detach())

    def activate(self, spec: SubnetSpec | None) -> None:
        """Choose the subnet that `forward` runs; None is the dense net.

        Raises:
            ValueError: If the spec names unknown matrices.
        """
        self._kept = {} if spec is None else spec.counts(self.budget.prunable)
        self._spec = spec
        if spec is not None and not self._positions:
            self.refresh()

    @contextmanager
    def active(self, spec: SubnetSpec | None) -> Iterator[None]:
        """Activate a subnet for a block of code; afterwards, activate the previous one again."""
        before = self._spec
        self.activate(spec)
        try:
            yield
        finally:
            self.activate(before)

    @contextmanager
    def protected(self, spec: SubnetSpec, share: float) -> Iterator[None]:
        """Give the weights of a subnet only a share of the gradient of any other net.

        For the passes forward in a block of code; the passes back may come later.

        Args:
            spec: The subnet.
            share: In [0, 1]; 1 changes nothing.

        Raises:
            ValueError: If the share is out of range.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share of the gradient is {share}; legal: 0 to 1")
        before = self._protected, self._gradient_share
        self._protected, self._gradient_share = spec, share
        try:
            yield
        finally:
            self._protected, self._gradient_share = before

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active subnet; arguments and result are the model's own."""
        weights = self._weights_of_pass()
        if not weights:
            return self.model(*args, **kwargs)
        return functional_call(self.model, weights, args, kwargs)

    def _weights_of_pass(self) -> dict[str, Tensor]:
        """What a pass of the active net takes in place of parameters: masked copies, and views."""
        views: dict[str, Tensor] = {}
        spec, share = self._protected, self._gradient_share
        if spec not in (None, self._spec) and share != 1.0 and torch.is_grad_enabled():
            if not self._positions:
                self.refresh()
            for fqn, thinning in self._thinnings(spec.counts(self.budget.prunable), whole=True):
                views[fqn] = damped(self.model.get_parameter(fqn), thinning, share)
        thinned = dict(self._thinnings(self._kept))
        return views | masked_parameters(
            self.model, self._groups, thinned, views, straight_through=self.straight_through
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Rank the present magnitudes. Masks change only here.

        Each matrix is ranked as a whole on every process, also if the processes share it (see
        `sharded_tensors`).

        Raises:
            ValueError: If a weight is not finite; names the matrix.
        """
        positions = {
            fqn: rank(self._weight(fqn), self.block_of(fqn), self.norm, fqn).positions()
            for fqn in self.budget.prunable
        }
        self.mask_flip_rate = self._flip_rate(positions)
        self._install(positions)

    def ranking_state(self) -> dict[str, Tensor]:
        """The ranking of the last refresh, int32 on CPU, and how much it changed, for a checkpoint.

        Empty before the first refresh. Needed for an exact resume only between refreshes: a run
        resumed at a step that refreshes makes the same ranking from the weights.
        """
        state = {fqn: positions.cpu() for fqn, positions in self._positions.items()}
        if self.mask_flip_rate is not None:
            state[_FLIP_RATE] = torch.tensor(self.mask_flip_rate, dtype=torch.float64)
        return state

    def load_ranking_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the ranking of a checkpoint; an empty one means none was made yet.

        Raises:
            ValueError: If it belongs to other matrices or blocks.
        """
        state = dict(state)
        flip_rate = state.pop(_FLIP_RATE, None)
        check_names(state, self.budget.prunable, "ranking state")
        if state:
            for fqn in self.budget.prunable:
                expected = num_blocks(self.budget.shapes[fqn], self.block_of(fqn))
                found = state[fqn].numel() if fqn in state else 0
                if found != expected:
                    raise ValueError(f"ranking of {fqn} has {found} entries; legal: {expected}")
        self.mask_flip_rate = None if flip_rate is None else float(flip_rate)
        self._install({fqn: positions.to(torch.int32) for fqn, positions in state.items()})

    def spec_for(
        self,
        size: Size | str | int | None = None,
        *,
        sparsity: float | None = None,
        scope: Scope = "layer",
        floor: float | None = None,
        size_of: Callable[[Mapping[str, int]], int] | None = None,
    ) -> SubnetSpec:
        """The subnet of a size, exact to the weight (with blocks: to the block).

        Args:
            size: `16M`, `20MB`, `25%`, or a whole number of non-zeros of the model.
            sparsity: Instead of `size`: share of the prunable weights that is zero.
            scope: How matrices share the total (see `allocation.Allocator`).
            floor: Least density of any matrix; the supernet's own by default.
            size_of: Bytes of the file for given counts; needed for sizes in bytes.

        Raises:
            ValueError: If the request is not legal for this model; names the legal range.
        """
        budget = self.budget
        if sparsity is not None and size is None:
            request = parse_sparsity(sparsity)
        elif size is not None and sparsity is None and not isinstance(size, float):
            request = size if isinstance(size, Size) else budget.parse(size)
        else:
            raise ValueError(
                f"size {size!r} with sparsity {sparsity!r}: give one of them, and write shares of "
                "the dense parameters as '25%'"
            )
        if floor is not None:
            budget = Budget(budget.shapes, self.prunable, floor=floor, block=self.block)
        allocator = Allocator(self.weights(), scope, budget.floor, self.block, self.norm)
        if request.kind == "bytes" and size_of is not None:
            counts = budget.solve_bytes(
                request, size_of, allocator.counts, milestones=allocator.milestones
            )
        else:
            counts = allocator.counts(budget.solve(request))
        return SubnetSpec.from_counts(counts, budget.prunable)

    def nonzero(self, spec: SubnetSpec | None) -> int:
        """Non-zeros of a subnet: kept weights plus every parameter that is never pruned."""
        if spec is None:
            return self.budget.dense_parameters
        total = self.budget.unprunable
        weights = self.weights()
        for fqn, count in spec.counts(self.budget.prunable).items():
            block = self.block_of(fqn)
            if block == (1, 1):
                total += count
            else:
                ranking = rank(weights[fqn], block, self.norm, fqn)
                total += ranking.cuts([count])[0].num_kept
        return total

    @torch.no_grad()
    def extract(self, spec: SubnetSpec | None) -> dict[str, Tensor]:
        """State dict of a subnet as a model of its own: copies on CPU, pruned weights exactly 0.

        The masks come from the present weights, whatever the last refresh saw: an extracted model
        is a function of (weights, spec) alone.

        Raises:
            ValueError: If the spec names unknown matrices or a weight is not finite.
        """
        counts = {} if spec is None else spec.counts(self.budget.prunable)
        state: dict[str, Tensor] = {}
        for fqn, tensor, masks in masked_tensors(
            {fqn: whole(tensor) for fqn, tensor in self.model.state_dict().items()},
            [counts],
            self.block,
            self.norm,
            self.single,
        ):
            kept = tensor.detach() if masks is None else apply_mask(tensor, masks[0])
            state[fqn] = kept.clone() if masks is None and kept.device.type == "cpu" else kept.cpu()
        owners = {id(self.model.get_parameter(fqn)): fqn for fqn in counts}
        for fqn, parameter in self.model.named_parameters(remove_duplicate=False):
            if id(parameter) in owners:  # a tied matrix is one matrix under each of its names
                state[fqn] = state[owners[id(parameter)]]
        return state

    @torch.no_grad()
    def clear(self, spec: SubnetSpec) -> None:
        """Set the weights that a subnet does not keep to zero, by the ranking of the last refresh.

        The dense net then computes what the subnet does.

        Raises:
            ValueError: If the spec names unknown matrices.
        """
        with self.active(spec):
            for fqn, thinning in self._thinnings(self._kept):
                weight = self.model.get_parameter(fqn)
                if as_sharded(weight) is None:
                    thinning.clear(weight)
                else:
                    marks = torch.ones(weight.shape, device=weight.device)
                    fill_where_zero(weight, thinning.clear(marks))

    @contextmanager
    def squashed(self, spec: SubnetSpec | None) -> Iterator[nn.Module]:
        """The inner model with the subnet's weights written into it, for decoding.

        `forward` covers one call; `decode` and `encode` of the inner model do not go through it.
        The dense weights come back bit by bit at the end. Not for use between a forward and its
        backward pass (autograd notices).
        """
        dense: dict[str, Tensor] = {}
        try:
            with self.active(spec), torch.no_grad():
                for fqn, thinning in self._thinnings(self._kept):
                    parameter = self.model.get_parameter(fqn)
                    dense[fqn] = parameter.detach().clone()
                    thinning.clear(parameter)
            yield self.model
        finally:
            with torch.no_grad():
                for fqn, values in dense.items():
                    self.model.get_parameter(fqn).copy_(values)

    def _install(self, positions: dict[str, Tensor]) -> None:
        self._positions = positions

    def _flip_rate(self, positions: Mapping[str, Tensor]) -> float | None:
        if not self._positions:
            return None
        flips = kept = 0
        for fqn, new in positions.items():
            top = max(1, int(_FLIP_DENSITY * new.numel()))
            entered = (new < top) & (self._positions[fqn].to(new.device) >= top)
            flips, kept = flips + int(entered.sum()), kept + top
        return flips / kept

    def _thinnings(
        self, kept: Mapping[str, int], *, whole: bool = False
    ) -> Iterator[tuple[str, Thinning]]:
        """Name and thinning of every matrix that such a subnet prunes; ``whole``: of all."""
        for fqn, count in kept.items():
            weight = self.model.get_parameter(fqn)
            if whole or count < weight.numel():
                positions = self._positions[fqn] = self._positions[fqn].to(weight.device)
                limit = self._num_blocks_kept(fqn, count, positions)
                yield fqn, Thinning(positions, limit, self.block_of(fqn))

    def _num_blocks_kept(self, fqn: str, count: int, positions: Tensor) -> int:
        sizes = block_sizes(self.budget.shapes[fqn], self.block_of(fqn))
        if isinstance(sizes, int):
            return count // sizes
        # With partial blocks, the length of the prefix depends on the blocks in it.
        in_order = torch.empty(len(sizes), dtype=torch.int64, device=positions.device)
        in_order[positions.long()] = torch.from_numpy(sizes).to(positions.device)
        return int(torch.searchsorted(in_order.cumsum(0), count, right=True))


def _budget(model: nn.Module, prunable: Sequence[str], floor: float, block: Block) -> Budget:
    """Budget of a net whose prunable matrices are parameters that masks reach."""
    tied = dict(model.named_parameters(remove_duplicate=False))
    owners = {id(parameter): fqn for fqn, parameter in model.named_parameters()}
    # A tied matrix may be named by any of its names; it is one matrix, under the first.
    names = [owners[id(tied[fqn])] if fqn in tied else fqn for fqn in prunable]
    check_plain(model, names)
    check_names(names, owners.values(), "prunable")
    return Budget.of(model, list(dict.fromkeys(names)), floor=floor, block=block)
