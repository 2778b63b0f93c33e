"""Holds the direction of imports between the rooms, by reading the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "omnisparse"

LEVELS: list[set[str]] = [
    {"atomic", "console", "durable", "errors", "version", "yaml_core"},
    {"data", "models", "sparsity", "evaluation.wer"},
    {"synthetic", "methods", "search", "evaluation", "artifact", "nested"},
    {"training", "deploy"},
    {"config", "runs", "pipeline", "comparison", "sweeps", "cli"},
]
NEVER_EACH_OTHER = LEVELS[1]
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py"}


def room_of(module: str) -> str | None:
    """The room a dotted module below ``omnisparse`` belongs to; None for the package itself."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    return "evaluation.wer" if parts[:2] == ["evaluation", "wer"] else parts[0]


def level_of(room: str) -> int:
    for level, rooms in enumerate(LEVELS):
        if room in rooms:
            return level
    raise AssertionError(f"omnisparse/{room} is in no room of the architecture")


def imports_of(path: Path) -> list[str]:
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            # `from omnisparse.evaluation import wer` names a module too.
            if node.module.startswith("omnisparse") and node.module.count(".") < 2:
                modules += [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                modules.append(node.module)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the direction")
    return [module for module in modules if module.split(".")[0] == "omnisparse"]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
def test_imports_point_one_way(path: Path) -> None:
    module = ".".join(["omnisparse", *path.relative_to(PACKAGE).with_suffix("").parts])
    room = room_of(module.removesuffix(".__init__"))
    if room in {None, "__init__"}:
        return  # the package's __init__ is the lazy public API
    level = level_of(room)
    for imported in imports_of(path):
        target = room_of(imported)
        if target is None or target == room or target.startswith("__"):
            continue
        assert level_of(target) <= level, f"{module} imports {imported}: against the direction"
        both_low = room in NEVER_EACH_OTHER and target in NEVER_EACH_OTHER
        assert not both_low, f"{module} imports {imported}: these rooms never import each other"


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(PACKAGE)) for p in SOURCES])
def test_no_nameless_modules(path: Path) -> None:
    assert path.name not in FORBIDDEN_NAMES


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    source = tmp_path / "las.py"
    source.write_text("from omnisparse.training.trainer import Trainer\n")
    assert imports_of(source) == ["omnisparse.training.trainer"]
    assert level_of("training") > level_of("models")


def test_one_training_loop() -> None:
    """Only the trainer steps an optimizer."""
    root = PACKAGE.parent
    stepping = [
        path.relative_to(root).as_posix()
        for folder in ("omnisparse", "recipes")
        for path in (root / folder).rglob("*.py")
        if "optimizer.step(" in path.read_text(encoding="utf-8")
    ]
    assert stepping == ["omnisparse/training/trainer.py"]
