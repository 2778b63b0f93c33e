"""``tools/plot_budgets.py``: comparisons of several budgets in one table and plot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools/plot_budgets.py"


def comparison(folder: Path, passes: dict[str, float], wers: dict[tuple[str, str], float]) -> Path:
    rows = [
        {"row": row, "size": size, "test": "t", "wer": wer, "wer_low": wer - 1, "wer_high": wer + 2}
        for (row, size), wer in wers.items()
    ]
    budgets = [
        {"row": row, "passes": n, "updates": n / 30, "flops": None} for row, n in passes.items()
    ]
    folder.mkdir()
    (folder / "compare.json").write_text(json.dumps({"rows": rows, "budgets": budgets}))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_line_for_each_row_and_budget(tmp_path: Path) -> None:
    passes = {"pruned": 1000.0, "supernet": 1010.0}
    once = comparison(tmp_path / "1x", passes, {("pruned", "50%"): 9.0, ("supernet", "50%"): 12.5})
    twice = comparison(
        tmp_path / "2x",
        {row: 2 * n for row, n in passes.items()},
        {("pruned", "50%"): 6.0, ("supernet", "50%"): 5.25, ("supernet", "25%"): 7.0},
    )
    done = run(once, twice, "--out", tmp_path / "plot.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert done.stdout.splitlines()[2:] == [
        "| Sparsity (S) | 1x | 1.00k | 9.00 (8.0 - 11.0) |  |",
        "| Sparsity (S) | 2x | 2.00k | 6.00 (5.0 - 8.0) |  |",
        "| Supernet | 1x | 1.01k | 12.50 (11.5 - 14.5) |  |",
        "| Supernet | 2x | 2.02k | 5.25 (4.2 - 7.2) | 7.00 (6.0 - 9.0) |",
    ]


def test_rates_on_a_log_scale_are_above_zero(tmp_path: Path) -> None:
    cells = {("pruned", "50%"): 9.0, ("pruned", "25%"): 31.0}
    once = comparison(tmp_path / "1x", {"pruned": 1000.0}, cells)
    for name, options in (("plain", ()), ("log", ("--log-rates",))):
        assert run(once, "--out", tmp_path / f"{name}.png", *options).returncode == 0
    assert (tmp_path / "log.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
    none = comparison(tmp_path / "0", {"pruned": 1000.0}, {("pruned", "50%"): 0.0})
    done = run(none, "--out", tmp_path / "none.png", "--log-rates")
    assert (done.returncode, (tmp_path / "none.png").exists()) == (2, False)
    assert done.stderr == "error: --log-rates: a word error rate is 0; leave it out\n"


@pytest.mark.parametrize("text", [None, "{"])
def test_a_folder_without_a_comparison_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "compare.json").write_text(text)
    done = run(tmp_path, "--out", tmp_path / "plot.png")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'compare.json'}")
    assert not (tmp_path / "plot.png").exists()


def test_a_measure_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    once = comparison(tmp_path / "1x", {"pruned": 1000.0}, {("pruned", "50%"): 9.0})
    done = run(once, "--out", tmp_path / "plot.png", "--measure", "flops")
    assert done.returncode == 1
    assert "has a budget of flops" in done.stderr
