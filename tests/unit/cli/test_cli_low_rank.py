from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import omnisparse
from omnisparse.models.factored import dense_state, joined, rank_unit
from omnisparse.sparsity.lowrank import truncated_svd

RunJson = Callable[..., dict[str, Any]]
TRAINED = Path(__file__).parents[2] / "fixtures" / "f1feb7c" / "run"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run with a tokenizer; its folder gets the decompositions."""
    return Path(shutil.copytree(TRAINED, tmp_path / "run"))


def test_a_factored_model_of_a_size(trained: Path, tmp_path: Path, run_json: RunJson) -> None:
    whole = run_json("inspect", trained)["parameters"]
    out = tmp_path / "small"
    result = run_json("extract", "--run", trained, "--size", "50%", "--low-rank", "--out", out)
    assert 0.45 * whole < result["parameters"] <= 0.5 * whole
    counted = run_json("inspect", out)
    for name in ("parameters", "nonzero", "bytes"):
        assert counted[name] == result[name]
    assert counted["bytes"] == sum(
        (out / name).stat().st_size
        for name in ("config.json", "model.safetensors", "tokenizer.model", "tokens.txt")
    )
    model = omnisparse.load_model(out).model
    dense = omnisparse.load_model(trained).model.state_dict()
    for name, weight in dense_state(model).items():
        expected = dense[name]
        if name in result["ranks"]:
            factors = truncated_svd(expected, result["ranks"][name])
            expected = factors.left @ factors.right
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["per_gate", "joint"])
def test_schemes_of_lstm_layers(
    scheme: str, trained: Path, tmp_path: Path, run_json: RunJson
) -> None:
    """By size and by a spec the same model, of fresh truncated decompositions."""
    whole = run_json("inspect", trained)["parameters"]
    result = run_json(
        "extract", "--run", trained, "--size", "50%", "--low-rank", "--scheme", scheme,
        "--out", tmp_path / "small",
    )  # fmt: skip
    assert 0.42 * whole < result["parameters"] <= 0.5 * whole
    counted = run_json("inspect", tmp_path / "small")
    assert (counted["parameters"], counted["bytes"]) == (result["parameters"], result["bytes"])
    spec = tmp_path / "ranks.json"
    spec.write_text(json.dumps({"ranks": result["ranks"], "scheme": scheme}))
    again = run_json("extract", "--run", trained, "--rank-spec", spec, "--out", tmp_path / "again")
    small, same = (omnisparse.load_model(tmp_path / name).model for name in ("small", "again"))
    assert all(torch.equal(v, same.state_dict()[name]) for name, v in small.state_dict().items())
    assert again["bytes"] == result["bytes"]
    dense = omnisparse.load_model(trained).model.state_dict()
    state = dense_state(small)
    shapes = {name: tuple(value.shape) for name, value in dense.items()}
    shared = 0
    for name, rank in result["ranks"].items():
        unit = rank_unit(name, shapes, scheme)  # type: ignore[arg-type]
        shared += unit.reader is not None
        parts = [joined(weights, name, unit).chunk(unit.gates) for weights in (dense, state)]
        for gate, found in zip(*parts, strict=True):
            factors = truncated_svd(gate, rank)
            expected = factors.left @ factors.right
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert shared == (2 if scheme == "joint" else 0)
    untouched = set(dense) - set(result["ranks"])
    if scheme == "per_gate":
        assert all(torch.equal(dense[name], state[name]) for name in untouched)


def test_a_rank_spec_names_the_matrices(trained: Path, tmp_path: Path, run_json: RunJson) -> None:
    spec = tmp_path / "ranks.json"
    spec.write_text(json.dumps({"ranks": {"attention.key.weight": 2}}))
    result = run_json(
        "extract", "--run", trained, "--rank-spec", spec, "--precision", "int8",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result["ranks"] == {"attention.key.weight": 2}
    weight = dense_state(omnisparse.load_model(tmp_path / "out").model)["attention.key.weight"]
    assert torch.linalg.matrix_rank(weight) == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"ranks": {"nothing.weight": 2}}, "there is no matrix 'nothing.weight'"),
        (
            {"ranks": {"attention.key.weight": 999}},
            "rank of attention.key.weight is 999; from 1 to",
        ),
        ({"sparsity": {}}, "`ranks` table"),
        ({"ranks": {"output.weight": 1}, "scheme": "x"}, "must be one of stacked, per_gate"),
        (
            {
                "ranks": {
                    f"encoder.layers.{i}.weight_{k}_l0": 1 for i, k in ((0, "hh"), (1, "ih"))
                },
                "scheme": "joint",
            },
            "shares its projection with encoder.layers.0.weight_hh_l0",
        ),
    ],
)
def test_wrong_specs_are_one_line(
    small_run: Path, tmp_path: Path, run: Callable[..., Any], spec: Any, message: str
) -> None:
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps(spec))
    out = tmp_path / "out"
    result = run("extract", "--run", small_run, "--rank-spec", file, "--out", out)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--low-rank"], "one size or one rank spec"),
        (["--low-rank", "--size", "50%", "--block", "8x1"], "--block does not go with --low-rank"),
        (["--low-rank", "--size", "50%", "--nested"], "--nested does not go with --low-rank"),
        (["--low-rank", "--size", "20MB"], "bytes cannot be reached by low rank; legal: "),
        (["--low-rank", "--size", "0.01%"], "legal"),
        (["--size", "50%", "--scheme", "joint"], "--scheme goes with --low-rank"),
    ],
)
def test_options_of_masks_are_refused(
    small_run: Path, run: Callable[..., Any], options: list[str], message: str
) -> None:
    result = run("extract", "--run", small_run, *options)
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_the_range_that_is_named_is_that_of_low_rank(
    trained: Path, tmp_path: Path, run: Callable[..., Any], run_json: RunJson
) -> None:
    for size in ("1%", "101%", "10"):
        refused = run("extract", "--run", trained, "--low-rank", "--size", size)
        assert refused.exit_code == 1
        found = re.search(r"legal: ([\d,]+) .* to ([\d,]+) parameters", refused.stderr)
        assert found, refused.stderr
    least, most = (int(number.replace(",", "")) for number in found.groups())
    for count in (least, most):
        request = ("--low-rank", "--size", count, "--out", tmp_path / str(count))
        assert run_json("extract", "--run", trained, *request)["parameters"] == count
    assert run("extract", "--run", trained, "--low-rank", "--size", least - 1).exit_code == 1
