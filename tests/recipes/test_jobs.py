"""`--jobs` and `--device`: several real processes find what one finds, word for word."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from click.testing import CliRunner

from omnisparse.cli.main import verbs
from omnisparse.comparison import measure as comparison
from omnisparse.comparison.candidates import read_candidates
from omnisparse.comparison.plan import plan_models
from omnisparse.errors import DataError, OmnisparseError
from omnisparse.evaluation import devices
from omnisparse.evaluation.workers import Workers
from omnisparse.pipeline.evaluate import evaluate_model
from omnisparse.pipeline.rank_search import RankSearchConfig, search_ranks
from omnisparse.pipeline.search import search_run
from omnisparse.pipeline.search_task import SearchConfig
from omnisparse.runs.directory import load_model

pytestmark = pytest.mark.multiprocess
TRAINED = Path(__file__).parents[1] / "fixtures" / "f1feb7c" / "run"


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two processes, which all tests here share: a start takes seconds."""
    with Workers(2) as two:
        yield two


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TRAINED, tmp_path / "run"))


def silent(name: str) -> AbstractContextManager[Callable[[int, int], None]]:
    @contextmanager
    def progress() -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: None

    return progress()


def told(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("seconds", "rtf")}


@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"cut_above": 1.5}], ids=str)
def test_evaluate(
    options: dict[str, Any], run: Path, speech: Path, workers: Workers, tmp_path: Path
) -> None:
    texts = []
    for number, processes in enumerate((None, workers)):
        file = tmp_path / f"{number}.jsonl"
        result = evaluate_model(
            run, speech / "train.jsonl", progress=silent, transcripts=file, workers=processes,
            **options,
        )  # fmt: skip
        texts.append((told({**result, "transcripts": None}), file.read_text()))
    assert texts[0] == texts[1]
    assert len({json.loads(line)["hypothesis"] for line in texts[0][1].splitlines()}) > 3


def test_the_start_of_processes_is_no_recognition(
    run: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New processes have the model before the clock starts."""
    known: list[list[int | None]] = []

    class Clock:
        def perf_counter(self) -> float:
            known.append([process._job for process in two._processes])
            return time.perf_counter()

    monkeypatch.setattr("omnisparse.evaluation.evaluate.time", Clock())
    with Workers(2) as two:
        evaluate_model(run, speech / "dev.jsonl", progress=silent, workers=two)
    assert known == [[1, 1]] * 2


def test_search_and_what_its_journal_keeps(run: Path, speech: Path, workers: Workers) -> None:
    config = SearchConfig(evaluations=16, utterances=8, utterances_per_item=2)
    fronts, journals = [], []
    for processes in (None, workers):
        out = run / f"search{len(fronts)}"
        found = search_run(
            run, ["50%", "70%"], config, manifest=speech / "train.jsonl", out=out,
            workers=processes,
        )  # fmt: skip
        fronts.append(found["front"])
        (journal,) = out.glob("evaluations-*.jsonl")
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        journals.append([{**line, "seconds": 0} for line in lines])
    assert fronts[0] == fronts[1]
    assert journals[0] == journals[1]
    # What two processes have measured, one takes over.
    again = search_run(
        run, ["50%", "70%"], config, manifest=speech / "train.jsonl", out=run / "search1"
    )
    assert again["evaluated_now"] == 0


def test_search_of_ranks(run: Path, speech: Path, workers: Workers) -> None:
    config = RankSearchConfig(method="random", evaluations=6, utterances=8)
    found = [
        search_ranks(
            run, ["2x"], config, manifest=speech / "dev.jsonl", out=run / name, workers=processes
        )["front"]
        for name, processes in (("one", None), ("two", workers))
    ]
    assert found[0] == found[1]


def test_compare(run: Path, speech: Path, workers: Workers) -> None:
    measured = []
    for processes in (None, workers):
        shutil.rmtree(run / "compare", ignore_errors=True)
        candidates, _ = read_candidates([run], by="method")
        models = plan_models(candidates, ["60%"], lambda line: None)
        tests = {"dev": speech / "dev.jsonl"}
        measured.append(
            comparison.measure(models, tests, beam=1, progress=silent, workers=processes)
        )
        (kept,) = (run / "compare").iterdir()
        measured.append(json.loads(kept.read_text())["utterances"])
    assert measured[:2] == measured[2:]


def test_what_fails_there_is_told_here(run: Path, speech: Path, workers: Workers) -> None:
    bad = run / "corpus"
    shutil.copytree(speech, bad)
    lines = [json.loads(line) for line in (bad / "dev.jsonl").read_text().splitlines()]

    def damage(name: str) -> AbstractContextManager[Callable[[int, int], None]]:
        if name == "recognising":  # behind the check of the audio
            (bad / lines[-1]["audio_filepath"]).write_bytes(b"no audio")
        return silent(name)

    with pytest.raises(DataError, match=Path(lines[-1]["audio_filepath"]).name):
        evaluate_model(run, bad / "dev.jsonl", progress=damage, workers=workers)


class Sleep:
    """A job that never ends; it says which process does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, device: torch.device) -> Callable[[int], None]:
        def sleep(task: int) -> None:
            (self.folder / str(os.getpid())).touch()
            time.sleep(600)

        return sleep


