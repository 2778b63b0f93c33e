"""Published results to be drawn beside one's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

REFERENCES = ("pang2018",)
"""Papers with results in this folder, each in a YAML file."""


@dataclass(frozen=True, slots=True)
class ReferenceTable:
    """One table of a paper, as printed."""

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """Cells in the order of ``columns``; None for an empty cell."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The tables of a paper. Word error rates are in percent, on the paper's data."""

    title: str
    tables: dict[int, ReferenceTable]


@cache
def load_reference(name: str) -> Reference:
    """Read the results of a paper.

    Raises:
        ValueError: If there is no paper of this name.
    """
    if name not in REFERENCES:
        raise ValueError(f"reference {name!r} is unknown; legal: {', '.join(REFERENCES)}")
    path = Path(__file__).with_name(f"{name}.yaml")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    tables = {
        number: ReferenceTable(
            number, table["title"], tuple(table["columns"]), tuple(map(tuple, table["rows"]))
        )
        for number, table in document["tables"].items()
    }
    return Reference(document["title"], tables)
