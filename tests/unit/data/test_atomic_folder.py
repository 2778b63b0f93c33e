"""A folder appears complete or not at all."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from omnisparse.data.atomic_folder import atomic_folder


def write_and_fail(final: Path) -> None:
    with atomic_folder(final) as folder:
        (folder / "file").write_text("new")
        raise RuntimeError


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_the_old_one(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(RuntimeError):
        write_and_fail(tmp_path / "a")
    assert (tmp_path / "a" / "file").read_text() == "old"


def test_leftovers_of_dead_processes_go(tmp_path: Path) -> None:
    here = platform.node()
    (tmp_path / f".a.tmp-{here}-999999999-x").mkdir()
    (tmp_path / f".a.tmp-{here}-1-x").mkdir()  # process 1 is alive
    (tmp_path / ".a.tmp-elsewhere-999999999-x").mkdir()  # on another machine perhaps, too
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("x")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".a.tmp-{here}-1-x", ".a.tmp-elsewhere-999999999-x", "a"}
