"""The example of docs/any-model.md does what its page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "any_model.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("any_model", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str) -> dict[str, list[str]]:
    found = re.findall(r"^\| (\d+%) \| (.+) \|$", text, flags=re.MULTILINE)
    return {size: rest.split(" | ") for size, rest in found}


def run(steps: int | None, folder: Path, capsys: Any, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    example = load()
    if steps is not None:
        patch.setattr(example, "STEPS", steps)
    patch.setattr(sys, "argv", ["any_model.py", str(folder)])
    example.main()
    return rows(capsys.readouterr().out)


def test_the_example_runs_and_its_page_shows_its_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(12, tmp_path, capsys, monkeypatch)
    told = rows((ROOT / "docs" / "any-model.md").read_text(encoding="utf-8"))
    assert list(found) == list(told)
    for size, (nonzero, size_bytes, _) in found.items():
        assert told[size][:2] == [nonzero, size_bytes]


def test_the_loop_of_the_page_is_that_of_the_example() -> None:
    page = (ROOT / "docs" / "any-model.md").read_text(encoding="utf-8")
    loop = EXAMPLE.read_text(encoding="utf-8").partition("    for step in range(STEPS):\n")[2]
    for line in loop.partition("\n\n\n")[0].splitlines():
        assert re.sub(r" +# \d$", "", line).strip() in page, line


@pytest.mark.slow
def test_the_whole_example_reaches_the_accuracy_of_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(None, tmp_path, capsys, monkeypatch)
    told = rows((ROOT / "docs" / "any-model.md").read_text(encoding="utf-8"))
    for size in ("100%", "50%", "25%"):
        assert float(found[size][2]) == pytest.approx(float(told[size][2]), abs=1.5)
