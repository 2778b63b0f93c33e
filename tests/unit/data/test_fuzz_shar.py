"""Shards that someone sends, damaged in any way: a typed error, or the sound that was put in."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lhotse import CutSet

from omnisparse.data.audio import read_samples
from omnisparse.data.corpora import load_manifest
from omnisparse.data.sharding import shard_corpus
from omnisparse.errors import OmnisparseError

NUM_CUTS = 3
VALUES = st.sampled_from(
    [None, True, -1, 0, 10**400, 1e308, "", "\x00", "../../etc/passwd", [], {}, {"a": [1]}, 0.1]
)


@pytest.fixture(scope="module")
def good(cuts: CutSet, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Files of a small corpus as shards, by their names below its folder."""
    folder = tmp_path_factory.mktemp("few")
    few = CutSet.from_cuts(list(cuts)[:NUM_CUTS])
    few.to_jsonl(folder / "train.jsonl")
    shard_corpus(folder / "train.jsonl", folder / "out", codec="wav")
    out = folder / "out"
    files = Files(
        (str(path.relative_to(out)), path.read_bytes())
        for path in sorted(out.rglob("*.*"))
        if path.is_file() and path.stat().st_size
    )
    assert len(files) >= 4
    return files


@pytest.fixture(scope="module")
def sound(cuts: CutSet) -> dict[str, np.ndarray]:
    return {cut.id: read_samples(cut) for cut in list(cuts)[:NUM_CUTS]}


class Files(dict[str, bytes]):
    """Files by name, whose bytes are not shown where a test fails."""

    def __repr__(self) -> str:
        return f"files {', '.join(self)}"


@dataclass(frozen=True, repr=False)
class Damaged:
    """What a file holds now; without its bytes where a failure is shown."""

    content: bytes | None


@st.composite
def damage(draw: st.DrawFn, good: Files) -> tuple[str, Damaged]:
    """One of the files, changed in its bytes or in the values of its lines; None if it is gone."""
    name = draw(st.sampled_from(sorted(good)))
    packed = name.endswith(".gz")
    content = gzip.decompress(good[name]) if packed else good[name]
    ways = ["cut", "flipped", "noise", "absent"]
    how = draw(st.sampled_from([*ways, "values", "values"] if "jsonl" in name else ways))
    if how == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif how == "flipped":
        changed = bytearray(content)
        # Often in the first kilobyte, where an archive says what it holds.
        end = draw(st.sampled_from([1024, len(changed)]))
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, min(end, len(changed)) - 1))] ^= draw(st.integers(1, 255))
        content = bytes(changed)
    elif how == "noise":
        content = draw(st.binary(max_size=600))
    elif how == "values":
        lines = [json.loads(line) for line in content.splitlines()]
        line = draw(st.sampled_from(lines))
        keys = sorted(line) if isinstance(line, dict) else []
        if keys:
            line[draw(st.sampled_from(keys))] = draw(VALUES)
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if how == "absent":
        return name, Damaged(None)
    return name, Damaged(gzip.compress(content) if packed else content)


def check(folder: Path, files: Mapping[str, bytes | None], sound: dict[str, np.ndarray]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    said = "nothing"
    try:
        for cut in load_manifest(folder / "train"):
            heard = read_samples(cut)
            whole = sound.get(cut.recording_id, sound.get(cut.id))
            if whole is not None and cut.duration * 16000 == len(whole):
                np.testing.assert_array_equal(heard, whole)
    except (OmnisparseError, ValueError) as error:  # what the command line shows as one line
        said = str(error)
    assert 0 < len(said) < 20_000


def fuzz(folder: Path, good: Files, sound: dict[str, np.ndarray], number: int) -> None:
    @settings(
        max_examples=number, derandomize=False, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damage(good))
    def run(changed: tuple[str, Damaged]) -> None:
        name, file = changed
        before = time.process_time()
        check(folder, {**good, name: file.content}, sound)
        assert time.process_time() - before < 5

    run()


def test_whole_shards_are_heard(tmp_path: Path, good: Files, sound: dict[str, np.ndarray]) -> None:
    check(tmp_path / "a", good, sound)
    heard = {cut.id: read_samples(cut) for cut in load_manifest(tmp_path / "a" / "train")}
    assert heard.keys() == sound.keys()
    for name, samples in heard.items():
        np.testing.assert_array_equal(samples, sound[name])


def test_a_few_damaged_shards(tmp_path: Path, good: Files, sound: dict[str, np.ndarray]) -> None:
    fuzz(tmp_path / "a", good, sound, 100)


@pytest.mark.slow
def test_ten_thousand_damaged_shards(
    tmp_path: Path, good: Files, sound: dict[str, np.ndarray]
) -> None:
    fuzz(tmp_path / "a", good, sound, 10_000)
