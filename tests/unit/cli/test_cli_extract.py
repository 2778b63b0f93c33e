"""`extract` and `inspect` on a net without a training: sizes, blocks, floors, and bad requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnisparse.artifact import as_tensor, read_artifact
from omnisparse.artifact.packing import count_kept
from omnisparse.runs.directory import newest_weights, read_description
from omnisparse.sparsity.masks import apply_mask, mask_from_count
from omnisparse.training.checkpoint import save_checkpoint

Run = Callable[..., Any]
FILES = ("config.json", "model.safetensors", "tokenizer.model", "tokens.txt")
UNPRUNABLE, DENSE = 6920, 60_680
"""Of the small run; six matrices of it may be thinned."""


def written_bytes(path: Path) -> int:
    return sum((path / name).stat().st_size for name in FILES)


def one_line(result: Any, code: int = 1) -> str:
    """The one line of a command that failed."""
    assert result.exit_code == code, (result.exit_code, result.stderr)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return str(lines[0].removeprefix("omnisparse: error: "))


@pytest.mark.parametrize("size", ["0", "-1M", "6925", "60681", "16M", "1%", "110%"])
def test_sizes_out_of_range_name_the_legal_range(
    small_run: Path, tmp_path: Path, run: Run, size: str
) -> None:
    line = one_line(run("extract", "--run", small_run, "--size", size, "--out", tmp_path / "m"))
    assert f"size '{size}' is out of range" in line
    assert f"{UNPRUNABLE + 6} to {DENSE} non-zero parameters" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["16 apples", "", "half", "1e6", "0.25", "NaN"])
def test_texts_that_are_no_size_list_the_legal_forms(
    small_run: Path, tmp_path: Path, run: Run, size: str
) -> None:
    out = tmp_path / "m"
    line = one_line(run("extract", "--run", small_run, "--size", size, "--out", out), code=2)
    assert "16M or 500K" in line
    assert "20MB or 20MiB" in line
    assert "25%" in line
    assert f"{UNPRUNABLE + 6} to {DENSE}" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", ["1B", "1KB", "1GB"])
def test_bytes_out_of_range_name_the_legal_range(
    small_run: Path, tmp_path: Path, run: Run, run_json: Run, size: str
) -> None:
    line = one_line(run("extract", "--run", small_run, "--size", size, "--out", tmp_path / "m"))
    assert list(tmp_path.iterdir()) == []
    least, most = line.split("legal: ")[1].split(" to ")
    for bound, nonzero in ((least, UNPRUNABLE + 6), (most, DENSE)):
        made = run_json("extract", "--run", small_run, "--size", bound, "--out", tmp_path / "m")
        assert (f"{made['bytes']}B", made["nonzero"]) == (bound, nonzero)


@pytest.mark.parametrize("sparsity", ["1.2", "1", "-0.5"])
def test_sparsities_out_of_range_name_the_legal_range(
    small_run: Path, tmp_path: Path, run: Run, sparsity: str
) -> None:
    out = tmp_path / "m"
    line = one_line(run("extract", "--run", small_run, "--sparsity", sparsity, "--out", out))
    assert "legal: 0 to 0.999888" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sparsity", ["nan", "inf"])
def test_sparsities_that_are_no_number_are_bad_usage(
    small_run: Path, tmp_path: Path, run: Run, sparsity: str
) -> None:
    options = ("--run", small_run, "--sparsity", sparsity, "--out", tmp_path / "m")
    line = one_line(run("extract", *options), code=2)
    assert line == f"sparsity {sparsity} is not a number; legal: 0 <= sparsity < 1"
    assert list(tmp_path.iterdir()) == []


def test_a_spec_may_begin_with_a_byte_order_mark(
    run_json: Callable[..., Any], small_run: Path, tmp_path: Path
) -> None:
    names = [layer["name"] for layer in run_json("inspect", small_run)["layers"]]
    prunable = read_description(small_run).prunable
    spec = tmp_path / "spec.json"
    sparsity = dict.fromkeys([name for name in names if name in prunable], 0.5)
    spec.write_text("\ufeff" + json.dumps({"sparsity": sparsity}), encoding="utf-8")
    found = run_json("extract", "--run", small_run, "--spec", spec, "--out", tmp_path / "m")
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_a_spec_of_unknown_layers_names_the_legal_ones(
    small_run: Path, tmp_path: Path, run: Run
) -> None:
    spec = tmp_path / "spec.json"
    prunable = read_description(small_run).prunable
    for names, message in (
        (["encoder.layers.0.weight_hh_l1"], "did you mean encoder.layers.0.weight_hh_l0?"),
        (["output.weight"], f"legal names: {', '.join(prunable)}"),
    ):
        spec.write_text(json.dumps({"sparsity": dict.fromkeys(names, 0.5)}))
        out = tmp_path / "m"
        line = one_line(run("extract", "--run", small_run, "--spec", spec, "--out", out))
        assert f"spec names unknown layers: {names[0]}" in line
        assert message in line
        assert not out.exists()
    whole = dict.fromkeys(prunable, 0.5)
    for content, named in (
        (json.dumps({"sparsity": {prunable[0]: 1.0}}), prunable[0]),
        (json.dumps({"sparsity": {**whole, prunable[1]: -0.1}}), prunable[1]),
        ("[" * 100_000, "not JSON"),
    ):
        spec.write_text(content)
        line = one_line(run("extract", "--run", small_run, "--spec", spec, "--out", tmp_path / "m"))
        assert f"{spec}: " in line
        assert named in line
        assert "legal" in line
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "legal"),
    [
        (("--block", "2x2"), "'1x1', '8x1', '16x1', '4x4'"),
        (("--norm", "l3"), "'l1', 'l2'"),
        (("--scope", "net"), "'layer', 'global', 'lamp'"),
        (("--precision", "fp8"), "'fp32', 'fp16', 'bf16', 'int8'"),
        (("--format", "csr"), "'bitmask', 'dense'"),
    ],
)
def test_unknown_choices_list_the_known_ones(
    small_run: Path, run: Run, options: tuple[str, str], legal: str
) -> None:
    result = run("extract", "--run", small_run, "--size", "50%", *options)
    assert result.exit_code == 2
    assert legal in " ".join(result.stderr.split())


@pytest.mark.parametrize("floor", ["-0.1", "1.5", "nan"])
def test_a_floor_out_of_range_is_refused(
    small_run: Path, tmp_path: Path, run: Run, floor: str
) -> None:
    options = ("--run", small_run, "--floor", floor, "--out", tmp_path / "m")
    for verb in (("--size", "50%"), ("--nested",)):
        assert "legal: 0 <= floor <= 1" in one_line(run("extract", *verb, *options), code=2)
    assert list(tmp_path.iterdir()) == []


def test_a_size_below_the_floors_is_refused(small_run: Path, tmp_path: Path, run: Run) -> None:
    floors = DENSE - (DENSE - UNPRUNABLE) // 2
    options = ("--run", small_run, "--floor", "0.5", "--out", tmp_path / "m")
    assert f"legal: {floors} to {DENSE}" in one_line(run("extract", "--size", "20K", *options))


@pytest.mark.parametrize("scope", ["global", "lamp"])
def test_a_floor_keeps_every_layer_alive(
    small_run: Path, tmp_path: Path, run_json: Run, scope: str
) -> None:
    # A run in which one matrix has only tiny weights: nothing of it would survive.
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    weights, _ = newest_weights(small_run)
    state = {name: as_tensor(array).clone() for name, array in weights.items()}
    weak = read_description(small_run).prunable[0]
    state[weak] *= 1e-6
    save_checkpoint(folder / "checkpoints", step=8, tensors={"model": state}, state={"step": 8})
    kept = {}
    for floor in ("0", "0.25"):
        options = ("--scope", scope, "--floor", floor, "--out", tmp_path / f"m{floor}")
        made = run_json("extract", "--run", folder, "--size", "24K", *options)
        assert made["nonzero"] == 24_000
        kept[floor] = {layer["name"]: layer["nonzero"] for layer in made["layers"]}
    if scope == "global":
        assert kept["0"][weak] == 1
    for name in read_description(small_run).prunable:
        assert kept["0.25"][name] >= state[name].numel() / 4


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("block", [(8, 1), (16, 1), (4, 4)])
def test_blocks_are_kept_by_the_norm_that_was_asked_for(
    small_run: Path, tmp_path: Path, run_json: Run, block: tuple[int, int], norm: str
) -> None:
    out = tmp_path / "m"
    made = run_json(
        "extract", "--run", small_run, "--sparsity", "0.75", "--out", out,
        "--block", f"{block[0]}x{block[1]}", "--norm", norm,
    )  # fmt: skip
    weights, _ = newest_weights(small_run)
    state = read_artifact(out).arrays
    for name in read_description(small_run).prunable:
        kept = count_kept(state[name], block)
        assert kept.nonzero == kept.in_blocks == weights[name].size // 4
        mask = mask_from_count(weights[name], kept.nonzero, block, norm)
        assert np.array_equal(state[name], apply_mask(weights[name], mask))
    found = run_json("inspect", out)
    assert found["block"] == list(block)
    assert found["layers"] == made["layers"]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--precision", "int8"),
        ("--precision", "fp16", "--block", "8x1"),
        ("--format", "dense"),
        ("--scope", "global"),
    ],
)
def test_extraction_reports_what_inspection_recounts(
    small_run: Path, tmp_path: Path, run_json: Run, options: tuple[str, ...]
) -> None:
    out = tmp_path / "m"
    made = run_json("extract", "--run", small_run, "--size", "40%", "--out", out, *options)
    found = run_json("inspect", out)
    for key in (
        "parameters", "nonzero", "sparsity", "bytes", "nonzero_with_mask", "compression_rate",
        "largest_layer", "layers",
    ):  # fmt: skip
        assert made[key] == found[key], key
    assert found["mismatches"] == found["problems"] == []
    assert sum(layer["nonzero"] for layer in made["layers"]) == made["nonzero"]
    assert sum(layer["parameters"] for layer in made["layers"]) == made["parameters"] == DENSE
    dense = "dense" in options
    assert (made["nonzero_with_mask"] == made["nonzero"]) == dense
    card = (out / "README.md").read_text()
    assert f"| non-zero parameters | {made['nonzero']:,} |" in card
    assert f"| with masks, in parameters' worth | {made['nonzero_with_mask']:,.0f} |" in card
    assert f"{made['largest_layer']['nonzero']:,} non-zero" in card


@pytest.mark.parametrize("scope", ["layer", "global", "lamp"])
def test_bytes_are_met_by_the_largest_model(
    small_run: Path, tmp_path: Path, run_json: Run, scope: str
) -> None:
    options = ("--run", small_run, "--scope", scope)
    limit = 100_000
    made = run_json("extract", *options, "--size", "100KB", "--out", tmp_path / "m")
    assert made["bytes"] == written_bytes(tmp_path / "m") <= limit
    more = run_json(
        "extract", *options, "--size", str(made["nonzero"] + 1), "--out", tmp_path / "n"
    )
    assert more["bytes"] > limit


@pytest.fixture(scope="module")
def nested(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from omnisparse.pipeline.nested import write_nested_run

    path = tmp_path_factory.mktemp("nested") / "net.omni"
    write_nested_run(small_run, out=path, precision="fp16")
    return path


@pytest.mark.parametrize("precision", [None, "int8"])
@pytest.mark.parametrize("format", ["bitmask", "dense"])
def test_bytes_from_a_nested_file(
    nested: Path, tmp_path: Path, run: Run, run_json: Run, precision: str | None, format: str
) -> None:
    options = ["--from", nested, "--format", format]
    options += [] if precision is None else ["--precision", precision]
    line = one_line(run("extract", *options, "--size", "1B", "--out", tmp_path / "m"))
    assert not (tmp_path / "m").exists()
    least, most = (int(bound.rstrip("B")) for bound in line.split("legal: ")[1].split(" to "))
    limit = (least + most) // 2
    made = run_json("extract", *options, "--size", f"{limit}B", "--out", tmp_path / "m")
    assert made["bytes"] == written_bytes(tmp_path / "m") <= limit
    if format == "dense":
        assert made["nonzero"] == DENSE
    else:
        size = str(made["nonzero"] + 1)
        more = run_json("extract", *options, "--size", size, "--out", tmp_path / "n")
        assert more["bytes"] > limit
    assert run_json("inspect", tmp_path / "m")["layers"] == made["layers"]


def test_a_nested_file_reports_both_counts(small_run: Path, tmp_path: Path, run_json: Run) -> None:
    path = tmp_path / "net.omni"
    made = run_json("extract", "--nested", "--run", small_run, "--out", path)
    assert made["nonzero"] == made["parameters"] == DENSE
    # What is more than the values is the places of weights: the whole costs that much.
    extra = made["nonzero_with_mask"] - DENSE
    assert 0 < extra < 0.1 * DENSE
    assert made["prefixes"][-1] == {
        "nonzero": DENSE, "nonzero_with_mask": made["nonzero_with_mask"], "bytes": made["bytes"],
    }  # fmt: skip
    for prefix in made["prefixes"]:
        assert prefix["nonzero"] < prefix["nonzero_with_mask"]
    stored = sum(layer["bytes"] for layer in made["layers"])
    assert 4 * made["nonzero_with_mask"] == pytest.approx(stored)
    assert {layer["packing"] for layer in made["layers"]} == {"dense", "bands"}
    assert made["largest_layer"]["nonzero"] > 0


def test_inspection_of_nested_files(nested: Path, tmp_path: Path, run: Run, run_json: Run) -> None:
    whole = run_json("inspect", nested)
    assert (whole["kind"], whole["precision"], whole["nonzero"]) == ("nested", "fp16", DENSE)
    assert whole["bytes"] == nested.stat().st_size == whole["bands"][-1]["bytes"]
    assert whole["problems"] == []
    data = nested.read_bytes()
    band = whole["bands"][1]
    prefix = tmp_path / "prefix.omni"
    prefix.write_bytes(data[: band["bytes"] + 10])
    part = run_json("inspect", prefix)
    assert part["nonzero"] == band["nonzero"]
    assert part["nonzero_with_mask"] == band["nonzero_with_mask"]
    assert part["unfinished_bytes"] == 10
    assert [b["present"] for b in part["bands"]] == [
        index < 2 for index in range(len(part["bands"]))
    ]
    assert sum(layer["nonzero"] for layer in part["layers"]) == part["nonzero"]
    assert part["problems"] == []

    # Damage in the last band: the smaller sizes are still there, and the exit code says so.
    broken = bytearray(data)
    broken[-5] ^= 1
    prefix.write_bytes(bytes(broken))
    result = run("inspect", prefix, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["nonzero"] == whole["bands"][-2]["nonzero"]
    assert "checksum does not match" in report["problems"][0]
    prefix.write_bytes(data[: whole["bands"][0]["bytes"] - 1])
    assert "hold no model" in one_line(run("inspect", prefix))


def blocked_run(small_run: Path, folder: Path) -> Path:
    """The small run as if it had been trained with blocks of 8x1."""
    shutil.copytree(small_run, folder)
    description = folder / "model.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "block": "8x1"}))
    return folder


def test_a_run_of_blocks_is_in_no_nested_file(small_run: Path, tmp_path: Path, run: Run) -> None:
    folder = blocked_run(small_run, tmp_path / "run")
    line = one_line(run("extract", "--nested", "--run", folder, "--out", tmp_path / "n"))
    assert line == f"{folder}: trained with block 8x1; legal for --nested: 1x1"
    assert not (tmp_path / "n").exists()


def test_options_have_a_default_folder_of_their_own(
    small_run: Path, tmp_path: Path, run_json: Run
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    names = {
        (): "50pct",
        ("--precision", "int8"): "50pct-int8",
        ("--precision", "fp16", "--block", "8x1", "--norm", "l2"): "50pct-fp16-8x1-l2",
        ("--scope", "global", "--floor", "0.1"): "50pct-global-floor0.1",
        ("--format", "dense"): "50pct-dense",
        # What the run has by default is not named.
        ("--precision", "fp32", "--block", "1x1", "--floor", "0"): "50pct",
    }
    for options, name in names.items():
        made = run_json("extract", "--run", folder, "--size", "50%", *options)
        assert made["path"] == str(folder / "extracted" / name)
    blocks = blocked_run(small_run, tmp_path / "blocks")
    for options, name in {(): "50pct", ("--block", "1x1"): "50pct-1x1"}.items():
        made = run_json("extract", "--run", blocks, "--size", "50%", *options)
        assert made["path"] == str(blocks / "extracted" / name)


def test_two_specs_of_one_name_have_two_default_folders(
    small_run: Path, tmp_path: Path, run_json: Run
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    name = read_description(folder).prunable[0]
    paths = []
    for sparsity in (0.5, 0.75, 0.5):
        spec = tmp_path / str(len(paths)) / "mine.json"
        spec.parent.mkdir()
        spec.write_text(json.dumps({"sparsity": {name: sparsity}}))
        made = run_json("extract", "--run", folder, "--spec", spec)
        paths.append(Path(made["path"]))
    assert paths[0] != paths[1]
    assert paths[0] == paths[2]
    assert all(path.name.startswith("mine-") for path in paths)
    assert run_json("inspect", paths[0])["nonzero"] > run_json("inspect", paths[1])["nonzero"]


def test_a_pruned_run_that_holds_less_than_asked_is_told(
    small_run: Path, tmp_path: Path, run: Run
) -> None:
    folder, nested = tmp_path / "run", tmp_path / "net.omni"
    shutil.copytree(small_run, folder)
    weights, _ = newest_weights(small_run)
    state = {name: as_tensor(array).clone() for name, array in weights.items()}
    for name in read_description(small_run).prunable:
        state[name] *= mask_from_count(state[name], state[name].numel() // 2)
    save_checkpoint(folder / "checkpoints", step=8, tensors={"model": state}, state={"step": 8})
    held = UNPRUNABLE + (DENSE - UNPRUNABLE) // 2
    assert run("extract", "--nested", "--run", folder, "--out", nested).exit_code == 0
    for options in (("--run", folder), ("--run", folder, "--block", "8x1"), ("--from", nested)):
        told = {}
        for size in ("75%", str(held)):
            out = ("--size", size, "--out", tmp_path / "m")
            result = run("extract", *options, *out, "--json")
            assert result.exit_code == 0
            told[size] = [line for line in result.stderr.splitlines() if "asked for" in line]
            assert f"{json.loads(result.stdout)['nonzero']:,} of {DENSE:,}" in result.stderr
        assert len(told["75%"]) == 1
        line = told["75%"][0]
        if "--block" not in options:
            assert f"asked for 45,510 non-zero parameters, the run holds {held:,} of them" in line
            assert told[str(held)] == []


def test_zeros_among_the_weights_are_in_no_count(
    small_run: Path, tmp_path: Path, run_json: Run
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    weights, _ = newest_weights(small_run)
    state = {name: as_tensor(array).clone() for name, array in weights.items()}
    state[read_description(small_run).prunable[0]].view(-1)[:500] = 0
    save_checkpoint(folder / "checkpoints", step=8, tensors={"model": state}, state={"step": 8})
    nested = tmp_path / "net.omni"
    made = [
        run_json("extract", "--nested", "--run", folder, "--out", nested),
        run_json("extract", "--run", folder, "--size", "100%", "--out", tmp_path / "a"),
        run_json("extract", "--from", nested, "--size", "100%", "--out", tmp_path / "b"),
    ]
    for path, report in zip((nested, tmp_path / "a", tmp_path / "b"), made, strict=True):
        found = run_json("inspect", path)
        assert report["nonzero"] == found["nonzero"] == DENSE - 500
        assert report["layers"] == found["layers"]
        assert found["problems"] == []
    assert run_json("inspect", folder)["nonzero"] == DENSE - 500


def test_a_run_reports_the_checkpoint_that_was_read(
    small_run: Path, tmp_path: Path, run_json: Run
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run, folder)
    older = folder / "checkpoints" / "step-00000007" / "model.safetensors"
    newer = folder / "checkpoints" / "step-00000009"
    shutil.copytree(older.parent, newer)
    with (newer / "model.safetensors").open("ab") as file:
        file.write(b"cut off by a full disk")
    found = run_json("inspect", folder)
    assert found["step"] == 7
    assert found["bytes"] == older.stat().st_size
    assert found["nonzero"] == found["nonzero_with_mask"] == DENSE
