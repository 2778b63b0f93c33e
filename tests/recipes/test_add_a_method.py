"""``docs/add_a_method.md`` step by step, in a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import omnisparse

PACKAGE = Path(omnisparse.__file__).parent
PAGE = PACKAGE.parent / "docs" / "add_a_method.md"
SHAPE = {
    "kind": "las", "encoder_layers": 2, "encoder_dim": 24, "embedding_dim": 8, "decoder_dim": 24,
    "attention_dim": 8, "attention_heads": 2,
}  # fmt: skip

SESSION = """
import json, sys
from pathlib import Path
from click.testing import CliRunner
from omnisparse.cli.baseline import plan_baseline
from omnisparse.cli.main import run_recipe, verbs
from omnisparse.sweeps.file import load_sweep
config, sweep = sys.argv[1:]
for point in load_sweep(Path(sweep)).points():
    words = [f"{name}={value}" for name, value in point.items()]
    assert run_recipe(["--config", config, *words], plan=plan_baseline) == 0
runs = [str(run) for run in sorted(Path("runs").glob("tiny-*"))]
done = CliRunner().invoke(verbs, ["compare", *runs, "--json", "--wandb", "off"])
assert done.exit_code == 0, done.stderr
Path("table.json").write_text(done.stdout)
"""


def blocks(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def apply(diff: str, text: str) -> str:
    """What a reader does: changes lines, and adds new ones before the line they stand above."""
    added: list[str] = []
    old = ""
    for line in diff.splitlines():
        mark, rest = line[:1], line[1:]
        if mark == "-":
            old = re.escape(rest).replace(re.escape("..."), "(.+)")
            (found,) = re.findall(rf"^{old}$", text, flags=re.MULTILINE)
        elif mark == "+" and old:
            text = re.sub(rf"^{old}$", rest.replace("...", found), text, flags=re.MULTILINE)
            old = ""
        elif rest.startswith("from "):
            text = text.replace("\nfrom ", f"\n{rest}\nfrom ", 1) if mark == "+" else text
            text = _future_first(text)
        elif mark == "+":
            added.append(rest)
        else:
            assert text.count(f"\n{rest}\n") == 1, rest
            text = text.replace(f"\n{rest}\n", "\n" + "\n".join([*added, rest]) + "\n")
    return text


def _future_first(text: str) -> str:
    future = "from __future__ import annotations\n"
    head, _, tail = text.partition('"""\n\n')
    return f'{head}"""\n\n{future}{tail.replace(future, "")}'


def test_the_method_of_the_page_is_a_row(tmp_path: Path, speech: Path) -> None:
    package = tmp_path / "source" / "omnisparse"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    (source,) = blocks("python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 40
    (package / "methods" / "shrunk.py").write_text(source)
    registry = package / "methods" / "__init__.py"
    (diff,) = blocks("diff")
    registry.write_text(apply(diff, registry.read_text()))

    training = {"max_steps": 4, "log_every": 2, "warmup_steps": 1}
    config: dict[str, Any] = {
        "name": "tiny",
        "corpus": {
            "synthetic": None, "base": str(speech), "train": ["train.jsonl"],
            "dev": ["dev.jsonl"], "test": ["test.jsonl"], "root": str(tmp_path / "data"),
        },
        "data": {
            "vocab_size": 40, "batch_seconds": 20, "max_seconds": 15, "max_batch_size": 6,
        },
        "model": SHAPE, "training": training, "tracking": {"wandb": "off"},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    sweep = {
        "program": "recipes/train_baseline.py", "method": "grid",
        "parameters": {"method": {"values": ["shrunk", "pruned"]}, "size": {"value": "50%"}},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    done = subprocess.run(
        [sys.executable, "-c", SESSION, "tiny.yaml", "sweep.yaml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = json.loads((tmp_path / "table.json").read_text())
    cells = {(cell["row"], cell["size"]): cell for cell in table["rows"]}
    assert ("shrunk", "50%") in cells
    assert cells["shrunk", "50%"]["label"] == "Shrunk"
    assert cells["shrunk", "50%"]["p_value"] is not None
    metrics = (tmp_path / "runs" / "tiny-shrunk-s0" / "metrics.jsonl").read_text()
    assert "loss/shrunk" in metrics
