"""A reader of YAML 1.2, for configurations, overrides and sweep files.

PyYAML follows YAML 1.1, where ``1e-5`` is a string, ``off`` is false and ``010`` is eight.

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


_MOST_CHARACTERS = 4_000_000
_MOST_NODES = 200_000
_MOST_DEPTH = 50

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
"""Values that Python, and so a W&B agent, writes differently from YAML."""


class _Loader(yaml.SafeLoader):
    """The core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as in the class that is changed)


class _ArgumentLoader(_Loader):
    """The core schema, and Python's forms of null, infinity and NaN."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Quotes a string that a reader of YAML 1.1 or 1.2 would read as another type."""

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
        yaml.YAMLError: If it is not YAML, or larger or deeper than a configuration may be, what
            its aliases stand for included.
    """
    return _load(text, _Loader)


def _load(text: str, kind: type[yaml.SafeLoader]) -> Any:
    if len(text) > _MOST_CHARACTERS:
        raise yaml.YAMLError(f"more than {_MOST_CHARACTERS:,} characters")
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise yaml.YAMLError(f"a value that cannot be read ({error})") from error
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Refuse a document that is small on the disk and endless when its aliases are followed."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node, depth: int) -> int:
        if depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"more than {_MOST_DEPTH} levels, or one that contains itself")
        if id(node) not in counts:
            total = 1
            if isinstance(node, yaml.SequenceNode):
                total += sum(count(child, depth + 1) for child in node.value)
            elif isinstance(node, yaml.MappingNode):
                total += sum(count(k, depth + 1) + count(v, depth + 1) for k, v in node.value)
            if total > _MOST_NODES:
                raise yaml.YAMLError(f"more than {_MOST_NODES:,} values")
            counts[id(node)] = total
        return counts[id(node)]

    count(root, 0)


def read_argument(text: str) -> Any:
    """Return the value of ``key=value`` on a command line, in YAML or in Python's form.

    ``None`` is null there, and ``inf`` and ``nan`` are numbers, because a W&B agent writes these.

    Raises:
        yaml.YAMLError: If it is not YAML.
    """
    return _load(text, _ArgumentLoader)


def write_yaml(document: Any) -> str:
    """Return ``document`` as YAML with the same meaning in versions 1.1 and 1.2, keys in order."""
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False)
    return text
