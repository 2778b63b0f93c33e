"""The cache of hypotheses: keyed, resumable, checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from small_batches import LAS, make_batch, make_model

from omnisparse.errors import DataError
from omnisparse.methods import hypotheses
from omnisparse.methods.hypotheses import HypothesisCache, decode_hypotheses
from omnisparse.models import Hypothesis
from omnisparse.models.operations import counted_operations

IDS = [f"u{index}" for index in range(10)]
KEY = {"teacher": "abc", "beam": 2}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypotheses, "PART_UTTERANCES", 4)


class Decoder:
    """Counts what it is asked for."""

    def __init__(self, stop_after: int = 99) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def __call__(self, ids: Sequence[str]) -> dict[str, list[Hypothesis]]:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += ids
        return {name: [Hypothesis([3, int(name[1:])], -0.1), Hypothesis([], -7.25)] for name in ids}


def test_everything_is_decoded_once_and_read_back(tmp_path: Path) -> None:
    decode = Decoder()
    cache = HypothesisCache(tmp_path, KEY, IDS)
    assert cache.fill(decode) == len(IDS)
    found = HypothesisCache(tmp_path, KEY, IDS).read()
    assert list(found) == IDS
    assert found["u7"] == [Hypothesis([3, 7], -0.1), Hypothesis([], -7.25)]
    assert HypothesisCache(tmp_path, KEY, IDS).fill(Decoder(stop_after=0)) == 0


@pytest.mark.parametrize(
    ("key", "ids"), [({**KEY, "teacher": "abd"}, IDS), ({**KEY, "beam": 3}, IDS), (KEY, IDS[:-1])]
)
def test_other_teachers_beams_and_utterances_have_other_caches(
    tmp_path: Path, key: dict[str, object], ids: list[str]
) -> None:
    HypothesisCache(tmp_path, KEY, IDS).fill(Decoder())
    other = HypothesisCache(tmp_path, key, ids)
    with pytest.raises(DataError, match="missing or damaged"):
        other.read()


def test_a_stopped_decoding_continues_with_the_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        HypothesisCache(tmp_path, KEY, IDS).fill(Decoder(stop_after=4))
    rest = Decoder()
    HypothesisCache(tmp_path, KEY, IDS).fill(rest)
    assert rest.asked == IDS[4:]
    assert list(HypothesisCache(tmp_path, KEY, IDS).read()) == IDS


def test_processes_share_the_parts(tmp_path: Path) -> None:
    cache = HypothesisCache(tmp_path, KEY, IDS)
    assert [cache.fill(Decoder(), rank=rank, world_size=2) for rank in (0, 1)] == [6, 4]
    assert list(cache.read()) == IDS


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_part_is_noticed_and_decoded_again(tmp_path: Path, damage: str) -> None:
    cache = HypothesisCache(tmp_path, KEY, IDS)
    cache.fill(Decoder())
    path = cache.folder / "part-00001.json"
    content = path.read_bytes()
    changed = {
        "flip": content.replace(b"[3, 5]", b"[3, 6]"),
        "cut": content[:-7],
        "empty": b"",
        "foreign": (cache.folder / "part-00000.json").read_bytes(),
    }
    path.write_bytes(changed[damage])
    with pytest.raises(DataError, match=r"part-00001.json: missing or damaged"):
        cache.read()
    notes: list[str] = []
    again = Decoder()
    cache.fill(again, note=notes.append)
    assert again.asked == IDS[4:8]
    assert any("part-00001.json" in note and "decoding it again" in note for note in notes)
    assert path.read_bytes() == content


_SLOW = """
import sys, time
from pathlib import Path
from omnisparse.methods import hypotheses
from omnisparse.models import Hypothesis
from omnisparse.models.operations import counted_operations
hypotheses.PART_UTTERANCES = 4
def decode(ids):
    time.sleep(0.2)
    return {name: [Hypothesis([3, int(name[1:])], -0.1), Hypothesis([], -7.25)] for name in ids}
ids = [f"u{index}" for index in range(400)]
hypotheses.HypothesisCache(Path(sys.argv[1]), {"beam": 2}, ids).fill(decode)
"""


@pytest.mark.multiprocess
def test_kill_9_leaves_whole_parts_only(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path)])
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(tmp_path.glob("*/part-*"))) < 3:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ids = [f"u{index}" for index in range(400)]
    cache = HypothesisCache(tmp_path, {"beam": 2}, ids)
    complete = 4 * len(list(cache.folder.glob("part-*.json")))
    notes: list[str] = []
    rest = Decoder(stop_after=10_000)
    cache.fill(rest, note=notes.append)
    assert rest.asked == ids[complete:]
    assert not [note for note in notes if "again" in note]
    assert list(cache.read()) == ids


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write hypotheses to .*file"):
        HypothesisCache(tmp_path / "file", KEY, IDS)


def test_decoding_gives_the_models_own_beam() -> None:
    model, batch = make_model(LAS).eval(), make_batch(5)
    found = decode_hypotheses(model, [batch], beam=3, device=torch.device("cpu"))
    beams = model.nbest(batch.features, batch.feature_lengths, beam=3)
    assert [found[name] for name in batch.ids] == beams
    assert all(1 <= len(beam) <= 3 for beam in beams)


def test_what_decoding_cost_is_kept_with_it(tmp_path: Path) -> None:
    """A run that finds the hypotheses pays for them as the run that decoded them."""
    model = make_model(LAS)
    batch = make_batch(4)
    ids = list(batch.ids)
    cache = HypothesisCache(tmp_path, KEY, ids)
    assert cache.cost() == (len(ids), None, 0.0)
    cache.fill(lambda _: decode_hypotheses(model, [batch], beam=2, device=torch.device("cpu")))
    again = HypothesisCache(tmp_path, KEY, ids).cost()
    assert again.utterances == len(ids)
    with counted_operations() as count:
        model.nbest(batch.features, batch.feature_lengths, beam=2)
    assert again.flops == count.total > 0
    assert again.device_seconds > 0
    (cache.folder / "cost-00000.json").unlink()  # written by an earlier version
    assert HypothesisCache(tmp_path, KEY, ids).cost().flops is None
