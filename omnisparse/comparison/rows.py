"""Rows of a comparison: what they are called, their order, and which is set against which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from omnisparse.methods import KINDS, has_every_size

PART = "part"
"""Row of a run that is only the first steps of another: no row of a table."""

BUILT_IN = {
    "base": "Base",
    "factored": "Factorization (F)",
    "distilled": "Distillation (D)",
    "pruned": "Sparsity (S)",
    "factored_distilled": "F + D",
    "factored_distilled_pruned": "F + D + S",
    "supernet": "Supernet",
    "supernet_double": "Supernet, twice the budget",
}
"""The rows of Pang et al. 2018 and the supernets in their order, and what people call them."""

_KINDS_OF_BUILT_IN = {"dense", "sandwich", "distillation", "gradual_pruning"}

REGISTERED = {
    kind: kind.replace("_", " ").capitalize() for kind in KINDS if kind not in _KINDS_OF_BUILT_IN
}
"""Methods of other kinds: each is a row of its own, named as its kind."""

ROWS = {**BUILT_IN, **REGISTERED}
"""All rows of methods in their order, and what people call them."""

SUPERNET, PRUNED = "supernet", "pruned"
SUPERNETS = (SUPERNET, "supernet_double", *filter(has_every_size, REGISTERED))
"""Rows whose models of all sizes come from one training."""


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """What the rows of one table are."""

    heading: str
    """What a row is, above the first column."""
    labels: Mapping[str, str]
    """Names of all rows there may be, in the order of the table, and what people call them."""
    rival: str
    """The row that others are compared with."""
    compared: frozenset[str]
    """The rows that are compared with ``rival``, at every size that both have."""
    picture: Literal["sizes", "differences"]
    """What is drawn: WER against size, or every row's difference from ``rival``."""
    note: str = ""
    """A line that explains the labels."""

    def those_of(self, rows: Iterable[str]) -> list[str]:
        """The rows that occur in ``rows``, each once, in the order of the table."""
        present = set(rows)
        return [row for row in self.labels if row in present]

    def number(self, row: str) -> int:
        """Place of ``row`` among all that there may be, from 0: it decides the colour."""
        return list(self.labels).index(row)

    def spoken(self, row: str) -> str:
        """The label of ``row`` within a sentence."""
        label = self.labels[row]
        return label[:1].lower() + label[1:]


METHODS = TableRows(
    heading="method",
    labels=ROWS,
    rival=PRUNED,
    compared=frozenset((*SUPERNETS, *REGISTERED)),
    picture="sizes",
)
"""All methods; supernets and registered ones are set against gradual pruning."""
