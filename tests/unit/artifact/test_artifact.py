"""Artifacts: written as planned, read back exactly, never half there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from omnisparse import atomic
from omnisparse.artifact import (
    inspect_artifact,
    is_artifact,
    planned_bytes,
    read_artifact,
    write_artifact,
)
from omnisparse.artifact.packing import count_kept
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.sparsity.budget import num_nonzero
from omnisparse.sparsity.space import SubnetSpec

FILES = ("config.json", "model.safetensors", "tokenizer.model", "tokens.txt")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("format", ["bitmask", "dense"])
@pytest.mark.parametrize("block", [(1, 1), (8, 1), (16, 1)])
def test_round_trip_plan_and_recount_agree(tmp_path, net_with, precision, format, block):
    net = net_with(block=block)
    options = {"precision": precision, "format": format, "block": block}
    info = net.write(tmp_path / "a", **options)
    kept = {fqn: count_kept(net.state[fqn], block) for fqn in net.contents["prunable"]}
    meta = {name: tensor.to("meta") for name, tensor in net.state.items()}
    assert info.bytes == planned_bytes(meta, kept, **net.contents, **options)
    assert info.bytes == sum((tmp_path / "a" / name).stat().st_size for name in FILES)

    artifact = read_artifact(tmp_path / "a")
    assert list(artifact.state) == list(net.state)
    for name, tensor in net.state.items():
        restored = artifact.state[name]
        assert restored.dtype == tensor.dtype
        assert torch.equal(restored != 0, tensor != 0)
        limit = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 127}[precision]
        assert (restored - tensor).abs().max() <= limit * tensor.abs().max()
    assert artifact.tokenizer == net.contents["tokenizer"]
    assert artifact.tokens_txt == net.contents["tokens_txt"]
    assert artifact.features == net.contents["features"]
    assert artifact.model == net.contents["model"]

    report = inspect_artifact(tmp_path / "a")
    assert report["problems"] == []
    parameters = {name: t for name, t in net.state.items() if name != "steps"}
    assert report["nonzero"] == info.nonzero == num_nonzero(parameters, net.contents["prunable"])
    assert report["parameters"] == info.parameters == net.contents["dense_parameters"]
    assert report["sparsity"] == info.sparsity
    assert report["bytes"] == info.bytes
    packings = {layer["packing"] for layer in report["layers"]}
    expected = "dense" if format == "dense" else "bitmask" if block == (1, 1) else "block"
    assert packings == {"dense", expected}


def test_an_independent_reader_counts_the_same(tmp_path, net):
    info = net.write(tmp_path / "a")
    count = 0
    fields = load_file(tmp_path / "a" / "model.safetensors")
    for key, tensor in fields.items():
        suffix = key.rsplit(".", 1)[-1]
        if suffix == "compressed":
            count += tensor.numel()
            mask = fields[key.removesuffix("compressed") + "bitmask"]
            assert sum(bin(byte).count("1") for byte in mask.flatten().tolist()) == tensor.numel()
        elif suffix not in ("shape", "bitmask", "row_offsets", "steps"):
            count += tensor.numel()
    assert count == info.nonzero
    with safetensors.safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(fields)


def test_a_dense_artifact_loads_anywhere(tmp_path, net):
    net.write(tmp_path / "a", format="dense")
    fields = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(fields[name], tensor) for name, tensor in net.state.items())
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert "quantization_config" not in config


def test_spec_and_counts_are_recorded(tmp_path, net):
    spec = SubnetSpec({"joiner.weight": 0.1 + 0.2})
    net.write(tmp_path / "a", spec=spec, wer={"test": 7.25})
    config = read_artifact(tmp_path / "a").config
    assert SubnetSpec.from_json(json.dumps(config["subnet"])) == spec
    assert config["wer"] == {"test": 7.25}
    assert config["fqns"] == list(net.state)
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "value: 7.25" in card


class Lazy(Mapping[str, Tensor]):
    """Makes every tensor on demand and counts how many are alive."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state
        self.reads: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.reads.append(name)
        return self._state[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._state)

    def __len__(self) -> int:
        return len(self._state)


