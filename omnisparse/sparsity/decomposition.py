"""Every matrix of a net decomposed once, so that a product of any rank is a slice.

A matrix of g gates is g equal blocks of rows, each a product of its own of the same rank.

Legend: m outputs, n inputs, g gates (1 for one product), q = min(m / g, n), r rank.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omnisparse.durable import replacing
from omnisparse.sparsity.lowrank import Factors, truncated_svd

_PLAIN = "stacked"
"""The scheme that a file need not name."""


def break_even_rank(rows: int, columns: int, gates: int = 1) -> int:
    """Largest rank r whose factors are fewer parameters than ``m n``; 0 if none.

    They are ``r (m + n)``, with a product for each gate ``r (m + g n)``.
    """
    return (rows * columns - 1) // (rows + gates * columns)


def ranks_from_json(text: str) -> tuple[dict[str, int], str]:
    """Read `{"ranks": {fqn: rank}}`, and `"scheme": NAME` beside it.

    Returns:
        The ranks, and the scheme: ``stacked`` where none is named.

    Raises:
        ValueError: If the text is anything else.
    """
    expected = 'legal: {"ranks": {"<matrix>": <rank>, ...}}, and "scheme": "<name>" beside it'
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"rank spec is not JSON ({error}); {expected}") from error
    ranks = content.get("ranks") if isinstance(content, dict) else None
    if not isinstance(ranks, dict) or not set(content) <= {"ranks", "scheme"}:
        raise ValueError(f"rank spec has no (or not only) a `ranks` table; {expected}")
    for name, rank in ranks.items():
        if type(rank) is not int or rank < 1:
            raise ValueError(f"rank of {name} is {rank!r}; a whole number of at least 1")
    scheme = content.get("scheme", _PLAIN)
    if not isinstance(scheme, str):
        raise ValueError(f"scheme of a rank spec is {scheme!r}; {expected}")
    return ranks, scheme


def ranks_to_json(ranks: Mapping[str, int], scheme: str = "stacked") -> str:
    """JSON text; :func:`ranks_from_json` gives back equal ranks and the scheme."""
    named = {} if scheme == _PLAIN else {"scheme": scheme}
    return json.dumps({**named, "ranks": dict(ranks)}, indent=2)


@dataclass(frozen=True, slots=True)
class Decomposition:
    """The singular value decomposition of one matrix, its root in both factors.

    Attributes:
        left: ``[m, q]``, ``U sqrt(S)`` of each gate.
        right: ``[g q, n]``, ``sqrt(S) V^T`` of each gate.
        gates: Equal blocks of rows that are a product each.
    """

    left: Tensor
    right: Tensor
    gates: int = 1

    @classmethod
    def of(cls, weight: Tensor, gates: int = 1) -> Decomposition:
        """Decompose a matrix ``[m, n]``.

        Raises:
            ValueError: If it is no matrix, or its rows are no equal blocks.
        """
        if weight.ndim == 2 and weight.shape[0] % gates:
            raise ValueError(f"{weight.shape[0]} rows are not {gates} equal gates")
        parts = weight.float().chunk(gates)
        found = [truncated_svd(part, min(part.shape)) for part in parts]
        left, right = (torch.cat(side) for side in zip(*found, strict=True))
        return cls(left, right, gates)

    def factors(self, rank: int) -> Factors:
        """The best product of rank r, in the Frobenius norm: a slice (Eckart & Young 1936).

        Returns:
            ``[m, r]`` and ``[g r, n]``.

        Raises:
            ValueError: If ``rank`` is outside 1..q.
        """
        full = self.left.shape[1]
        if not 1 <= rank <= full:
            raise ValueError(f"rank is {rank}; from 1 to {full} for this matrix")
        return Factors(self.left[:, :rank], self._rights()[:, :rank].flatten(0, 1))

    def energies(self) -> Tensor:
        """``[q]`` squared singular values, from the largest, over all gates."""
        return self._rights().double().square().sum(dim=2).square().sum(dim=0)

    def _rights(self) -> Tensor:
        return self.right.reshape(self.gates, -1, self.right.shape[1])


def decompose(
    weights: Mapping[str, Tensor],
    names: Iterable[str],
    *,
    gates: Mapping[str, int] | None = None,
    folder: Path | None = None,
    identity: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Decomposition]:
    """Decompose matrices, from a folder where that was done before.

    Args:
        weights: Tensors by name.
        names: Those to decompose, each ``[m, n]``.
        gates: Of each matrix; 1 where it is not named.
        folder: Where decompositions are kept; None keeps none. One that cannot be written is no
            error: they are computed again the next time.
        identity: What tells these weights from others, such as step and checksum.
        on_progress: ``(done, total)``.

    Raises:
        ValueError: If a tensor is no matrix.
    """
    names = list(names)
    place = None if folder is None else folder / "decomposition.safetensors"
    gates = gates or {}
    found = {} if place is None else _read(place, identity, names, gates)
    missing = [name for name in names if name not in found]
    for done, name in enumerate(missing, start=1):
        found[name] = Decomposition.of(weights[name], gates.get(name, 1))
        on_progress(done, len(missing))
    if missing and place is not None:
        _write(place, identity, found)
    return {name: found[name] for name in names}


def _read(
    place: Path, identity: str, names: Sequence[str], gates: Mapping[str, int]
) -> dict[str, Decomposition]:
    """What an earlier call left of the same weights; nothing where it left none."""
    try:
        with safe_open(place, framework="pt") as file:
            if json.loads((file.metadata() or {}).get("identity", "null")) != identity:
                return {}
            there = set(file.keys())
            return {
                name: Decomposition(
                    file.get_tensor(f"{name}.left"),
                    file.get_tensor(f"{name}.right"),
                    gates.get(name, 1),
                )
                for name in names
                if f"{name}.right" in there
            }
    except (OSError, SafetensorError, ValueError):
        return {}


def _write(place: Path, identity: str, found: Mapping[str, Decomposition]) -> None:
    tensors = {
        f"{name}.{side}": getattr(item, side).contiguous()
        for name, item in found.items()
        for side in ("left", "right")
    }
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as partial:
            save_file(tensors, partial, metadata={"identity": json.dumps(identity)})
    except OSError:
        return  # a read-only run: they are computed again


@dataclass(frozen=True, slots=True)
class RankBudget:
    """What ranks cost: parameters of a net some of whose matrices are products.

    Attributes:
        shapes: ``(m, n)`` of every matrix that may be factored.
        fixed: Parameters of everything else.
        gates: Gates of each that is a product for each gate.
        limits: Ranks of matrices that are products already: more would be spent for nothing.
    """

    shapes: Mapping[str, tuple[int, int]]
    fixed: int
    gates: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    limits: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    unit: ClassVar[str] = "parameters"

    @property
    def dense(self) -> int:
        """Parameters of the net without factors."""
        return self.fixed + sum(rows * columns for rows, columns in self.shapes.values())

    @property
    def least(self) -> int:
        """Parameters of the net with rank 1 in every matrix that it makes smaller."""
        return self.parameters(dict.fromkeys(self._factorable(), 1))

    def parameters(self, ranks: Mapping[str, int]) -> int:
        """Parameters of the net with these ranks; a matrix that is not named stays whole."""
        return self.fixed + sum(self.cost(name, ranks.get(name)) for name in self.shapes)

    def cost(self, name: str, rank: int | None) -> int:
        """Parameters of one matrix: of its factors, or whole where ``rank`` is None."""
        rows, columns = self.shapes[name]
        return rows * columns if rank is None else rank * (rows + self._gates(name) * columns)

    def break_even(self, name: str) -> int:
        """Largest rank of a matrix that saves parameters; 0 if none."""
        return break_even_rank(*self.shapes[name], self._gates(name))

    def full(self, name: str) -> int:
        """Largest rank of a matrix."""
        rows, columns = self.shapes[name]
        return min(rows // self._gates(name), columns)

    def _gates(self, name: str) -> int:
        return self.gates.get(name, 1)

    def uniform(self, total: int) -> dict[str, int]:
        """The largest ranks of one ratio for all matrices that fit into ``total`` parameters.

        Args:
            total: Parameters of the whole net.

        Returns:
            Rank by name; empty where the dense net fits.

        Raises:
            ValueError: If not even ranks of 1 fit; names the reachable range.
        """
        if total >= self.dense:
            return {}
        if total < self.least:
            raise ValueError(
                f"{total:,} {self.unit} cannot be reached by low rank; legal: {self.least:,} "
                f"(rank 1 in every matrix) to {self.dense:,}"
            )
        low, high = 0.0, 1.0  # share of the break-even rank: the first fits, the second does not
        for _ in range(60):
            middle = (low + high) / 2
            if self.parameters(self._at(middle)) <= total:
                low = middle
            else:
                high = middle
        return self._at(low)

    def _factorable(self) -> list[str]:
        return [name for name in self.shapes if self.break_even(name) > 0]

    def _at(self, share: float) -> dict[str, int]:
        ranks = {name: max(1, int(share * self.break_even(name))) for name in self._factorable()}
        return {name: min(rank, self.limits.get(name, rank)) for name, rank in ranks.items()}

    def by_energy(self, total: int, decompositions: Mapping[str, Decomposition]) -> dict[str, int]:
        """Ranks that keep the same share of energy of every matrix, as large as fits.

        Args:
            total: Parameters of the whole net.
            decompositions: Of every matrix.

        Raises:
            ValueError: As :meth:`uniform`.
        """
        if not self.uniform(total):
            return {}
        shares = {}
        for name in self._factorable():
            energies = decompositions[name].energies()
            shares[name] = energies.cumsum(0) / energies.sum()

        def at(share: float) -> dict[str, int]:
            ranks = {}
            for name, kept in shares.items():
                rank = min(
                    int(torch.searchsorted(kept, share)) + 1, self.limits.get(name, len(kept))
                )
                if rank <= self.break_even(name):
                    ranks[name] = rank
            return ranks

        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if self.parameters(at(middle)) <= total:
                low = middle
            else:
                high = middle
        return at(low)
