"""The recipe of the comparison, sweeps without a server, and the table, on untrained tiny nets."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from omnisparse.cli.baseline import plan_baseline
from omnisparse.cli.main import verbs
from omnisparse.cli.train import run_recipe
from omnisparse.comparison.candidates import read_candidates
from omnisparse.config import RunConfig, config_to_yaml, load_config
from omnisparse.errors import OmnisparseError
from omnisparse.evaluation.pareto import format_count
from omnisparse.pipeline.evaluate import recognise
from omnisparse.pipeline.extract import extract
from omnisparse.pipeline.train import train as run_training
from omnisparse.runs.record import read_record

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "train_baseline.py"


def invoke(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(verbs, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


@pytest.fixture
def config(
    tiny_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A configuration of a tiny supernet, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(config_to_yaml(tiny_config(max_steps=2)))
    return path


def train(config: Path, *overrides: str) -> Path:
    """Train a row in this process, as the recipe does, and return its run."""
    answer = Path("answer.json")
    os.environ["OMNISPARSE_RESULT_FILE"] = str(answer)
    try:
        assert run_recipe(["--config", str(config), *overrides], plan=plan_baseline) == 0
    finally:
        del os.environ["OMNISPARSE_RESULT_FILE"]
    return Path(json.loads(answer.read_text())["run"])


# -- the recipe -------------------------------------------------------------------------------


def test_a_row_is_recorded_with_what_it_cost(config: Path) -> None:
    run = train(config, "method=base", "seed=3")
    assert run == Path("runs/tiny-base-s3")
    record = read_record(run)
    assert (record.row, record.size, record.seed) == ("base", None, 3)
    assert record.training.optimizer_steps == 2
    assert record.account.utterance_passes > 0
    assert record.account.device_seconds > 0
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert record.commit == (commit.stdout.strip() or None)


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=supernet", "size=50%", "method.num_random_subnets=2"),
        ("--method=supernet", "--size=25%", "--method.num_random_subnets=2"),
        ("--method", "sandwich", "--method.num_random_subnets", "2"),
    ],
)
def test_a_supernet_is_one_run_however_it_is_asked_for(
    config: Path, overrides: tuple[str, ...]
) -> None:
    run = train(config, "training.max_steps=0", *overrides)
    assert run == Path("runs/tiny-supernet-s0")
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["method"]["num_random_subnets"] == 2
    assert kept["method"]["min_size"] == "40%"  # that of the configuration


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=prunned", "method 'prunned' is unknown; legal: base"),
        ("modle.kind=las", "unknown key modle"),
        ("pretrain=120%", "pretrain is '120%'; legal: a share"),
        ("method.no_such=1", "unknown key method.no_such"),
    ],
)
def test_a_wrong_key_is_one_line_and_two(
    config: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_recipe(["--config", str(config), override], plan=plan_baseline) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not Path("runs").exists()


@pytest.mark.multiprocess
def test_a_wrong_key_is_told_once_before_processes_start(config: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    recipe = ROOT / "recipes" / "train_supernet.py"
    done = subprocess.run(
        [*command, "--quiet", str(recipe), "--config", str(config), "training.no_such=1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("unknown key training.no_such") == 1
    assert "Traceback" not in done.stderr
    assert "CPU processes" not in done.stderr


# -- sweeps -----------------------------------------------------------------------------------


def write_sweep(path: Path, config: Path, **changes: Any) -> Path:
    document = {
        "program": str(RECIPE),
        "method": "grid",
        "parameters": {"seed": {"values": [0, 1]}, "method": {"values": ["base", "supernet"]}},
        "command": [
            "${env}", "${interpreter}", "${program}", "--config", str(config),
            "training.max_steps=0", "${args_no_hyphens}",
        ],
        **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


@pytest.mark.multiprocess
def test_a_sweep_runs_reports_failures_and_resumes(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    parameters = {"seed": {"value": 0}, "method": {"values": ["base", "nonsense", "supernet"]}}
    file = write_sweep(Path("sweep.yaml"), config, parameters=parameters)
    result = invoke("sweep", file, "--local", "--json", code=1)
    runs = json.loads(result.stdout)["runs"]
    assert [run["status"] for run in runs] == ["finished", "failed", "finished"]
    assert [run["parameters"]["method"] for run in runs] == ["base", "nonsense", "supernet"]
    assert runs[1]["exit_code"] == 2
    assert "method 'nonsense' is unknown" in runs[1]["error"]
    assert "failed: seed=0 method=nonsense" in result.stderr
    assert [Path(runs[i]["run"]).name for i in (0, 2)] == ["tiny-base-s0", "tiny-supernet-s0"]

    parameters["method"]["values"].remove("nonsense")
    again = json.loads(invoke("sweep", write_sweep(file, config, parameters=parameters),
                              "--local", "--json").stdout)  # fmt: skip
    assert [run["started"] for run in again["runs"]] == [False, False]
    assert again["failed"] == 0


@pytest.mark.multiprocess
def test_an_interrupted_sweep_continues_its_run(config: Path) -> None:
    """The run that a signal meets writes a checkpoint, and the next start goes on from there."""
    command = [
        "${interpreter}", "${program}", "--config", str(config), "training.max_steps=4000",
        "training.checkpoint_every=100000", "${args}",
    ]  # fmt: skip
    parameters = {"method": {"value": "base"}}
    file = write_sweep(Path("long.yaml"), config, parameters=parameters, command=command)
    arguments = [sys.executable, "-m", "omnisparse.cli", "sweep", str(file), "--local"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sweep = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True)
    run = Path("runs/tiny-base-s0")
    deadline = time.monotonic() + 400
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert second.returncode == 1
    assert "another sweep" in second.stderr
    sweep.send_signal(signal.SIGTERM)
    _, told = sweep.communicate(timeout=120)
    assert sweep.returncode == 143
    assert "stopped with 0 of 1 runs done; the same command continues" in told
    state = json.loads(Path("sweeps/long/runs.json").read_text())
    (entry,) = state.values()
    assert entry["status"] == "interrupted"
    step = read_record(run).training.optimizer_steps
    assert 0 < step < 4000
    # A finished run of the same command line is what the next start finds.
    assert "stopped by SIGTERM at step" in entry["error"]


def test_a_student_is_one_training_beside_its_teacher(config: Path) -> None:
    base = train(config, "method=base")
    student = train(config, "method=distilled", "size=60%")
    runs = sorted(path for path in Path("runs").iterdir() if not path.is_symlink())
    assert runs == sorted([base, student])
    record, own = read_record(student), read_record(base)
    assert record.training.optimizer_steps == own.training.optimizer_steps
    assert record.account.teacher_utterance_passes == own.training.utterance_passes
    kept = yaml.safe_load((student / "config.yaml").read_text())["method"]
    assert (kept["label_fraction"], kept["teacher"]) == (0.2, str(base))


def test_the_first_steps_of_a_run_are_no_row(config: Path) -> None:
    """Earlier versions trained a student in two runs; the first of them is in no table."""
    base = train(config, "method=base")
    part = run_training(load_config(config), out=Path("runs/part"), row="part").run
    candidates, _ = read_candidates([base, part], by="method")
    assert [candidate.row for candidate in candidates] == ["base"]
    with pytest.raises(OmnisparseError, match="only the first steps of other runs"):
        read_candidates([part], by="method")


def test_one_pruning_gives_a_model_of_every_size(config: Path, speech: Path) -> None:
    """Its models are columns of the table for the cost of one training, and exact extractions."""
    run = train(config, "method=pruned", "sizes=[80%,60%]", "training.max_steps=12",
                "method.frequency=1")  # fmt: skip
    assert run == Path("runs/tiny-pruned-once-s0")
    record = json.loads(next(run.glob("checkpoints/*/state.json")).read_text())["state"]["record"]
    (kept,) = record["pruning"]["kept"].items()
    base = train(config, "method=pruned", "size=80%", "training.max_steps=12")
    named = run / "weights" / "size-80pct"  # beside its pruning, it is still one model
    arguments = ["compare", named, run, base, "--wandb", "off", "--json"]
    found = json.loads(invoke(*arguments).stdout)
    cells = {(row["row"], row["size"]): row for row in found["rows"]}
    (dense,) = {model["parameters"] for model in found["models"]}
    for size in ("80%", "60%"):
        cell = cells["pruned_once", size]
        assert len(cell["seeds"]) == 1
        assert cell["nonzero"] == round(float(size[:-1]) / 100 * dense)
        made = extract(run, size=size)
        assert (made["nonzero"], made["warnings"]) == (cell["nonzero"], [])
    costs = {cost["row"]: cost for cost in found["costs"]}
    once, one = costs["pruned_once"], costs["pruned"]
    assert (once["trainings"], one["trainings"]) == (1, 1)
    assert once["optimizer_steps"] == one["optimizer_steps"] == 12
    # What was kept is the net as it was then, of which the last is a part.
    kept_run = run / "weights" / kept[0]
    assert (
        json.loads(next(kept_run.glob("checkpoints/*/state.json")).read_text())["step"] == (kept[1])
    )
    between = extract(run, size="70%", out=Path("between"))
    assert between["nonzero"] == round(0.7 * dense)
    with pytest.raises(ValueError, match="has models of several sizes"):
        extract(run, size="20KB")


def test_a_dense_net_is_cut_to_each_size_within_one_budget(config: Path) -> None:
    sizes, steps = ("80%", "60%"), "training.max_steps=20"
    runs = [train(config, "method=cut", f"size={size}", "sizes=[80%,60%]", steps)
            for size in sizes]  # fmt: skip
    made = sorted(path.name for path in Path("runs").iterdir() if not path.is_symlink())
    assert made == ["tiny-cut-60pct-s0", "tiny-cut-80pct-s0", "tiny-cut-base-s0"]
    assert [read_record(run).training.optimizer_steps for run in runs] == [3, 3]
    assert read_record(Path("runs/tiny-cut-base-s0")).training.optimizer_steps == 14
    out = invoke("compare", *runs, "--wandb", "off", "--json").stdout
    found = json.loads(out)
    (cost,) = found["costs"]
    assert (cost["trainings"], cost["optimizer_steps"]) == (3, 20)
    (dense,) = {model["parameters"] for model in found["models"]}
    for cell in found["rows"]:
        assert cell["nonzero"] == round(float(cell["size"][:-1]) / 100 * dense)


# -- the table --------------------------------------------------------------------------------


@pytest.fixture
def compared(config: Path) -> tuple[Path, list[Path], dict[str, Any]]:
    runs = [train(config, "method=base", f"seed={seed}") for seed in (0, 1)]
    runs.append(train(config, "method=supernet"))
    out = Path("out")
    arguments = ["compare", *runs, "--out", out, "--sizes", "100%,60%", "--json"]
    result = invoke(*arguments, "--reference", "pang2018")
    return out, runs, json.loads(result.stdout)


def test_the_table_holds_every_method_size_and_cost(
    compared: tuple[Path, list[Path], dict[str, Any]],
) -> None:
    out, runs, result = compared
    places = [(row["row"], row["size"], row["seeds"]) for row in result["rows"]]
    assert places == [("base", "100%", [0, 1]), ("supernet", "100%", [0]), ("supernet", "60%", [0])]
    base, _, small = result["rows"]
    expected = extract(runs[2], size="60%", out=Path("artifact"))
    assert (small["nonzero"], small["bytes"]) == (expected["nonzero"], expected["bytes"])
    assert base["wer"] == pytest.approx(sum(base["wer_of_seeds"]) / 2)
    costs = {cost["row"]: cost for cost in result["costs"]}
    assert (costs["base"]["trainings"], costs["supernet"]["trainings"]) == (2, 1)
    for row, chosen in (("base", runs[:2]), ("supernet", runs[2:])):
        passes = sum(read_record(run).account.utterance_passes for run in chosen)
        assert costs[row]["utterance_passes"] == pytest.approx(passes)
    text = (out / "compare.md").read_text()
    assert f"| Supernet | {result['rows'][1]['wer']:.2f} (" in text
    assert format_count(costs["supernet"]["utterance_passes"]) in text
    assert "| Sparsity (S) | 8.0 | 6.7 | 6.4 | - |" in text  # the paper's table 3
    with (out / "compare.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(result["rows"])
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "compare.json").read_text())["rows"] == result["rows"]


def test_comparing_again_recognises_nothing_anew(
    compared: tuple[Path, list[Path], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runs, result = compared

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("recognised again")

    monkeypatch.setattr("omnisparse.comparison.measure.recognise", never)
    again = invoke("compare", *runs, "--sizes", "100%,60%", "--json")
    assert json.loads(again.stdout)["rows"] == result["rows"]
    Path("corpus").mkdir()
    Path("corpus/test.jsonl").write_text("")
    line = invoke("compare", *runs, "--manifest", "corpus/test.jsonl", code=1).stderr
    assert "test.jsonl" in line


def test_audio_that_was_made_anew_is_recognised_again(
    config: Path, speech: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(config, "method=supernet")
    manifest = Path("own/test.jsonl")
    manifest.parent.mkdir()
    (line, *_) = map(json.loads, (speech / "test.jsonl").read_text().splitlines())
    shutil.copy(speech / line["audio_filepath"], "own/one.wav")
    manifest.write_text(json.dumps({**line, "audio_filepath": "one.wav"}) + "\n")
    recognised = []
    monkeypatch.setattr(
        "omnisparse.comparison.measure.recognise",
        lambda *arguments, **options: recognised.append(1) or recognise(*arguments, **options),
    )
    for expected in (1, 1, 2):
        if expected == 2:
            audio = bytearray(Path("own/one.wav").read_bytes())
            audio[-2] ^= 1  # the last sample
            Path("own/one.wav").write_bytes(audio)
        invoke("compare", run, "--sizes", "60%", "--manifest", manifest, "--wandb", "off")
        assert len(recognised) == expected


def test_configurations_are_rows_and_their_seeds_are_averaged(config: Path) -> None:
    arms = ["method.num_random_subnets=1", "method.block=8x1"]
    runs = [
        train(config, "method=supernet", f"name=arm-{number}", f"seed={seed}", arm)
        for number, arm in enumerate(arms)
        for seed in (0, 1)
    ]
    arguments = ["compare", *runs, runs[0].resolve(), "--sizes", "100%,60%", "--json"]
    result = invoke(*arguments, "--by", "configuration", "--wandb", "off")
    found = json.loads(result.stdout)
    assert [(row["row"], row["label"], row["size"], row["seeds"]) for row in found["rows"]] == [
        (row, row, size, [0, 1])
        for row in ("reference", "method.block=8x1")
        for size in ("100%", "60%")
    ]
    first, _, second, small = found["rows"]
    assert first["difference"] is None
    assert second["difference"] == pytest.approx(second["wer"] - first["wer"])
    assert second["relative"] == pytest.approx(100 * second["difference"] / first["wer"])
    assert [(mean["row"], mean["sizes"]) for mean in found["means"]] == [
        ("method.block=8x1", ["100%", "60%"])
    ]
    assert found["means"][0]["relative"] == pytest.approx(
        (second["relative"] + small["relative"]) / 2
    )
    costs = {cost["row"]: cost["trainings"] for cost in found["costs"]}
    assert costs == {"reference": 2, "method.block=8x1": 2}
    text = Path("comparison/compare.md").read_text()
    assert "| configuration | 100% | 60% | trainings | utterance passes | device s |" in text
    note = f"reference: {runs[0].name}, with method.block=1x1"
    assert note in text
    assert note in result.stderr
    assert Path("comparison/compare.png").read_bytes().startswith(b"\x89PNG")
    # Turned round, and as methods: nothing is recognised again, and the tables follow.
    again = json.loads(
        invoke("compare", *runs[::-1], *arguments[-3:], "--by", "configuration").stdout
    )
    assert [row["row"] for row in again["rows"]] == ["reference"] * 2 + ["method.block=1x1"] * 2
    assert again["rows"][0]["wer"] == second["wer"]
    (whole, *_) = json.loads(invoke("compare", *runs[:2], *arguments[-3:]).stdout)["rows"]
    assert (whole["row"], whole["label"], whole["seeds"]) == ("supernet", "Supernet", [0, 1])
    # As methods, the arms would be seeds of one row.
    (line,) = invoke(*arguments, code=1).stderr.splitlines()
    first, second = runs[0].resolve(), runs[2].resolve()
    assert f"{first} and {second} are both supernet at 100% with seed 0" in line
    assert line.endswith("leave one out, or compare --by configuration")
    refused = invoke(*arguments, "--by", "configuration", "--reference", "pang2018", code=2)
    assert "--reference needs --by method" in refused.stderr


def test_other_weights_of_a_training_are_no_other_seed(config: Path) -> None:
    run = train(config, "method=base", "training.ema=0.5")
    nets = [run, run / "weights" / "ema"]
    options = ["--wandb", "off", "--json"]
    found = json.loads(invoke("compare", *nets, "--by", "configuration", *options).stdout)
    rows = [(row["label"], row["seeds"]) for row in found["rows"]]
    assert rows == [("reference", [0]), ("weights=ema", [0])]
    (line,) = invoke("compare", *nets, *options, code=1).stderr.splitlines()
    assert "of one training, so they are not two seeds" in line
    copy = Path(shutil.copytree(run, "copy"))
    line = invoke("compare", run, copy, "--by", "configuration", *options, code=1).stderr
    assert line.strip().endswith("so they are not two seeds: leave one out")


def test_bad_comparisons_are_one_line(config: Path) -> None:
    base = train(config, "method=base")
    assert "is not a directory" in invoke("compare", config, code=1).stderr
    line = invoke("compare", base, "--sizes", "30%", code=1).stderr.strip()
    assert "fit none of the sizes 30%" in line
    assert invoke("compare", base, "--sizes", "x%", code=2).stderr.count("\n") == 1
    supernet = train(config, "training.max_steps=0", "method=supernet")
    for sizes in ("50%,50%", "50%,50.0%"):
        line = invoke("compare", base, supernet, "--sizes", f"100%,{sizes}", code=1).stderr
        assert f"sizes 100%,{sizes}: two of them are the same size" in line
    (line,) = invoke("compare", supernet, "--sizes", "1%,110%", code=1).stderr.splitlines()
    for size in ("1%", "110%"):
        assert f"{supernet.resolve()}: size '{size}' is out of range for this model; legal" in line
    artifact = extract(base, size="100%", out=Path("artifact"))["path"]
    line = invoke("compare", base, artifact, "--by", "configuration", code=1).stderr
    assert "artifact: not a run directory" in line
    assert not Path("comparison").exists()
