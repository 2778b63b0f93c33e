"""Sweep files: their points, their command lines against W&B's agent, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from omnisparse.cli.baseline import parse_request
from omnisparse.cli.train import join_flags
from omnisparse.config import ConfigError, load_config
from omnisparse.sweeps.file import SweepError, load_sweep

ROOT = Path(__file__).parents[3]


def write(folder: Path, **changes: Any) -> Path:
    document = {
        "program": "train.py",
        "method": "grid",
        "parameters": {"seed": {"value": 3}, "size": {"values": ["50%", "25%"]}},
        **changes,
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))
    return path


def test_a_grid_is_the_product_the_last_parameter_fastest(tmp_path: Path) -> None:
    parameters = {"a": {"values": [1, 2]}, "b": {"value": True}, "c": {"values": ["x", "y"]}}
    points = load_sweep(write(tmp_path, parameters=parameters)).points()
    assert [tuple(point.values()) for point in points] == [
        (1, True, "x"), (1, True, "y"), (2, True, "x"), (2, True, "y"),
    ]  # fmt: skip
    assert len(load_sweep(write(tmp_path, parameters=parameters, run_cap=3)).points()) == 3


def test_random_points_are_drawn_within_their_ranges_and_again_the_same(tmp_path: Path) -> None:
    parameters = {
        "kind": {"values": ["a", "b"], "probabilities": [1, 0]},
        "layers": {"min": 2, "max": 4},
        "rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "dropout": {"min": 0.0, "max": 0.5},
        "step": {"distribution": "q_uniform", "min": 0, "max": 100, "q": 10},
    }
    sweep = load_sweep(write(tmp_path, method="random", parameters=parameters))
    points = sweep.points(count=50)
    assert points == sweep.points(count=50)
    assert points[:20] == sweep.points(count=20)  # a longer sweep goes on where a shorter ended
    assert points != sweep.points(count=50, seed=1)
    assert {point["kind"] for point in points} == {"a"}
    assert {point["layers"] for point in points} == {2, 3, 4}
    assert all(1e-4 <= point["rate"] <= 1e-2 for point in points)
    assert sum(point["rate"] < 1e-3 for point in points) in range(13, 38)  # half, in logarithms
    assert all(0 <= point["dropout"] <= 0.5 for point in points)
    assert {point["step"] % 10 for point in points} == {0}
    with pytest.raises(SweepError, match="needs run_cap or --count"):
        sweep.points()


def test_null_and_numbers_are_what_yaml_1_2_says(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "program: train.py\nmethod: random\nrun_cap: 1\nparameters:\n"
        "  init: {values: [null]}\n  name: {value: null}\n  rate: {min: 1e-5, max: 1e-2}\n"
        "  decay: {distribution: log_uniform_values, min: 1E-6, max: .5}\n"
    )
    sweep = load_sweep(path)
    (point,) = sweep.points()
    assert (point["init"], point["name"]) == (None, None)
    assert 1e-5 <= point["rate"] <= 1e-2
    line = sweep.command_line({"init": None, "rate": 1e-05}, {})
    assert line[-2:] == ["--init=None", "--rate=1e-05"]  # as W&B's agent writes them
    config = load_config(None, ["init=x", *join_flags(line[-2:-1])])
    assert config.init is None
    assert load_config(None, join_flags(["--init", "None"])).init is None
    with pytest.raises(ConfigError, match=r"name: .*given: None"):
        load_config(None, join_flags(["--name=None"]))
    request = parse_request(["--method=distilled", "--teacher=None", "--init", "None"])
    assert (request.teacher, request.init) == (None, None)


def test_reading_a_sweep_needs_no_torch() -> None:
    """Who waits for runs need not hold the memory of one."""
    code = (
        "import sys, omnisparse.cli.sweep, omnisparse.sweeps.local; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


COMMANDS = [
    None,
    ["${env}", "${interpreter}", "${program}", "--config", "x.yaml", "${args_no_hyphens}"],
    ["${interpreter}", "${program}", "${args_no_equals}"],
    ["${program}", "${args_no_boolean_flags}", "${envvar:PLACE}/x", "${args_json}"],
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines_are_those_of_wandbs_agent(
    tmp_path: Path, command: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the functions that `wandb agent` itself fills its macros with."""
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    monkeypatch.setenv("PLACE", "there")
    point = {"method.levels": [1, 2], "size": "25%", "fast": True, "slow": False, "rate": 0.1}
    sweep = load_sweep(write(tmp_path, command=command))
    filled = utils.create_sweep_command(None if command is None else list(command))
    macros = utils.create_sweep_command_args({"args": {k: {"value": v} for k, v in point.items()}})
    line = sweep.command_line(point, {"PLACE": "there"})
    macros |= {"interpreter": [line[line.index("train.py") - 1]], "program": ["train.py"]}
    macros |= {"env": ["/usr/bin/env"]}
    expected: list[str] = []
    for part in filled:
        expected += macros[part[2:-1]] if part.startswith("${") else [part]
    assert line == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "bayes"}, "metric is None; a name and a goal"),
        ({"method": "bayes", "metric": {"name": "a", "goal": "up"}}, "minimize or maximize"),
        (
            {
                "method": "bayes",
                "metric": {"name": "a"},
                "parameters": {"a": {"distribution": "normal"}},
            },
            r"parameters\.a: normal in a bayes sweep; legal: constant",
        ),
        ({"method": None}, "method is None"),
        ({"program": None}, "program is missing"),
        ({"parameters": None}, "parameters is missing or empty"),
        ({"parametres": {}}, "unknown key parametres; legal keys: program"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs the W&B server"),
        ({"run_cap": 0}, "run_cap is 0"),
        ({"command": "python"}, "command must be a list"),
        ({"command": ["${programm}"]}, r"\$\{programm\} is unknown"),
        ({"parameters": {"a": 3}}, r"parameters\.a: values or value is expected"),
        ({"parameters": {"a": {"values": []}}}, r"parameters\.a\.values is \[\]"),
        ({"parameters": {"a": {"min": 0}}}, "give values, value, or min and max"),
        ({"parameters": {"a": {"min": 0, "max": 1}}}, "a grid needs values"),
        ({"parameters": {"a": {"parameters": {}}}}, "write dotted names"),
        ({"parameters": {"a": {"distribution": "beta"}}}, "distribution is 'beta'; legal"),
        (
            {"method": "random", "parameters": {"a": {"min": 2, "max": 1}}},
            "two numbers in order",
        ),
        (
            {"method": "random", "parameters": {"a": {"values": [1], "probabilities": [1, 2]}}},
            "a number for each",
        ),
        ({"parameters": {"a": {"values": [1], "probabilities": [0]}}}, "one must be above 0"),
        ({"parameters": {"a": {"value": b"bytes"}}}, "a value that JSON cannot hold"),
        *(
            ({"method": "random", "parameters": {"a": {"distribution": kind, **rule}}}, message)
            for kind, rule, message in (
                ("q_uniform", {"min": 0, "max": 1, "q": 0}, "q is 0; it must be above 0"),
                ("normal", {"mu": "a"}, "mu, sigma and q must be numbers"),
                ("int_uniform", {"min": 0.5, "max": 2}, "whole numbers for int_uniform"),
                ("log_uniform", {"min": 0, "max": 1000}, "max is 1000; it must be below 700"),
            )
        ),
    ],
)
def test_a_malformed_sweep_is_one_clear_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(SweepError, match=message) as caught:
        load_sweep(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1", "- a", "", "\x00"])
def test_a_file_that_is_no_sweep(tmp_path: Path, content: str) -> None:
    path = tmp_path / "no.yaml"
    path.write_text(content)
    with pytest.raises(SweepError, match=r"no\.yaml: not (a sweep|YAML)"):
        load_sweep(path)
    with pytest.raises(SweepError, match="No such file"):
        load_sweep(tmp_path / "absent.yaml")


def test_every_shipped_sweep_is_one() -> None:
    for path in (ROOT / "recipes/sweeps").glob("*.yaml"):
        sweep = load_sweep(path)
        assert (ROOT / sweep.program).is_file()
        assert sweep.points()


@pytest.mark.parametrize("name", ["compare", "compare_librispeech", "headline"])
def test_a_comparison_asks_for_what_exists(name: str) -> None:
    from omnisparse.cli.baseline import KEYS, parse_request, plan_baseline
    from omnisparse.comparison.rows import ROWS

    sweep = load_sweep(ROOT / "recipes/sweeps" / f"{name}.yaml")
    assert set(sweep.parameters) <= {*KEYS, "seed"}
    assert set(sweep.parameters["method"]["values"]) <= set(ROWS)
    for point in (point for point in sweep.points() if not point.get("seed")):
        line = sweep.command_line(point, {})
        config = ROOT / line[line.index("--config") + 1]
        overrides = line[-len(point) :]
        assert parse_request(overrides).size in (point["size"], None)
        plan_baseline(config, overrides)  # the row can be made at this size


def test_the_ablation_changes_one_choice_at_a_time_at_one_budget() -> None:
    from omnisparse.cli.baseline import configure, parse_request
    from omnisparse.config import load_config
    from omnisparse.methods import SandwichConfig

    sweep = load_sweep(ROOT / "recipes/sweeps/ablation.yaml")
    arms, passes = [], []
    for point in sweep.points(count=len(sweep.parameters["method"]["values"])):
        line = sweep.command_line(point, {})
        place = line.index("--config") + 1
        request = parse_request(line[place + 1 :])
        config = configure(load_config(ROOT / line[place], request.common), request)
        assert isinstance(config.method, SandwichConfig)
        arms.append(config.method)
        passes.append(config.training.epochs * config.method.mean_passes)
    base = arms[0]
    assert (base.warmup_fraction, base.core_fraction, base.min_size) == (0.0, 0.0, "12.5%")
    together = [
        {"label_weight", "distillation_weight"},
        {"full_batch", "num_random_subnets"},
        {"member_share", "subnet_weight"},
        {"member_share", "subnet_weight", "num_random_subnets"},
    ]
    for arm in arms[1:]:
        changed = {f for f in base.__dataclass_fields__ if getattr(arm, f) != getattr(base, f)}
        assert len(changed) == 1 or changed in together
    assert passes == pytest.approx([0.3] * len(arms))
