"""Processes that compute features or speak keep the memory that they free."""

from __future__ import annotations

import io

import pytest

from omnisparse.data import frame_blocks
from omnisparse.synthetic import audio


def test_a_process_of_features_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(frame_blocks, "keep_freed_memory", lambda: kept.append("features"))
    monkeypatch.setattr(frame_blocks.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    frame_blocks._start_worker()
    assert kept == ["features"]


def test_a_process_that_speaks_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    monkeypatch.setattr(audio, "keep_freed_memory", lambda: kept.append("speech"))
    monkeypatch.setattr(audio.sys, "stdin", io.StringIO("{}\n"))
    audio.serve()
    assert kept == ["speech"]
