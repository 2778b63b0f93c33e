"""YAML as its version 1.2 reads it: for configurations, overrides and sweep files alike.

PyYAML follows YAML 1.1, where ``1e-5`` is a text, ``off`` is false and ``010`` is eight.

Source: YAML 1.2.2, section 10.3 (the core schema). ``<<``, merging, is kept from 1.1.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"


_CORE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (_NULL, r"null|Null|NULL|~|", ("n", "N", "~", "")),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+0123456789."),
    ),
    (_MERGE, r"<<", ("<",)),
)
_PYTHON: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (_NULL, r"None", ("N",)),
    (_FLOAT, r"[-+]?inf|nan", tuple("-+in")),
)
"""How Python, and so a W&B agent, writes what YAML writes otherwise."""


class _Loader(yaml.SafeLoader):
    """The core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as in the class that is changed)


class _ArgumentLoader(_Loader):
    """The core schema, and what Python writes for null, infinity and no number."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes what is no text for a reader of YAML 1.1 or of 1.2."""

    yaml_implicit_resolvers = dict(yaml.SafeDumper.yaml_implicit_resolvers)  # noqa: RUF012


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


for _tag, _pattern, _first in _CORE:
    for _owner in (_Loader, _ArgumentLoader, _Dumper):
        _owner.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
for _tag, _pattern, _first in _PYTHON:
    for _owner in (_ArgumentLoader, _Dumper):
        _owner.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_INT, _whole_number)
_ArgumentLoader.add_constructor(_INT, _whole_number)


def read_yaml(text: str) -> Any:
    """Return the document in ``text``.

    Raises:
        yaml.YAMLError: If it is none.
    """
    return yaml.load(text, _Loader)


def read_argument(text: str) -> Any:
    """Return the value of ``key=value`` on a command line: YAML, or as Python writes it.

    ``None``, ``inf`` and ``nan`` are null and numbers there, because a W&B agent writes them so.

    Raises:
        yaml.YAMLError: If it is none.
    """
    return yaml.load(text, _ArgumentLoader)


def write_yaml(document: Any) -> str:
    """Return ``document`` as YAML that versions 1.1 and 1.2 read alike, keys in their order."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False)
    return text
