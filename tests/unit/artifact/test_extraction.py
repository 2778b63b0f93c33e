"""Many sizes in one walk are what one size at a time gives, byte for byte."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from omnisparse.artifact import (
    Contents,
    Extraction,
    MappedState,
    as_tensor,
    inspect_artifact,
    read_artifact,
    write_extractions,
)
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.masks import apply_mask, mask_from_count


@pytest.mark.parametrize("zeros", [0, 900])
@pytest.mark.parametrize(
    ("precision", "block", "single"),
    [
        *(("fp32", (1, 1), []), ("fp16", (1, 1), []), ("int8", (1, 1), []), ("fp32", (8, 1), [])),
        ("fp32", (8, 1), ["joiner.weight"]),
    ],
)
def test_many_sizes_equal_one_at_a_time(tmp_path, net_with, precision, block, single, zeros):
    net = net_with(sparsity=0.0)
    net.state["encoder.lstm.weight_hh_l0"].view(-1)[:zeros] = 0  # kept weights that are zero
    options = {**net.contents, "precision": precision, "block": block, "single": single}
    shapes = {name: t.shape for name, t in net.state.items() if name != "steps"}
    budget = Budget(shapes, net.contents["prunable"], block=block)
    low, high = budget.nonzero_range()
    counts = [
        budget.allocate_uniform(budget.solve(size))
        for size in (low, (low + high) // 2, high - 100, high)
    ]

    def own(name):
        return (1, 1) if name in single else block

    extractions = [
        Extraction(out=tmp_path / str(index), num_kept=count, contents=Contents(**options))
        for index, count in enumerate(counts)
    ]
    for count, info in zip(counts, write_extractions(net.state, extractions), strict=True):
        masked = {
            name: apply_mask(tensor, mask_from_count(tensor, count[name], own(name)))
            if name in count
            else tensor
            for name, tensor in net.state.items()
        }
        alone = net.write(tmp_path / "alone", state=masked, **options)
        assert (alone.nonzero, alone.bytes) == (info.nonzero, info.bytes)
        for file in ("config.json", "model.safetensors"):
            assert (info.path / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
        assert inspect_artifact(info.path)["problems"] == []
        if not zeros and block == (1, 1):
            assert info.nonzero == budget.unprunable + sum(count.values())


def test_blocks_must_agree(tmp_path, net):
    extractions = [
        Extraction(
            out=tmp_path / "a", num_kept={}, contents=Contents(**{**net.contents, "block": block})
        )
        for block in ((1, 1), (8, 1))
    ]
    with pytest.raises(ValueError, match="one block"):
        write_extractions(net.state, extractions)


def test_one_place_for_two_artifacts_is_refused(tmp_path, net):
    kept = {name: 5 for name in net.contents["prunable"]}
    contents = Contents(**net.contents)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link"):
        extractions = [
            Extraction(out=out, num_kept=kept, contents=contents) for out in (tmp_path / "a", other)
        ]
        with pytest.raises(ValueError, match="given twice"):
            write_extractions(net.state, extractions)
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_counts_are_those_of_the_file(tmp_path, net_with):
    net = net_with(sparsity=0.0)
    weight = net.state["encoder.lstm.weight_hh_l0"]
    weight[:, :30] = 0
    kept = {name: net.state[name].numel() for name in net.contents["prunable"]}
    extraction = Extraction(out=tmp_path / "a", num_kept=kept, contents=Contents(**net.contents))
    (info,) = write_extractions(net.state, [extraction])
    held = {layer.name: layer.nonzero for layer in info.layers if layer.prunable}
    assert held == {**kept, "encoder.lstm.weight_hh_l0": 48 * 34}
    assert info.nonzero == net.contents["dense_parameters"] - 48 * 30


def test_a_weight_that_is_not_finite_is_named(tmp_path, net):
    net.state["joiner.weight"][3, 3] = torch.inf
    extraction = Extraction(
        out=tmp_path / "a",
        num_kept={name: 5 for name in net.contents["prunable"]},
        contents=Contents(**net.contents),
    )
    with pytest.raises(ValueError, match="joiner"):
        write_extractions(net.state, [extraction])
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_checkpoint_gives_the_same_artifact(tmp_path, net):
    checkpoint = {name: tensor.clone() for name, tensor in net.state.items()}
    checkpoint["half"] = torch.randn(9, 9).bfloat16()
    save_file(checkpoint, tmp_path / "checkpoint.safetensors")
    mapped = MappedState(tmp_path / "checkpoint.safetensors")
    assert set(mapped) == set(checkpoint)
    for _ in range(2):  # released and read again
        for name, array in mapped.items():
            assert as_tensor(array).dtype == checkpoint[name].dtype
            assert torch.equal(as_tensor(array), checkpoint[name])
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    mapped["joiner.weight"].fill(0)
    del mapped
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_reloaded_logits_are_those_of_the_masked_net(tmp_path, precision):
    torch.manual_seed(0)
    net = nn.Sequential()
    net.encoder = nn.LSTM(20, 32, 2, batch_first=True)
    net.output = nn.Linear(32, 10)
    state = net.state_dict()
    prunable = [name for name in state if "weight" in name]
    budget = Budget({name: tensor.shape for name, tensor in state.items()}, prunable)
    kept = budget.allocate_uniform(budget.solve("30%"))
    contents = Contents(
        model={},
        tokenizer=b"",
        tokens_txt="",
        features={},
        dense_parameters=budget.dense_parameters,
        prunable=prunable,
        source={},
        precision=precision,
    )
    write_extractions(state, [Extraction(out=tmp_path, num_kept=kept, contents=contents)])

    def logits(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        net.load_state_dict(weights)
        generator = torch.Generator().manual_seed(1)
        with torch.inference_mode():
            encoded, _ = net.encoder(torch.randn(3, 15, 20, generator=generator))
            return net.output(encoded)

    masked = {
        name: apply_mask(tensor, mask_from_count(tensor, kept[name])) if name in kept else tensor
        for name, tensor in state.items()
    }
    expected = logits({name: tensor.clone() for name, tensor in masked.items()})
    difference = (logits(read_artifact(tmp_path).state) - expected).abs().max()
    assert difference <= {"fp32": 0.0, "fp16": 5e-4, "int8": 2e-2}[precision]
