"""Extraction from a run needs neither torch nor the memory it takes, and gives the same files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from omnisparse.runs import directory as runs
from omnisparse.sparsity.allocation import Allocator
from omnisparse.sparsity.masks import apply_mask, mask_from_count
from omnisparse.training.checkpoint import save_checkpoint

MATRICES = {"a.weight_ih_l0": (64, 40), "a.weight_hh_l0": (64, 32), "b.weight": (48, 24)}

SCRIPT = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    from click.testing import CliRunner
    from omnisparse.cli.main import verbs
    run, out = sys.argv[1:]
    for index, options in enumerate(json.loads(sys.stdin.read())):
        place = str(Path(out, str(index)))
        whole = ["extract", *options, "--out", place, "--json"]
        result = CliRunner().invoke(verbs, whole if "--from" in options else [*whole, "--run", run])
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(verbs, ["inspect", place])
        assert result.exit_code == 0, result.output
    assert CliRunner().invoke(verbs, ["inspect", run]).exit_code == 0
    assert "torch" not in sys.modules, "torch was loaded"
    """
)


def make_state(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in MATRICES.items()}
    state["a.bias_ih_l0"] = torch.randn(64, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def make_run(run: Path, state: dict[str, Tensor]) -> Path:
    run.mkdir()
    description = runs.RunDescription(
        model={"kind": "las"},
        features={},
        prunable=[name for name in state if ".weight" in name],
        parameters=list(state),
        method="dense",
    )
    runs.write_description(run, description)
    tensors = {"model": {**state, "steps": torch.tensor(3)}}
    save_checkpoint(run / "checkpoints", step=3, tensors=tensors, state={})
    (run / "tokenizer.model").write_bytes(b"tokenizer")
    (run / "tokens.txt").write_text("<blk> 0\n")
    return run


def extract(run: Path, out: Path, requests: list[list[str]]) -> None:
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run), str(out)],
        input=json.dumps(requests),
        text=True,
        check=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_command_loads_no_torch_and_keeps_what_torch_ranks_first(tmp_path, dtype):
    state = make_state(dtype)
    run = make_run(tmp_path / "run", state)
    (tmp_path / "spec.json").write_text(json.dumps({"sparsity": {"b.weight": 0.5}}))
    size = ["--size", "40%"]
    nested = str(tmp_path / "9")
    requests = [
        size,
        [*size, "--scope", "global"],
        [*size, "--scope", "lamp"],
        [*size, "--block", "8x1", "--scope", "global"],
        [*size, "--format", "dense"],
        [*size, "--precision", "int8"],
        ["--sparsity", "0.75", "--precision", "bf16"],
        ["--size", "12kB", "--precision", "fp16"],
        ["--spec", str(tmp_path / "spec.json")],
        ["--nested"],
        ["--from", nested, *size],
        ["--from", nested, "--size", "12kB"],
        [*size, "--block", "4x4", "--norm", "l2"],
        ["--size", "12kB", "--scope", "lamp", "--floor", "0.1"],
    ]
    extract(run, tmp_path, requests)
    weights = {name: state[name].float() for name in MATRICES}
    total = round(0.4 * sum(tensor.numel() for tensor in state.values())) - 64
    for index, scope in enumerate(("layer", "global", "lamp")):
        counts = Allocator({name: state[name] for name in MATRICES}, scope).counts(total)
        file = load_file(tmp_path / str(index) / "model.safetensors")
        for name, weight in weights.items():
            mask = mask_from_count(state[name], counts[name])
            expected = weight[mask]
            assert torch.equal(file[f"{name.removesuffix('.weight')}.compressed"], expected)
    dense = load_file(tmp_path / "4" / "model.safetensors")
    counts = Allocator({name: state[name] for name in MATRICES}).counts(total)
    for name, weight in weights.items():
        expected = apply_mask(weight, mask_from_count(state[name], counts[name]))
        assert torch.equal(dense[name], expected)
    assert (tmp_path / "7" / "model.safetensors").stat().st_size <= 12_000
    digests = [
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("0", "10")
    ]
    assert digests[0] == digests[1]


def test_a_kept_zero_is_in_no_report(tmp_path):
    state = make_state(torch.float32)
    state["a.weight_hh_l0"][:, :20] = 0
    run = make_run(tmp_path / "run", state)
    from omnisparse.pipeline.extract import extract as extract_run

    result = extract_run(run, size="100%", out=tmp_path / "a")
    zeros = 64 * 20
    parameters = sum(tensor.numel() for tensor in state.values())
    assert result["parameters"] == parameters
    assert result["nonzero"] == parameters - zeros
    # One matrix is thinned, so one mask is counted: a bit, of 32, for each of its weights.
    assert result["nonzero_with_mask"] == result["nonzero"] + 64 * 32 / 32
    assert result["compression_rate"] == parameters / result["nonzero_with_mask"]
    found = runs.inspect(tmp_path / "a")
    assert found["problems"] == []
    for key in ("nonzero", "sparsity", "nonzero_with_mask", "compression_rate", "largest_layer"):
        assert found[key] == result[key]
    # What was asked for is on record too, and gives the same net again.
    config = json.loads((tmp_path / "a" / "config.json").read_text())["omnisparse"]
    assert config["num_nonzero"] == result["nonzero"]
    (tmp_path / "spec.json").write_text(json.dumps(config["subnet"]))
    extract_run(run, spec=tmp_path / "spec.json", out=tmp_path / "b")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


PEAK = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from omnisparse.pipeline import extract as runs_extract

    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])

    before = peak()
    runs_extract.extract(Path(sys.argv[1]), size="30%", out=Path(sys.argv[2]))
    print(peak() - before)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_that_of_few_matrices(tmp_path):
    generator = torch.Generator().manual_seed(0)
    shape = (512, 2048)
    state = {f"l{i}.weight_ih": torch.randn(shape, generator=generator) for i in range(24)}
    run = make_run(tmp_path / "run", state)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(run), str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    checkpoint_bytes = 4 * sum(tensor.numel() for tensor in state.values())
    assert int(found.stdout) < 0.5 * checkpoint_bytes
