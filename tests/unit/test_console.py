"""People's output: progress where there is no terminal, numbers as people say them."""

from __future__ import annotations

import io

import pytest
import rich.console

from omnisparse import console as cli_output
from omnisparse.console import (
    Console,
    format_bytes,
    format_seconds,
    member_lines,
    print_error,
)


def test_plain_progress_is_occasional(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(cli_output.time, "monotonic", lambda: now)
    with Console().progress("training") as progress:
        for step in range(1, 101):
            now += 1.0
            progress(step, 100, {"rate": 0.5, "loss/dense": 1.23456, "name": "x"})
        progress(100, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "training: 10/100, 1 min 30 s left  loss/dense 1.235  rate 0.5",
        "training: 40/100, 1 min 00 s left  loss/dense 1.235  rate 0.5",
        "training: 70/100, 30 s left  loss/dense 1.235  rate 0.5",
        "training: 100/100  loss/dense 1.235  rate 0.5",
    ]


def test_time_left_of_a_task_that_did_not_begin_at_its_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(cli_output.time, "monotonic", lambda: now)
    with Console().progress("training") as progress:
        for step in range(80, 95):
            now += 1.0
            progress(step, 100)
    assert capsys.readouterr().err.splitlines() == ["training: 89/100, 11 s left"]


def test_short_work_needs_no_progress_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress("recognising") as progress:
        progress(1, 2)
        progress(2, 2)
    assert capsys.readouterr().err == ""


def test_a_growing_text_needs_a_terminal() -> None:
    for console in (Console(), Console(quiet=True)):
        with console.growing_text() as callback:
            assert callback is None


def test_a_growing_text_shows_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, force_terminal=True, width=20)
    monkeypatch.setattr(Console, "_rich", terminal)
    with Console().growing_text() as callback:
        assert callback is not None
        callback("turn the")
        callback("turn the light in the kitchen off")
    shown = [part for part in screen.getvalue().split("\n") if "kitchen" in part]
    assert "…in the kitchen off" in shown[0]  # 19 of 20 columns: the last is the cursor's
    assert "light" not in shown[0]


def test_on_a_terminal_every_member_of_a_training_has_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(Console, "_rich", terminal)
    metrics = {"loss/dense": 0.5, "loss/smallest": 2.0, "gradient_norm": 1.25}
    with Console().progress("training") as update:
        update(3, 10, metrics)
    shown = [line.rstrip() for line in screen.getvalue().splitlines()]
    (bar,) = [number for number, line in enumerate(shown) if "3/10" in line][-1:]
    assert "training" in shown[bar]
    assert "gradient_norm 1.25" in shown[bar]
    assert shown[bar + 1 : bar + 3] == [
        "  dense          0.5  " + "━" * 6,
        "  smallest         2  " + "━" * 24,
    ]
    assert member_lines({"dev/wer": 3.0}) == []
    assert member_lines({"loss/a": 0.0}) == ["  a         0  "]


def test_quiet_console_only_warns(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.note("note")
    console.table(["a"], [["b"]])
    with console.progress("work") as progress:
        progress(1, 1)
    console.warn("careful [x]")
    assert capsys.readouterr() == ("", "careful [x]\n")


def test_table_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    Console().table(["size", "WER"], [["25%", "5.7"], ["[6%]", "9.1"]], title="results")
    err = capsys.readouterr().err
    for cell in ("results", "size", "WER", "25%", "[6%]", "9.1"):
        assert cell in err


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_columns_go_before_numbers_are_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, width=width, highlight=False, soft_wrap=True)
    monkeypatch.setattr(Console, "_rich", terminal)
    columns = ["method", *(f"size {n}" for n in range(6)), "trainings", "device s"]
    rows = [
        [name, *(f"{10 * n + k}.25 (9.87 - 11.10) *" for k in range(6)), "3", "123,456"]
        for n, name in enumerate(["Sparsity (S)", "Supernet, twice the budget"])
    ]
    Console().table(columns, rows, title="a test", drop=["device s", "trainings"])
    text = screen.getvalue()
    assert "…" not in text
    table, _, missing = text.partition("no room for: ")
    left_out = missing.replace("\n", "").split(", ") if missing else []
    for number, name in enumerate(columns[1:], start=1):
        if name in left_out:
            assert name not in table
        else:
            assert all(row[number] in table for row in rows)
    assert columns[1] not in left_out
    assert max(map(len, table.splitlines())) <= width
    assert bool(left_out) == (width < 200)
    assert not left_out or "device s" in left_out
    assert Console().fits(columns, rows) == (width == 200)


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("first\n  second\n\n")
    assert capsys.readouterr().err == "omnisparse: error: first; second\n"


@pytest.mark.parametrize(
    ("given", "text"),
    [(900, "900 B"), (13_500, "13.50 kB"), (1_300_000, "1.30 MB"), (2e9, "2.00 GB")],
)
def test_bytes(given: float, text: str) -> None:
    assert format_bytes(given) == text


@pytest.mark.parametrize(
    ("given", "text"), [(0.421, "0.42 s"), (59.4, "59 s"), (303.2, "5 min 03 s")]
)
def test_seconds(given: float, text: str) -> None:
    assert format_seconds(given) == text
