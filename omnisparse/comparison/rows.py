"""Rows of a comparison: their names and order, and the row that others are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from omnisparse.methods import KINDS, has_every_size

BUILT_IN = {
    "base": "Base",
    "factored": "Factorization (F)",
    "distilled": "Distillation (D)",
    "pruned": "Sparsity (S)",
    "pruned_double": "Sparsity (S), twice the budget",
    "pruned_once": "One pruning, a model at each size",
    "cut": "Dense, then cut and fine-tuned",
    "factored_distilled": "F + D",
    "factored_distilled_pruned": "F + D + S",
    "progressive": "Progressive distillation",
    "progressive_fixed": "Progressive, first teacher only",
    "progressive_direct": "Direct distillation",
    "progressive_scratch": "Small net from scratch",
    "rank_uniform": "Uniform ranks, retrained",
    "rank_search_untrained": "Searched ranks",
    "rank_search": "Searched ranks, retrained",
    "iterative": "Iterative rank search",
    "supernet": "Supernet",
    "supernet_double": "Supernet, twice the budget",
    "supernet_labels": "Supernet without distillation",
    "supernet_single": "Supernet, one random net a step",
}
"""The rows of Pang et al. 2018, compressions over several stages with their rivals, the supernets
and their controls, in order, with their displayed names."""

PLANS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "progressive": ("progressive", {"plan": "progressive"}),
    "progressive_fixed": ("progressive", {"plan": "fixed"}),
    "progressive_direct": ("progressive", {"plan": "direct"}),
    "progressive_scratch": ("progressive", {"plan": "scratch"}),
    "rank_uniform": ("rank_search", {"controller": "uniform", "retrain": True}),
    "rank_search_untrained": ("rank_search", {"retrain": False}),
    "rank_search": ("rank_search", {"retrain": True}),
    "iterative": ("iterative", {}),
}
"""Rows of methods of several trainings: kind of the method, and the keys that the row decides."""

_KINDS_OF_BUILT_IN = {"dense", "sandwich", "distillation", "gradual_pruning"}

_KINDS_OF_NO_ROW = {"fixed_mask"}
"""Methods that train on from a model of one size, so that no row begins with one."""

REGISTERED = {
    kind: kind.replace("_", " ").capitalize()
    for kind in KINDS
    if kind not in _KINDS_OF_BUILT_IN | _KINDS_OF_NO_ROW | {kind for kind, _ in PLANS.values()}
}
"""Methods of other kinds: each is a row of its own, named by its kind."""

ROWS = {**BUILT_IN, **REGISTERED}
"""All rows of methods in order, with their displayed names."""

SUPERNET, PRUNED = "supernet", "pruned"
PRUNED_ONCE, CUT = "pruned_once", "cut"
"""Rows whose models of all sizes share one budget, without a supernet: one pruning that keeps a
model at each size, and one dense net that is cut and fine-tuned to each."""
SUPERNETS = (
    SUPERNET,
    "supernet_double",
    "supernet_labels",
    "supernet_single",
    *filter(has_every_size, REGISTERED),
)
"""Rows whose models of all sizes come from one training."""

ROWS_OF_PARTS = frozenset({CUT})
"""Rows whose models of all sizes start from one net, and share one budget with it."""


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """The rows of one table."""

    heading: str
    """Heading of the first column."""
    labels: Mapping[str, str]
    """Names of all possible rows, in the order of the table, with their displayed names."""
    rival: str
    """The row with which others are compared."""
    compared: frozenset[str]
    """The rows that are compared with ``rival``, at every size that both have."""
    picture: Literal["sizes", "differences"]
    """Kind of plot: WER against size, or every row's difference from ``rival``."""
    note: str = ""
    """A line that explains the labels."""

    def those_of(self, rows: Iterable[str]) -> list[str]:
        """The rows that occur in ``rows``, each once, in the order of the table."""
        present = set(rows)
        return [row for row in self.labels if row in present]

    def number(self, row: str) -> int:
        """Position of ``row`` among all possible rows, from 0: it decides the colour."""
        return list(self.labels).index(row)

    def spoken(self, row: str) -> str:
        """The label of ``row`` within a sentence."""
        label = self.labels[row]
        return label[:1].lower() + label[1:]


METHODS = TableRows(
    heading="method",
    labels=ROWS,
    rival=PRUNED,
    compared=frozenset((*SUPERNETS, PRUNED_ONCE, CUT, "pruned_double", *PLANS, *REGISTERED)),
    picture="sizes",
)
"""All methods; those whose kind has no row in Pang et al. are compared with gradual pruning."""
