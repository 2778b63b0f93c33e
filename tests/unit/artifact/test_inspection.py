"""Inspection believes the tensors: whatever config.json says otherwise is reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_artifact import rewrite_config

from omnisparse.artifact import inspect_artifact
from omnisparse.artifact.tensorfile import TensorFile
from omnisparse.errors import FormatError

PRUNABLE = ("encoder.lstm.weight_ih_l0", "encoder.lstm.weight_hh_l0", "joiner.weight")


def lie(path: Path, **claims: Any) -> list[str]:
    """Change what config.json says (under a true checksum), and inspect."""
    rewrite_config(path, lambda ours: ours.update(claims))
    report = inspect_artifact(path)
    assert report["problems"] == report["mismatches"]
    return list(report["mismatches"])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("block", [(1, 1), (8, 1), (4, 4)])
def test_the_truth_is_recounted_whatever_is_claimed(
    tmp_path: Path, net_with: Callable[..., Any], precision: str, block: tuple[int, int]
) -> None:
    info = net_with(block=block).write(tmp_path / "a", precision=precision, block=block)
    honest = inspect_artifact(tmp_path / "a")
    assert honest["mismatches"] == honest["problems"] == []
    other = "fp32" if precision != "fp32" else "int8"
    lines = lie(tmp_path / "a", precision=other, block=[16, 1], format="dense", num_nonzero=3)
    text = "; ".join(lines)
    assert f"precision is {other}" in text
    assert f"is stored as {precision}" in text
    assert f"num_nonzero is 3, the files hold {info.nonzero}" in text
    assert "format is dense, the files hold bitmask" in text
    assert "block is 16x1" in text
    report = inspect_artifact(tmp_path / "a")
    for key in ("precision", "format", "block", "nonzero", "nonzero_with_mask", "layers"):
        assert report[key] == honest[key], key
    assert honest["precision"] == precision
    assert honest["block"] == list(block)


@pytest.mark.parametrize("claims", [{"block": [8, 1]}, {"block": [4, 4]}])
def test_scattered_zeros_are_no_blocks(tmp_path: Path, net: Any, claims: dict[str, Any]) -> None:
    net.write(tmp_path / "a")
    (line,) = lie(tmp_path / "a", **claims)
    assert "are scattered" in line


def test_single_weights_beside_blocks(tmp_path: Path, net_with: Callable[..., Any]) -> None:
    net_with(block=(8, 1)).write(tmp_path / "a", block=(8, 1))
    (line,) = lie(tmp_path / "a", single=["joiner.weight"])
    assert line == "config.json: single names joiner.weight, which is stored in blocks"
    for claim in ("joiner.weight", ["joiner"], [["joiner.weight"]]):
        with pytest.raises(FormatError, match=r"config\.json: single "):
            lie(tmp_path / "a", single=claim)


def test_a_dense_file_is_no_bitmask(tmp_path: Path, net: Any) -> None:
    net.write(tmp_path / "a", format="dense")
    assert inspect_artifact(tmp_path / "a")["format"] == "dense"
    (line,) = lie(tmp_path / "a", format="bitmask")
    assert "is stored dense" in line


@pytest.mark.parametrize("claims", [{"format": "csr"}, {"precision": None}, {"block": "8x1"}])
def test_claims_that_mean_nothing(tmp_path: Path, net: Any, claims: dict[str, Any]) -> None:
    net.write(tmp_path / "a")
    lines = lie(tmp_path / "a", **claims)
    # A block that is none claims nothing; the others contradict what is found.
    assert bool(lines) == ("block" not in claims)


def test_mask_bits_are_those_in_the_file(tmp_path: Path, net: Any) -> None:
    """A matrix that keeps nearly everything is stored dense: it has no mask."""
    full = torch.randn(48, 37)
    full[0, 0] = 0
    net.state[PRUNABLE[0]] = full
    info = net.write(tmp_path / "a")
    report = inspect_artifact(tmp_path / "a")
    packing = {layer["name"]: layer["packing"] for layer in report["layers"]}
    assert packing[PRUNABLE[0]] == "dense"
    fields = TensorFile(tmp_path / "a" / "model.safetensors").fields
    assert sum(key.endswith(".bitmask") for key in fields) == 2
    masked = sum(net.state[name].numel() for name in PRUNABLE[1:])
    assert report["nonzero_with_mask"] == info.nonzero + masked / 32
    assert json.dumps(info.to_dict()["layers"]) == json.dumps(report["layers"])
    assert info.report.nonzero_with_mask == report["nonzero_with_mask"]


def test_a_net_that_is_all_kept_has_no_mask(tmp_path: Path, net_with: Callable[..., Any]) -> None:
    net_with(sparsity=0.0).write(tmp_path / "a")
    report = inspect_artifact(tmp_path / "a")
    assert report["format"] == "dense"
    assert report["nonzero_with_mask"] == report["nonzero"] == report["parameters"]
    assert report["mismatches"] == []
