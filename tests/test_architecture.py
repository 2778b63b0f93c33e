"""Holds the direction of imports between the rooms, and that there are no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "omnisparse"

GROUND = "version errors durable atomic console"

MAY_IMPORT = {
    # From the ground up. A room imports only what its line names, and a line names only rooms
    # that stand above it in this table (the ground's own modules: those before them).
    "version": "",
    "errors": "",
    "durable": "errors",
    "atomic": "durable errors",
    "console": "errors",
    #
    "data": GROUND,
    "models": GROUND,
    "sparsity": GROUND,
    #
    "synthetic": f"{GROUND} data",
    "methods": f"{GROUND} data models sparsity",
    "search": f"{GROUND} sparsity",
    "evaluation": f"{GROUND} data models sparsity",
    "artifact": f"{GROUND} sparsity",
    "nested": f"{GROUND} sparsity artifact",
    "generic": f"{GROUND} sparsity artifact",
    #
    "training": f"{GROUND} data models sparsity methods",
    "deploy": f"{GROUND} data models sparsity artifact nested",
    #
    "config": f"{GROUND} data models sparsity synthetic methods training",
    "runs": f"{GROUND} data models sparsity methods evaluation artifact nested training config",
    "pipeline": f"{GROUND} data models sparsity synthetic methods search evaluation artifact nested"
    " generic training deploy config runs",
    "comparison": f"{GROUND} data models sparsity methods evaluation artifact training config runs"
    " pipeline",
    "sweeps": f"{GROUND} config runs",
    "cli": f"{GROUND} data models sparsity synthetic methods search evaluation artifact nested"
    " training deploy config runs pipeline comparison sweeps",
}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py"}
MAX_LINES = 400


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """The dotted name of a source file."""
    parts = [package.name, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts).removesuffix(".__init__")


def room_of(module: str) -> str | None:
    """The room of a dotted module below ``omnisparse``; None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports_of(path: Path) -> list[str]:
    """Every module of ours that a file imports, at its top, in functions or for types alone."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the direction")
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from omnisparse.models import lattice` names a module or a name of the package.
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return [module for module in modules if module.split(".")[0] == "omnisparse"]


def against_the_direction(module: str, imported: Iterable[str]) -> list[str]:
    """The imports of a module that its room's line does not allow."""
    room = room_of(module)
    if room is None:
        return []  # the package's __init__ is the lazy public API
    assert room in MAY_IMPORT, f"{module} is in no room of the architecture"
    allowed = {room, *MAY_IMPORT[room].split()}
    targets = ((name, room_of(name)) for name in imported)
    return [name for name, target in targets if target in MAY_IMPORT and target not in allowed]


def find_circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One circle of a graph of imports, first module repeated at its end; empty if none."""
    finished: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in finished:
            return []
        for imported in graph.get(module, ()):
            if circle := visit(imported, [*way, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def graph_of(sources: Iterable[Path], package: Path = PACKAGE) -> dict[str, list[str]]:
    """Which module imports which; a name is counted as the module it is taken from."""
    paths = {module_of(path, package): path for path in sources}
    paths.pop(package.name, None)  # the lazy public API
    graph = {}
    for module, path in paths.items():
        names = imports_of(path)
        targets = {name if name in paths else name.rpartition(".")[0] for name in names}
        graph[module] = sorted((targets & set(paths)) - {module})
    return graph


SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in SOURCES]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_point_one_way(path: Path) -> None:
    assert against_the_direction(module_of(path), imports_of(path)) == []


def test_the_table_names_only_rooms_further_up() -> None:
    above: list[str] = []
    for room, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= {*above, *GROUND.split()}, room
        above.append(room)


def test_no_circles() -> None:
    assert find_circle(graph_of(SOURCES)) == []


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_files_have_a_name_and_one_subject(path: Path) -> None:
    assert path.name not in FORBIDDEN_NAMES
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_no_loose_modules() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__", *GROUND.split()}


@pytest.mark.parametrize(
    "line",
    [
        "from omnisparse.training.trainer import Trainer",
        "from omnisparse import training",
        "import omnisparse.training.trainer",
        "if TYPE_CHECKING:\n    from omnisparse.training.trainer import Trainer",
        "def build():\n    from omnisparse.training import trainer",
    ],
)
def test_a_planted_import_against_the_order_is_seen(line: str, tmp_path: Path) -> None:
    source = tmp_path / "las.py"
    source.write_text(line + "\n")
    assert against_the_direction("omnisparse.models.las", imports_of(source))


def test_a_planted_circle_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "omnisparse"
    (package / "models").mkdir(parents=True)
    (package / "models" / "__init__.py").write_text("")
    (package / "models" / "las.py").write_text("from omnisparse.models import decoding\n")
    (package / "models" / "decoding.py").write_text(
        "if TYPE_CHECKING:\n    from omnisparse.models.las import LasModel\n"
    )
    circle = find_circle(graph_of(package.rglob("*.py"), package))
    assert set(circle) == {"omnisparse.models.las", "omnisparse.models.decoding"}


def test_one_training_loop() -> None:
    """Only the trainer steps an optimizer; a search's policy, which is no net, has its own."""
    root = PACKAGE.parent
    stepping = [
        path.relative_to(root).as_posix()
        for folder in ("omnisparse", "recipes")
        for path in (root / folder).rglob("*.py")
        if "optimizer.step(" in path.read_text(encoding="utf-8")
    ]
    stepping.sort()
    assert stepping == ["omnisparse/search/controller.py", "omnisparse/training/trainer.py"]