def test_known_counts_spare_a_pass(tmp_path, net):
    kept = {fqn: int(net.state[fqn].count_nonzero()) for fqn in net.contents["prunable"]}
    lazy = Lazy(net.state)
    known = write_artifact(tmp_path / "a", state=lazy, num_kept=kept, **net.contents)
    assert known.nonzero == net.write(tmp_path / "b").nonzero
    assert (tmp_path / "a" / "config.json").read_bytes() == (
        tmp_path / "b" / "config.json"
    ).read_bytes()
    assert len(lazy.reads) == 2 * len(net.state)  # planned, then packed: never counted


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("options", [{}, {"format": "dense"}, {"block": (8, 1)}])
def test_a_wrong_known_count_is_corrected(tmp_path, net_with, wrong, options):
    net = net_with(block=options.get("block", (1, 1)))
    kept = {fqn: int(net.state[fqn].count_nonzero()) for fqn in net.contents["prunable"]}
    kept["joiner.weight"] += wrong
    info = net.write(tmp_path / "a", num_kept=kept, **options)
    assert info == net.write(tmp_path / "a", **options)
    assert inspect_artifact(tmp_path / "a")["problems"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "fp32, fp16, bf16, int8"),
        ({"format": "csr"}, "bitmask, dense"),
        ({"block": (32, 1)}, "block"),
        ({"dense_parameters": 5}, "dense_parameters is 5"),
        ({"prunable": ["nowhere"]}, "nowhere"),
        ({"wer": {"test": float("nan")}}, "JSON"),
    ],
)
def test_illegal_arguments_are_named(tmp_path, net, changes, message):
    with pytest.raises(ValueError, match=message):
        net.write(tmp_path / "a", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_named(tmp_path, net):
    net.state["joiner.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"joiner\.weight: a weight is not finite"):
        net.write(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_names_that_collide_once_packed_are_refused(tmp_path, net):
    net.state["joiner.shape"] = torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="collide"):
        net.write(tmp_path / "a", buffers=["steps", "joiner.shape"])


def test_an_artifact_is_replaced_and_nothing_else(tmp_path, net, net_with):
    net.write(tmp_path / "a")
    other = net_with(seed=5)
    other.write(tmp_path / "a")
    restored = read_artifact(tmp_path / "a").state
    assert torch.equal(restored["joiner.weight"], other.state["joiner.weight"])
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(OmnisparseError, match="not an artifact"):
        net.write(tmp_path / "precious")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OmnisparseError, match="not an artifact"):
        net.write(tmp_path / "file")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    net.write(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty", "file", "precious"]


def test_replacing_works_without_exchange(tmp_path, net, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    net.write(tmp_path / "a")
    net.write(tmp_path / "a", precision="fp16")
    assert read_artifact(tmp_path / "a").config["precision"] == "fp16"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_artifact(tmp_path, net, monkeypatch):
    net.write(tmp_path / "a")
    before = {name: (tmp_path / "a" / name).read_bytes() for name in FILES}

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OmnisparseError, match="No space left on device"):
        net.write(tmp_path / "a", precision="fp16")
    assert before == {name: (tmp_path / "a" / name).read_bytes() for name in FILES}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_writer_leaves_one_whole_artifact(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import torch
        from omnisparse.artifact import write_artifact
        state = {"a.weight": torch.ones(64, 64)}
        print("ready", flush=True)
        while True:
            write_artifact(
                Path(sys.argv[1]), state=state, model={}, tokenizer=b"", tokens_txt="",
                features={}, dense_parameters=4096, prunable=["a.weight"], source={},
            )
        """
    )
    out = tmp_path / "a"
    command = [sys.executable, "-c", script, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not out.exists():
            assert process.poll() is None
        for _ in range(20):
            read_artifact_while_replaced(out)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_artifact(out).state["a.weight"].sum() == 4096


def read_artifact_while_replaced(out: Path) -> None:
    """The directory is always there and looks whole (its files may belong to two versions)."""
    assert out.is_dir()
    assert (out / "model.safetensors").stat().st_size > 4096


def rewrite_config(path: Path, change: Callable[[dict], None]) -> None:
    """Change config.json and give it a checksum that fits, as a forger would."""
    import hashlib

    config = json.loads((path / "config.json").read_text())
    change(config["omnisparse"])
    config["omnisparse"]["config_sha256"] = "0" * 64
    text = json.dumps(config, indent=1) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    (path / "config.json").write_text(text.replace("0" * 64, digest))


def test_an_unknown_version_is_refused_by_name(tmp_path, net):
    net.write(tmp_path / "a")
    rewrite_config(tmp_path / "a", lambda ours: ours.update(format_version=2))
    with pytest.raises(FormatError, match="format version '2' is not known"):
        read_artifact(tmp_path / "a")
    with pytest.raises(FormatError, match="format version '2' is not known"):
        inspect_artifact(tmp_path / "a")


def test_inspection_reports_lies(tmp_path, net):
    net.write(tmp_path / "a")
    rewrite_config(tmp_path / "a", lambda ours: ours.update(num_nonzero=1, dense_parameters=2))
    problems = inspect_artifact(tmp_path / "a")["problems"]
    assert len(problems) == 2
    assert all("the files hold" in problem for problem in problems)
    (tmp_path / "a" / "tokens.txt").write_text("other")
    assert "tokens.txt: checksum does not match" in inspect_artifact(tmp_path / "a")["problems"]


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_found(tmp_path, net, name):
    net.write(tmp_path / "a")
    path = tmp_path / "a" / name
    data = path.read_bytes()
    for at in [*range(0, len(data), max(1, len(data) // 40)), len(data) - 1]:
        flipped = bytearray(data)
        flipped[at] ^= 0x20
        path.write_bytes(flipped)
        with pytest.raises(FormatError) as error:
            read_artifact(tmp_path / "a")
        assert "\n" not in str(error.value)
    path.write_bytes(data)
    read_artifact(tmp_path / "a")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, net, name):
    net.write(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    with pytest.raises(FormatError, match=name):
        read_artifact(tmp_path / "a")


def test_is_artifact(tmp_path, net):
    net.write(tmp_path / "a")
    assert is_artifact(tmp_path / "a")
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "a" / "config.json")