def wait_for(folder: Path) -> list[int]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(folder.iterdir()):
        time.sleep(0.05)
    return [int(path.name) for path in folder.iterdir()]


def test_a_process_that_dies_is_one_clear_line(tmp_path: Path) -> None:
    def kill() -> None:
        for number in wait_for(tmp_path):
            os.kill(number, signal.SIGKILL)

    threading.Thread(target=kill).start()
    with (
        Workers(2) as two,
        pytest.raises(OmnisparseError, match=r"died \(exit -9\); fewer --jobs need less memory"),
    ):
        list(two.map(Sleep(tmp_path), [0]))


@pytest.mark.slow
def test_processes_end_with_the_one_that_was_killed(
    run: Path, speech: Path, tmp_path: Path
) -> None:
    """kill -9 of a search: its processes end, and the same command goes on with what is kept."""
    command = [
        sys.executable, "-m", "omnisparse.cli", "search", "--run", str(run), "--sizes", "50%,70%",
        "--manifest", str(speech / "train.jsonl"), "--out", str(run / "search"), "--jobs", "2",
        "--evaluations", "400", "--utterances", "8",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    journal: list[Path] = []
    while time.monotonic() < deadline and process.poll() is None:
        journal = list((run / "search").glob("evaluations-*.jsonl"))
        if journal and len(journal[0].read_bytes().splitlines()) > 8:
            break
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    kept = [json.loads(line) for line in journal[0].read_text().splitlines()[1:]]
    assert len({line["question"] for line in kept}) == len(kept) > 6


def test_a_device_that_is_not_here(
    run: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*options: str) -> tuple[int, str]:
        manifest = str(speech / "dev.jsonl")
        asked = CliRunner().invoke(verbs, ["evaluate", str(run), "--manifest", manifest, *options])
        return asked.exit_code, asked.stderr.strip().splitlines()[-1]

    assert line("--device", "tpu") == (
        2, "omnisparse: error: device 'tpu' is not known; legal: cpu, cuda, cuda:N"
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert line("--device", "cuda:1") == (
        2,
        f"omnisparse: error: device cuda:1: torch {torch.__version__} finds no CUDA device here",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert line("--device", "cuda:2")[1].endswith("cuda:2 is not here; legal: cuda:0 to cuda:1")
    assert [str(one) for one in devices.devices_of("cuda", 3)] == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.parametrize("beam", [1, 2])
def test_lengths_are_where_the_net_is(
    beam: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches keep lengths on the CPU; a search compares them with what the device computes."""
    model = load_model(run).model.eval().to("meta")
    seen: list[str] = []

    def search(encoded: Any, lengths: Any, **options: Any) -> Any:
        seen.extend((encoded.device.type, lengths.device.type))
        raise OmnisparseError("seen")

    monkeypatch.setattr(model, "search_greedily", search)
    monkeypatch.setattr(model, "search_beam", search)
    features = torch.zeros(2, 30, model.input_dim, device="meta")
    with pytest.raises(OmnisparseError, match="seen"):
        model.decode(features, torch.tensor([30, 20]), beam=beam)
    assert seen == ["meta", "meta"]
