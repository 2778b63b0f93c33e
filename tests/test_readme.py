"""The commands that README and ``docs/`` show are commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from omnisparse.cli.baseline import KEYS
from omnisparse.cli.main import verbs
from omnisparse.comparison.rows import ROWS
from omnisparse.config import load_config
from omnisparse.version import TESTED_PAIRS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
LINKS = sorted(
    {
        (str(page.parent.relative_to(ROOT)), link)
        for page, text in TEXTS.items()
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    }
)


def commands() -> list[str]:
    text = "\n".join(text for page, text in TEXTS.items() if page.name != "add_a_method.md")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return sorted({line.split("  #")[0].strip() for line in lines if line.strip()})


def test_there_are_commands() -> None:
    assert len(commands()) > 8


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("omnisparse ")])
def test_every_verb_and_option_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    command: click.Command = verbs
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    # With the settings of the real one: click keeps a command's first help option for good.
    parent = click.Context(verbs, **verbs.context_settings)
    context = command.make_context(command.name, words, parent=parent, resilient_parsing=False)
    assert context.params


@pytest.mark.parametrize("line", [c for c in commands() if "recipes/" in c])
def test_recipes_and_their_overrides_exist(line: str) -> None:
    words = shlex.split(line)
    for word in words:
        assert not word.startswith("recipes/") or (ROOT / word).is_file()
    recipe = next((word for word in words if word.endswith(".py")), None)
    if recipe is None:
        return  # a verb that takes a file of the recipes
    assert (ROOT / recipe).is_file()
    config = ROOT / words[words.index("--config") + 1] if "--config" in words else None
    after = words[words.index(recipe) + 1 :]
    overrides = [word for word in after if "=" in word and not word.startswith("--")]
    if recipe.endswith("train_baseline.py"):
        rows = [word.partition("=")[2] for word in overrides if word.startswith("method=")]
        assert set(rows) <= set(ROWS)
        overrides = [word for word in overrides if word.partition("=")[0] not in KEYS]
    load_config(config, overrides)


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{shlex.split(line)[1]}:", makefile, flags=re.MULTILINE)


def test_clean_leaves_trainings_and_corpora(tmp_path: Path) -> None:
    made = [".venv", "demo", "build", ".pytest_cache", "omnisparse/__pycache__"]
    kept = ["runs/a/checkpoints", "data/mine", "comparison", "omnisparse"]
    for folder in (*made, *kept):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "file").write_text("x")
    command = ["make", "-C", str(tmp_path), "-f", str(ROOT / "Makefile"), "clean"]
    subprocess.run(command, check=True, capture_output=True)
    assert [folder for folder in made if (tmp_path / folder).exists()] == []
    assert [folder for folder in kept if not (tmp_path / folder / "file").exists()] == []


@pytest.mark.parametrize(("folder", "link"), LINKS)
def test_links_lead_somewhere(folder: str, link: str) -> None:
    assert (ROOT / folder / link).exists()


def test_pairs_of_torch_and_torchaudio_are_the_tested_ones() -> None:
    first = dict(zip(("torch", "torchaudio"), TESTED_PAIRS[0], strict=True))
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert dict(line.split("==") for line in lines if not line.startswith("#")) == first
    readme = " ".join(TEXTS[ROOT / "README.md"].split())
    for torch, torchaudio in TESTED_PAIRS:
        assert f"torch {torch} with torchaudio {torchaudio}" in readme
