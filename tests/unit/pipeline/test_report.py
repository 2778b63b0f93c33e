"""The report: everything of a run on one page, in a real browser, whatever the run's files hold."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from headless_chromium import chromium_page, find_chromium
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from omnisparse.cli.main import verbs
from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.confidence import confidence_interval
from omnisparse.evaluation.wer import word_errors
from omnisparse.pipeline.charts import COLOURS, Line, chart, thinned
from omnisparse.pipeline.report import keep_writing, write_report
from omnisparse.pipeline.report_data import read_metrics, read_run
from omnisparse.pipeline.train import train
from omnisparse.runs.record import read_record
from omnisparse.training.checkpoint import load_newest

OLD = Path(__file__).parents[2] / "fixtures" / "f1feb7c" / "run"
EVIL = "</title><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def assert_harmless(page: str) -> None:
    found = Tags(page)
    assert not found.tags & {"script", "img", "iframe", "link", "a", "object", "base"}
    assert not [name for name in found.attributes if name.startswith("on") or name == "src"]
    assert "default-src 'none'" in page


def make_run(folder: Path) -> Path:
    """A run of an earlier version, with results that someone else may have written."""
    run = Path(shutil.copytree(OLD, folder))
    lines = [
        {"step": step, "loss/dense": 3 / step, f"loss/{EVIL}": 2 / step, "gradient_norm": 1.5,
         "learning_rate": 1e-3, "mask_flip_rate": 0.1, "audio_seconds": 20.0 * step,
         "device_seconds": 0.1 * step, "dev/wer": 90 / step, "dev/wer@25%": 95 / step}
        for step in range(1, 700)
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '[1]\n{"step": 701, "loss/dense": NaN}\n{"step": 7')
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"\n# {EVIL}\n")
    (run / "compare").mkdir()
    said = [["u1", "what is said", f"what {EVIL} said"], [EVIL, "the second one", "the second one"]]
    for size, nonzero in (("25%", 10_000), ("50%", 20_000)):
        (run / "compare" / f"{size[:2]}pct-test-abc.json").write_text(
            json.dumps({"key": {"request": size}, "nonzero": nonzero, "bytes": 7,
                        "utterances": said})
        )  # fmt: skip
    (run / "compare" / "bad.json").write_text('{"utterances": 3}')
    return run


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_it_asks_for_nothing_runs_nothing_and_fits(tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path / "run")
    page_file = tmp_path / "page.html"
    write_report([run, OLD], page_file)
    (tmp_path / "profile").mkdir()
    with chromium_page(tmp_path / "none.wav", tmp_path / "profile") as page:
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        page.open(page_file.as_uri())
        page.wait_for("document.readyState == 'complete' && !!document.querySelector('h1')")
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("document.scripts.length") == 0
        assert page.run("document.querySelectorAll('svg').length") == 8
        assert page.run("document.title") == "run, run"
        assert "<script>document.title" in page.run("document.querySelector('.said').innerText")
        assert page.run("document.querySelectorAll('del, ins').length") > 3
        assert page.requests == [page_file.as_uri()]
        assert page.messages == []


def test_what_is_known_of_a_run_is_on_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    out = tmp_path / "deep" / "page.html"
    (report,) = write_report([run], out)
    page = out.read_text(encoding="utf-8")
    assert_harmless(page)
    assert report.throughput[0] == (1.0, pytest.approx(200.0))
    assert [(result.size, result.test, result.nonzero) for result in report.results] == [
        ("25%", "test", 10_000), ("50%", "test", 20_000),
    ]  # fmt: skip
    assert report.results[0].wer == 50.0  # 3 words for 1, of 6
    assert max(step for step, _ in report.series["loss/dense"]) == 699
    for words in ("Gradient norm", "mask changed", "25%", "encoder.layers.0.weight_ih_l0", "100 %"):
        assert words in page, words


def test_results_are_those_of_the_present_weights_and_intervals_those_of_speakers(
    tmp_path: Path,
) -> None:
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    identity = read_record(run).training.identity
    (run / "compare").mkdir()
    (run / "search").mkdir()
    names = [f"s{number // 4}" for number in range(24)]
    said = [[f"u{n}", "one two", "one two" if n < 8 else "one"] for n in range(24)]
    counts = word_errors([line[1] for line in said], [line[2] for line in said])

    def keep(file: str, **changes: Any) -> None:
        key = {"request": "25%", "identity": identity, "beam": 1, **changes.pop("key", {})}
        document = {"nonzero": 5, "bytes": 7, "utterances": said, "speakers": names, **changes}
        (run / "compare" / file).write_text(json.dumps({"key": key, **document}))

    keep("25pct-test-aa.json")
    keep("25pct-test-ab.json", key={"identity": "5-00000000"})  # before the run trained on
    keep("25pct-test-ac.json", key={"beam": 4}, nonzero=6)
    keep("25pct-other-ad.json", speakers=None)  # nobody knows who speaks
    front = {"front": [{"size": "25%", "nonzero": 5, "wer": 9.0, "wer_low": 8.0, "wer_high": 10.0}]}
    (run / "search" / "front.json").write_text(json.dumps({"identity": identity, **front}))
    found = {(one.test, one.source): one for one in read_run(run).results}
    assert set(found) == {
        ("test", "compare"), ("test, beam 4", "compare"), ("other", "compare"), ("dev", "search"),
    }  # fmt: skip
    shown = found["test", "compare"]
    assert (shown.wer_low, shown.wer_high) == confidence_interval(counts, speakers=names)[:2]
    assert (shown.wer_low, shown.wer_high) != confidence_interval(counts)[:2]
    assert found["other", "compare"].wer_low is None
    assert (found["dev", "search"].wer_low, found["dev", "search"].wer_high) == (8.0, 10.0)
    (run / "search" / "front.json").write_text(json.dumps({"identity": "5-0", **front}))
    assert "dev" not in {one.test for one in read_run(run).results}


def test_the_verb_takes_the_latest_run_and_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").symlink_to(OLD)
    done = CliRunner().invoke(verbs, ["report", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {"file": "report.html", "runs": ["run"]}
    assert_harmless((tmp_path / "report.html").read_text())
    before = (tmp_path / "report.html").read_bytes()
    for words, said in (
        (["nothing"], "nothing: does not exist; a RUN is the directory of a training"),
        ([str(tmp_path)], "not a run directory"),
        (["runs/latest", "--transcripts", "report.html"], "no transcripts"),
    ):
        done = CliRunner().invoke(verbs, ["report", *words])
        assert (done.exit_code, len(done.stderr.splitlines())) == (1, 1)
        assert said in done.stderr
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_live_page_is_read_again_until_the_training_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    out = tmp_path / "page.html"
    lock = (run / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    seen: list[str] = []

    def end() -> None:
        while not out.exists():
            time.sleep(0.01)
        seen.append(out.read_text())
        lock.close()

    thread = threading.Thread(target=end)
    thread.start()
    keep_writing([run], out, every=1)
    thread.join()
    assert 'http-equiv="refresh" content="1"' in seen[0]
    assert 'http-equiv="refresh"' not in out.read_text()


def test_a_curve_keeps_its_extremes_and_odd_values_draw_nothing() -> None:
    points = [(float(n), 1000.0 if n == 777 else -5.0 if n == 4321 else 1.0) for n in range(9000)]
    kept = thinned(points)
    assert len(kept) <= 302
    assert {(777.0, 1000.0), (4321.0, -5.0)} <= set(kept)
    flat = chart([Line("a<b", [(1.0, 0.0)], COLOURS[0])], x_label="x", y_label="y")
    assert "a&lt;b" in flat
    assert chart([Line("a", [(1.0, 0.0)], COLOURS[0])], x_label="x", y_label="y", log_y=True) == ""
    for odd in (5e-324, 1e301, float("nan")):
        assert chart([Line("a", [(1.0, odd)], COLOURS[0])], x_label="x", y_label="y") == ""
    assert "svg" in chart([Line("a", [(1.0, 1e-190)], COLOURS[0])], x_label="x", y_label="y")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def dump(value: Any) -> str:
    return json.dumps(value)


def check_any_files(folder: Path, metrics: list[Any], compare: Any, front: Any) -> None:
    run = folder / "run"
    (run / "compare").mkdir(parents=True, exist_ok=True)
    (run / "search").mkdir(exist_ok=True)
    (run / "config.yaml").write_text("name: x\n")
    (run / "metrics.jsonl").write_text("".join(dump(line) + "\n" for line in metrics))
    (run / "compare" / "a-b-c.json").write_text(dump(compare))
    (run / "search" / "front.json").write_text(dump(front))
    write_report([run], folder / "page.html")
    assert_harmless((folder / "page.html").read_text(encoding="utf-8", errors="replace"))


LINES = st.lists(
    VALUES | st.fixed_dictionaries({"step": st.integers() | VALUES}, optional={
        "loss/dense": st.floats() | VALUES, "dev/wer": st.floats(), "audio_seconds": st.floats(),
        "device_seconds": st.floats(), EVIL: st.floats(),
    }), max_size=5,
)  # fmt: skip
COMPARED = VALUES | st.fixed_dictionaries({
    "key": VALUES | st.fixed_dictionaries({"request": VALUES}), "nonzero": st.integers() | VALUES,
    "bytes": VALUES, "utterances": st.lists(st.lists(st.text(max_size=9), min_size=3, max_size=3)),
})  # fmt: skip
FRONTS = VALUES | st.fixed_dictionaries({"front": VALUES | st.lists(st.fixed_dictionaries({
    "nonzero": st.integers() | VALUES, "wer": st.floats() | VALUES, "size": VALUES,
}), max_size=3)})  # fmt: skip
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=100, deadline=5000, suppress_health_check=QUIET)
@given(metrics=LINES, compare=COMPARED, front=FRONTS)
def test_any_files_give_a_page(tmp_path: Path, metrics: Any, compare: Any, front: Any) -> None:
    check_any_files(tmp_path, metrics, compare, front)


@pytest.mark.slow
@settings(
    max_examples=10_000, derandomize=False, suppress_health_check=QUIET, phases=[Phase.generate]
)  # fmt: skip
@given(metrics=LINES, compare=COMPARED, front=FRONTS)
def test_ten_thousand_files_give_a_page(
    tmp_path: Path, metrics: Any, compare: Any, front: Any
) -> None:
    check_any_files(tmp_path, metrics, compare, front)


def test_deep_and_endless_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("[" * 100_000 + "\n" + '{"step": 3, "a": 1}\n' + '{"step": ' + "9" * 5_000_000)
    assert read_metrics(path) == {"a": [(3.0, 1.0)]}
    with pytest.raises(OmnisparseError, match="1 to 12"):
        write_report([OLD] * 13, tmp_path / "page.html")


def test_subnets_are_measured_while_training_and_change_nothing(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    plain = train(tiny_config(max_steps=6, evaluate_every=3), out=tmp_path / "plain")
    sized = train(
        tiny_config(max_steps=6, evaluate_every=3, evaluate_sizes=["50%", "70%"]),
        out=tmp_path / "sized",
    )
    series = read_run(sized.run).series
    assert [step for step, _ in series["dev/wer@50%"]] == [3, 6]
    assert series["dev/wer"] == read_run(plain.run).series["dev/wer"]
    weights = [load_newest(one.run / "checkpoints") for one in (plain, sized)]
    for stem in ("model", "optimizer"):
        one, other = (checkpoint.tensors[stem] for checkpoint in weights if checkpoint)
        assert all(torch.equal(one[name], other[name]) for name in one)
    for method, sizes, said in (
        ("sandwich", ["1%"], "legal"),
        ("dense", ["50%"], "no subnets"),
    ):
        config = tiny_config(method=method, max_steps=6, evaluate_every=3, evaluate_sizes=sizes)
        with pytest.raises(ValueError, match=said):
            train(config, out=tmp_path / "bad")
