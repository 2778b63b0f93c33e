"""The command line without a model: help, speed, usage errors, failures in one line."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.group import Report, Verbs, reports
from omnisparse.cli.main import SECTIONS, verbs
from omnisparse.errors import OmnisparseError, UsageError


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(verbs, list(arguments))


def test_help_lists_every_verb_once() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(verbs.commands)
    output = _run("--help").output
    for section in SECTIONS:
        assert f"{section}:" in output


@pytest.mark.parametrize("verb", sorted(verbs.commands))
def test_every_verb_and_option_is_explained(verb: str) -> None:
    result = _run(verb, "--help")
    assert result.exit_code == 0
    assert verbs.commands[verb].help


def test_sizes_are_explained_where_they_are_given() -> None:
    text = " ".join(_run("extract", "--help").output.split())
    assert "16M = non-zero parameters of the whole model" in text
    assert "25% = of the dense net's parameters" in text


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from omnisparse.cli.main import verbs\n"
        "assert CliRunner().invoke(verbs, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'lhotse', 'numpy', 'matplotlib', 'rich', 'wandb', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # CPU time: other work on the machine is not what is measured.
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        seconds.append(used)
    assert found.stdout.strip() == "[]"
    assert min(seconds) < 0.5


def test_package_import_is_light_and_its_names_are_known() -> None:
    script = (
        "import sys, omnisparse\n"
        "assert 'torch' not in sys.modules\n"
        "print(omnisparse.__version__, dir(omnisparse))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for name in ("Supernet", "extract", "load_model", "Recognizer"):
        assert name in found.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("extract",),
        ("extract", "--size", "25%", "--sparsity", "0.5"),
        ("extract", "--size", "25%", "--precision", "fp8"),
        ("evaluate", "somewhere"),
        ("evaluate", "somewhere", "--manifest", "m.jsonl", "--beam", "0"),
        ("transcribe", "somewhere"),
        ("prepare", "synthetic"),
        ("prepare", "import", "there", "--out", "here", "--format", "mp3"),
    ],
)
def test_bad_usage_is_two(arguments: tuple[str, ...]) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


@pytest.mark.parametrize("verb", [("prepare", "synthetic"), ("demo",)])
@pytest.mark.parametrize("hours", ["0", "-1", "nan", "1001"])
def test_hours_that_cannot_be_spoken_are_bad_usage(
    tmp_path: Path, verb: tuple[str, ...], hours: str
) -> None:
    result = _run(*verb, "--out", str(tmp_path / "out"), "--hours", hours)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "must be above 0 and at most 1000" in line
    assert not (tmp_path / "out").exists()


def _failing(error: BaseException) -> Any:
    """The verbs with one more that raises `error`."""

    @click.command()
    @reports
    def fail(report: Report) -> dict[str, Any]:
        print("a library that talks too much")
        raise error

    group = Verbs(
        name="omnisparse", callback=verbs.callback, params=verbs.params, commands={"fail": fail}
    )
    return group


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OmnisparseError("size: out of range"), "size: out of range"),
        (ValueError("two\nlines"), "two; lines"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/z"), "/z: Permission denied"),
        (MemoryError(), "out of memory"),
        (
            torch.OutOfMemoryError("CUDA full. Tried to allocate 2.00 GiB. GPU 0 has a capacity"),
            "out of memory: CUDA full. Tried to allocate 2.00 GiB",
        ),
        (ValueError(), "ValueError"),
        (UsageError("size 'x'"), "size 'x'"),
    ],
)
def test_failures_are_one_line(error: Exception, line: str) -> None:
    result = CliRunner().invoke(_failing(error), ["fail", "--json"])
    assert result.exit_code == (2 if isinstance(error, UsageError) else 1)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == f"omnisparse: error: {line}"
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("arguments", "lines"), [([], 3), (["--json"], 1), (["--json"], 10_000)])
def test_a_reader_that_has_gone_ends_the_command_quietly(arguments: list[str], lines: int) -> None:
    script = (
        "import sys, click\n"
        "from omnisparse.cli.group import OneLineFailures, reports\n"
        "@click.command(cls=OneLineFailures)\n"
        "@reports\n"
        "def speak(report):\n"
        f"    [report.result('x' * 99) for _ in range({lines})]\n"
        f"    return {{'rows': ['x' * 99] * {lines}}}\n"
        "speak()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, "")


def test_interrupt_is_one_line() -> None:
    result = CliRunner().invoke(_failing(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "omnisparse: interrupted"


@pytest.mark.parametrize(
    ("flags", "environment"), [(["--debug"], {}), ([], {"OMNISPARSE_DEBUG": "1"})]
)
def test_debug_shows_the_traceback(flags: list[str], environment: dict[str, str]) -> None:
    result = CliRunner().invoke(_failing(ValueError("x")), [*flags, "fail"], env=environment)
    assert isinstance(result.exception, ValueError)


def test_json_is_one_object_whatever_libraries_print() -> None:
    @click.command()
    @reports
    def speak(report: Report) -> dict[str, Any]:
        print("noise")
        report.result("for people")
        report.note("a note")
        return {"path": Path("a/b"), "wer": float("nan"), "rows": [(1, 2.5, None, True)]}

    result = CliRunner().invoke(speak, ["--json"])
    assert json.loads(result.stdout) == {
        "path": "a/b",
        "wer": None,
        "rows": [[1, 2.5, None, True]],
    }
    assert "noise" in result.stderr
    assert CliRunner().invoke(speak, []).stdout == "for people\n"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_range_holds_numbers_that_are_not_finite(value: str) -> None:
    """No comparison refuses ``nan``: with it `extract --rtf` wrote the smallest model there is."""
    found = 0
    for name, verb in verbs.commands.items():
        for option in verb.params:
            if isinstance(option.type, click.FloatRange):
                found += 1
                needed = ["--manifest", "m.jsonl"] * (name == "evaluate")
                named = ["a"] * sum(isinstance(one, click.Argument) for one in verb.params)
                result = _run(name, *named, *needed, option.opts[0], value)
                assert result.exit_code == 2, (name, option.name)
                assert f"Invalid value for '{option.opts[0]}'" in result.stderr
    assert found >= 5
