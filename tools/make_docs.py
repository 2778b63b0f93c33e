"""Writes the pages of ``docs/`` that are made from the code: the key reference, and one per verb.

    python tools/make_docs.py            # or: make docs

A test fails while a page is not what this writes.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from omnisparse.cli.main import SECTIONS, verbs
from omnisparse.config import RunConfig
from omnisparse.errors import Range

DOCS = Path(__file__).parents[1] / "docs"
MADE = "<!-- Made by `make docs` from the code; changes here are lost. -->"
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false"}


def pages() -> dict[str, str]:
    """All pages, by their path below ``docs/``."""
    made = {"keys.md": keys_page(), "verbs/README.md": verbs_page()}
    for path, command in commands():
        made[f"verbs/{'-'.join(path)}.md"] = verb_page(path, command)
    return made


def keys_page() -> str:
    """The key reference."""
    lines = [
        MADE,
        "",
        "# Keys of a configuration",
        "",
        "A run is described by a YAML file, such as those in `recipes/configs/`. Every key has a",
        "default, so that a file names only what it changes. On a command line, `key=value`",
        "overrides the file: `training.epochs=20`, `data.augmentation.num_time_masks=0`. Lists are",
        'written in quotes, because shells read brackets: `"corpus.train=[train.jsonl.gz]"`.',
        "",
        "`model.kind` and `method.kind` choose which keys `model` and `method` have. On a command",
        "line `model=transducer` is short for a new section of that kind with its defaults.",
        "",
    ]
    for path, owner in sections(RunConfig, ""):
        lines += [*_section(path, owner), ""]
    return "\n".join(lines)


def sections(owner: type, path: str) -> Iterator[tuple[str, type]]:
    """Every section of a configuration, outer ones first; a kind of a union is one of its own."""
    yield path, owner
    hints = get_type_hints(owner, include_extras=True)
    for item in fields(owner):
        inner = _dataclasses(hints[item.name])
        for option in inner:
            yield from sections(option, f"{path}.{item.name}" if path else item.name)


def _section(path: str, owner: type) -> list[str]:
    kind = next((item.default for item in fields(owner) if item.name == "kind"), None)
    title = f"`{path}`" if path else "The top level"
    if kind is not None:
        title += f", kind `{kind}`"
    texts = _docstrings(owner)
    hints = get_type_hints(owner, include_extras=True)
    lines = [f"## {title}", "", _cell(owner.__doc__ or ""), ""]
    lines += ["| key | legal values | default | what it is |", "|---|---|---|---|"]
    for item in fields(owner):
        hint = hints[item.name]
        key = f"{path}.{item.name}" if path else item.name
        name = f"`{key}`"
        if _dataclasses(hint):
            where = "a section: see below"
            lines.append(f"| {name} | {where} | {_section_default(item)} | {texts[item.name]} |")
        else:
            lines.append(f"| {name} | {_legal(hint)} | {_default(item)} | {texts[item.name]} |")
    return lines


def _docstrings(owner: type) -> dict[str, str]:
    """The text below each field, also of fields that are inherited."""
    found: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if not is_dataclass(cls):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = _cell(str(text.value.value))
    return found


def _cell(text: str) -> str:
    """Text on one line, without the roles that only Python's documentation has."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|")


def _dataclasses(hint: Any) -> list[type]:
    """The sections that a field may hold."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [option for option in options if isinstance(option, type) and is_dataclass(option)]


def _legal(hint: Any) -> str:
    """What may stand there, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [str(note) for note in arguments[1:] if isinstance(note, Range)]
        return ", ".join([_legal(arguments[0]), *limits])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_legal(option) for option in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of: {_legal(arguments[0])}"
    if origin is Mapping:
        return f"{_legal(arguments[1])} by name"
    if origin is tuple:
        return f"list of {len(arguments)}: {_legal(arguments[0])}"
    return "null" if hint is type(None) else _PLAIN[hint]


def _default(item: Field[Any]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    return "none: must be given" if value is MISSING else f"`{_plain(value)}`"


def _section_default(item: Field[Any]) -> str:
    value = item.default if item.default_factory is MISSING else item.default_factory()
    if value is None:
        return "`null`"
    kind = getattr(value, "kind", None)
    return "its defaults" if kind is None else f"kind `{kind}`"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]".replace("|", r"\|")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    """Every verb in the order of the help, those of a group after it."""
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(verbs.commands), "a verb is in no section of the help"
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name in listed:
        command = verbs.commands[name]
        if isinstance(command, click.Group):
            found += [((name, inner), own) for inner, own in command.commands.items()]
        else:
            found.append(((name,), command))
    return found


def verbs_page() -> str:
    """The list of all verbs."""
    lines = [MADE, "", "# Verbs of `omnisparse`", ""]
    by_path = dict(commands())
    for section, names in SECTIONS.items():
        lines += [f"## {section}", ""]
        for path, command in by_path.items():
            if path[0] in names:
                text = command.get_short_help_str(limit=200)
                lines.append(f"- [`{' '.join(path)}`]({'-'.join(path)}.md): {text}")
        lines.append("")
    lines += [
        "Every verb takes `--json` (one JSON object on stdout) and `--help`. Exit codes: 0 done,",
        "1 failed with one line that says why, 2 bad usage, 130 stopped by Ctrl-C.",
        "",
    ]
    return "\n".join(lines)


def verb_page(path: tuple[str, ...], command: click.Command) -> str:
    """The help of one verb as a page."""
    # As on the command line; click keeps the help option that a command made first.
    context = click.Context(
        command, info_name=f"omnisparse {' '.join(path)}", help_option_names=["-h", "--help"]
    )
    text = inspect.cleandoc(command.help or "")
    lines = [MADE, "", f"# `omnisparse {' '.join(path)}`", ""]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [_escaped(text), "", "```text", f"omnisparse {' '.join(path)} {usage}", "```", ""]
    lines += ["| option | what it does |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            name, help_text = record
            lines.append(f"| `{_cell(name)}` | {_escaped(_cell(help_text))} |")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    """Help as markdown shows it: angle brackets are no tags."""
    return text.replace("<", "\\<")


def main() -> int:
    """Write all pages; pages of verbs that are gone go, too."""
    made = pages()
    for name, text in made.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (DOCS / "verbs").glob("*.md"):
        if f"verbs/{path.name}" not in made:
            path.unlink()
    print(f"{len(made)} pages in {os.path.relpath(DOCS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
