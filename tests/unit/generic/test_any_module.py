"""Supernets of nets that we know nothing of: trained by a loop of one's own, packed, loaded."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import omnisparse
from omnisparse.cli.main import verbs
from omnisparse.errors import OmnisparseError
from omnisparse.generic.statistics import frozen_statistics, recalibrate
from omnisparse.sparsity.prunable import find_prunable_anywhere


class Convolutions(nn.Module):
    """2-D and 1-D convolutions, batch normalisation, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.line = nn.Conv1d(6, 8, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.image(images)).relu().mean(2)
        return self.head(self.line(hidden).relu().mean(2))


class Recurrent(nn.Module):
    """An embedding, an LSTM, a GRU of two directions, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.lstm = nn.LSTM(8, 10, batch_first=True)
        self.gru = nn.GRU(10, 4, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.gru(self.lstm(self.embed(tokens))[0])[0])


class Attending(nn.Module):
    """A transformer layer, with its fused path when it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.layer(frames).mean(1))


def example(kind: type[nn.Module]) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if kind is Recurrent:
        return torch.randint(13, (4, 6), generator=generator)
    shape = (4, 1, 7, 9) if kind is Convolutions else (4, 5, 8)
    return torch.randn(shape, generator=generator)


KINDS = [Convolutions, Recurrent, Attending]


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return kind()


def test_what_is_pruned_by_default() -> None:
    assert find_prunable_anywhere(Convolutions()) == ["image.weight", "line.weight", "head.weight"]
    gru = [f"gru.weight_{kind}_l0{end}" for end in ("", "_reverse") for kind in ("ih", "hh")]
    assert find_prunable_anywhere(Recurrent()) == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", *gru]
    linear = [f"layer.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")]
    assert find_prunable_anywhere(Attending()) == [
        "layer.self_attn.in_proj_weight", *linear, "head.weight"
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"no linear, .* legal: weight$"):
        find_prunable_anywhere(nn.Bilinear(2, 2, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_masked_extracted_packed_and_loaded_agree(
    kind: type[nn.Module], precision: str, tmp_path: Path
) -> None:
    supernet = omnisparse.Supernet(made(kind).eval())
    spec = supernet.spec_for(sparsity=0.7)
    inputs = example(kind)
    with torch.no_grad():
        dense = supernet(inputs)
        with supernet.active(spec):
            masked = supernet(inputs)
    told = omnisparse.extract(supernet, sparsity=0.7, out=tmp_path / "a", precision=precision)
    loaded = omnisparse.load_packed(tmp_path / "a", made(kind, seed=1)).eval()
    with torch.no_grad():
        found = loaded(inputs)
        torch.testing.assert_close(supernet(inputs), dense, rtol=0, atol=0)
    rounding = 0.0 if precision == "fp32" else 0.02
    torch.testing.assert_close(found, masked, rtol=rounding, atol=1e-6 + rounding)
    assert not torch.allclose(found, dense, atol=1e-3)
    # Counts, of the model that was loaded and of the file.
    prunable = set(supernet.prunable)
    nonzero = sum(
        int(one.count_nonzero()) if fqn in prunable else one.numel()
        for fqn, one in loaded.named_parameters()
    )
    assert told["nonzero"] == nonzero
    if precision == "fp32":
        assert nonzero == supernet.nonzero(spec)
    assert told["parameters"] == sum(one.numel() for one in loaded.parameters())


def test_a_module_is_pruned_as_it_is_and_by_any_size(tmp_path: Path) -> None:
    model = made(Convolutions)
    before = copy.deepcopy(model.state_dict())
    sizes = {}
    for size in ("30%", 150, "3900B"):
        told = omnisparse.extract(model, size=size, out=tmp_path / str(size))
        sizes[size] = told
        assert any("batch normalisation" in line for line in told["warnings"])
    assert all(torch.equal(one, before[fqn]) for fqn, one in model.state_dict().items())
    assert sizes[150]["nonzero"] == 150
    assert sizes["30%"]["nonzero"] == round(0.3 * sizes["30%"]["parameters"])
    assert sizes["3900B"]["bytes"] <= 3900
    more = omnisparse.extract(model, size=sizes["3900B"]["nonzero"] + 8, out=tmp_path / "more")
    assert more["bytes"] > 3900
    with pytest.raises(ValueError, match="size '3' is out of range for this model; legal: "):
        omnisparse.extract(model, size=3, out=tmp_path / "x")
    with pytest.raises(ValueError, match="one of them"):
        omnisparse.extract(model, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_tied_matrices_count_and_are_stored_once(tmp_path: Path) -> None:
    model = made(Recurrent)
    # By either of its names; masks reach both.
    supernet = omnisparse.Supernet(model, prunable=["head.weight", "lstm.weight_ih_l0"])
    assert supernet.prunable == ("embed.weight", "lstm.weight_ih_l0")
    assert supernet.budget.dense_parameters == sum(one.numel() for one in model.parameters())
    spec = supernet.spec_for(sparsity=0.5)
    tokens = example(Recurrent)
    with torch.no_grad(), supernet.active(spec):
        masked = supernet(tokens)
    told = omnisparse.extract(supernet, sparsity=0.5, out=tmp_path / "a", format="dense")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert "embed.weight" in stored
    assert "head.weight" not in stored
    assert told["parameters"] == supernet.budget.dense_parameters
    loaded = omnisparse.load_packed(tmp_path / "a", made(Recurrent, 1))
    assert loaded.head.weight is loaded.embed.weight
    torch.testing.assert_close(loaded(tokens), masked)
    loose = made(Recurrent, 1)
    loose.head.weight = nn.Parameter(torch.zeros(13, 8))
    with pytest.raises(OmnisparseError, match="head.weight is tied to embed.weight in the file"):
        omnisparse.load_packed(tmp_path / "a", loose)
    assert not loose.head.weight.any()


def old_weight_norm(model: nn.Module) -> None:
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.line)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda model: nn.utils.parametrizations.weight_norm(model.line), "_WeightNorm"),
        (lambda model: nn.utils.parametrizations.spectral_norm(model.line), "_SpectralNorm"),
        (lambda model: nn.utils.spectral_norm(model.line), "spectral_norm"),
        (lambda model: nn.utils.prune.random_unstructured(model.line, "weight", 0.5), "prune"),
        (old_weight_norm, "weight_norm"),
    ],
)
def test_parametrised_weights_are_refused_in_one_line(change, kind: str) -> None:
    import torch.nn.utils.prune  # noqa: F401

    model = made(Convolutions)
    change(model)
    with pytest.raises(ValueError, match=rf"^line: its weight is parametrised \(.*{kind}") as told:
        omnisparse.Supernet(model)
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"^line: its weight is parametrised"):
        omnisparse.Supernet(model, prunable=["line.weight"])
    assert omnisparse.Supernet(model, prunable=["head.weight"]).prunable == ("head.weight",)


def test_other_weights_that_a_mask_cannot_reach() -> None:
    with pytest.raises(ValueError, match="weight has no shape yet"):
        omnisparse.Supernet(nn.LazyLinear(3))
    sparse = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="0.weight: an embedding with sparse=True"):
        omnisparse.Supernet(sparse, prunable=["0.weight"])
    with pytest.raises(ValueError, match="prunable names unknown layers: nothing"):
        omnisparse.Supernet(made(Attending), prunable=["nothing"])


def test_a_convolution_in_channels_last_is_masked_as_any_other() -> None:
    images = example(Convolutions)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        supernet = omnisparse.Supernet(made(Convolutions).eval().to(memory_format=layout))
        with supernet.active(supernet.spec_for(sparsity=0.6)):
            outputs = supernet(images)
            outputs.sum().backward()
        with supernet.squashed(supernet.spec_for(sparsity=0.6)) as squashed, torch.no_grad():
            torch.testing.assert_close(squashed(images), outputs)
        found.append([outputs, *(one.grad for one in supernet.parameters())])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_a_subnet_leaves_the_running_statistics_alone() -> None:
    model = made(Convolutions).train()
    images = example(Convolutions)
    before = copy.deepcopy(model.state_dict())
    with frozen_statistics(model):
        frozen = model(images)
        frozen.sum().backward()
    assert all(torch.equal(one, before[fqn]) for fqn, one in model.state_dict().items())
    torch.testing.assert_close(model(images), frozen)  # by the batch, as in any training
    assert int(model.norm.num_batches_tracked) == 1


def test_statistics_are_those_of_the_size_that_is_written(tmp_path: Path) -> None:
    model = made(Convolutions).eval()
    images = torch.randn(32, 1, 7, 9, generator=torch.Generator().manual_seed(2))
    before = copy.deepcopy(model.state_dict())
    told = omnisparse.extract(
        model, sparsity=0.8, out=tmp_path / "a", calibrate=[images[:16], (images[16:],)]
    )
    assert told["warnings"] == []
    assert all(torch.equal(one, before[fqn]) for fqn, one in model.state_dict().items())
    assert not model.training
    loaded = omnisparse.load_packed(tmp_path / "a", made(Convolutions, 1)).eval()
    hidden = loaded.image(images)
    torch.testing.assert_close(loaded.norm.running_mean, hidden.mean((0, 2, 3)))
    halves = torch.stack([half.var((0, 2, 3)) for half in hidden.split(16)])
    torch.testing.assert_close(loaded.norm.running_var, halves.mean(0))
    with pytest.raises(ValueError, match="calibrate has no batch"):
        recalibrate(model, [])


def sandwich(supernet: omnisparse.Supernet, **options) -> omnisparse.SandwichTraining:
    settings = {"max_steps": 20, "min_size": "30%", "warmup_fraction": 0.2, "refresh_every": 4}
    return omnisparse.SandwichTraining(supernet, **{**settings, **options})


def test_the_nets_of_a_step() -> None:
    supernet = omnisparse.Supernet(made(Attending))
    training = sandwich(supernet, num_random_subnets=2)
    assert [net.name for net in training.nets(3)] == ["dense"]
    active = [(net.name, supernet.spec is net.spec) for net in training.nets(19)]
    assert active == [(name, True) for name in ("dense", "smallest", "random_0", "random_1")]
    assert supernet.spec is None
    assert training.schedule.smallest(19) == supernet.spec_for("30%")
    sizes = [supernet.nonzero(training.schedule.smallest(step)) for step in range(4, 20)]
    assert sizes == sorted(sizes, reverse=True)
    for net in training.nets(19):  # a loop that stops early leaves the dense net active
        if net.name == "smallest":
            break
    assert supernet.spec is None


def test_losses_are_those_written_out_and_one_sum_gives_the_same_gradient() -> None:
    inputs, labels = example(Attending), torch.tensor([0, 2, 1, 1])
    found = []
    for summed in (False, True):
        supernet = omnisparse.Supernet(made(Attending).eval())  # without dropout
        training = sandwich(supernet, subnet_weight=0.5, label_weight=0.3, distillation_weight=2.0)

        def compute(net: nn.Module = supernet) -> tuple[Tensor, Tensor]:
            outputs = net(inputs)
            return F.cross_entropy(outputs, labels), outputs

        if summed:
            training.total_loss(19, compute).backward()
        else:
            for net in training.nets(19):
                loss = net.loss(*compute())
                loss.backward()
                if net.name == "smallest":
                    label, outputs = compute()
                    with supernet.active(None), torch.no_grad():
                        teacher = supernet(inputs).log_softmax(-1)
                    student = outputs.log_softmax(-1)
                    divergence = (teacher.exp() * (teacher - student)).sum(-1).mean()
                    torch.testing.assert_close(loss, 0.5 * (0.3 * label + 2.0 * divergence))
        found.append([one.grad for one in supernet.parameters()])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


def test_a_sum_of_losses_with_batch_normalisation_can_be_differentiated() -> None:
    supernet = omnisparse.Supernet(made(Convolutions))
    images, labels = example(Convolutions), torch.tensor([0, 2, 1, 1])

    def compute() -> tuple[Tensor, Tensor]:
        outputs = supernet(images)
        return F.cross_entropy(outputs, labels), outputs

    sandwich(supernet).total_loss(19, compute).backward()
    assert int(supernet.model.norm.num_batches_tracked) == 1


def test_resuming_between_two_rankings_is_exact() -> None:
    def run(steps: range, supernet, training, optimizer) -> None:
        for step in steps:
            inputs, labels = example(Attending) + step, torch.tensor([0, 2, 1, 1])
            for net in training.nets(step):
                outputs = supernet(inputs)
                net.loss(F.cross_entropy(outputs, labels), outputs).backward()
            optimizer.step()
            optimizer.zero_grad()

    def start():
        supernet = omnisparse.Supernet(made(Attending).eval())
        return supernet, sandwich(supernet), torch.optim.SGD(supernet.parameters(), 0.1)

    whole = start()
    run(range(16), *whole)
    first = start()
    run(range(10), *first)
    second = start()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    run(range(10, 16), *second)
    for fqn, one in whole[0].state_dict().items():
        assert torch.equal(one, second[0].state_dict()[fqn]), fqn


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"min_size": "0.1%"}, "out of range for this model; legal: "),
        ({"warmup_fraction": 0.8}, "shrink_fraction is 0.5; with this warmup_fraction .* 0 to 0.2"),
        ({"subnet_weight": -1.0}, "subnet_weight is -1.0; it must be at least 0"),
    ],
)
def test_illegal_settings_name_the_legal_values(options, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        sandwich(omnisparse.Supernet(made(Attending)), **options)


def test_a_subnet_with_outputs_wants_those_of_the_dense_net() -> None:
    supernet = omnisparse.Supernet(made(Attending))
    outputs = supernet(example(Attending))
    nets = sandwich(supernet).nets(19)
    next(nets).loss(outputs.sum())
    smallest = next(nets)
    with pytest.raises(ValueError, match="smallest was given outputs, but the dense net of this"):
        smallest.loss(outputs.sum(), outputs)


def test_files_that_are_not_of_this_model(tmp_path: Path) -> None:
    path = tmp_path / "a"
    omnisparse.extract(made(Convolutions), sparsity=0.5, out=path)
    with pytest.raises(OmnisparseError, match=r"layer.self_attn.in_proj_weight is absent in the"):
        omnisparse.load_packed(path, made(Attending))
    other = made(Convolutions)
    other.head = nn.Linear(8, 4)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(OmnisparseError, match=r"head.weight is \[3, 8\] in the file and \[4, 8\]"):
        omnisparse.load_packed(path, other)
    assert all(torch.equal(one, before[fqn]) for fqn, one in other.state_dict().items())
    with pytest.raises(OmnisparseError, match="no packed folder"):
        omnisparse.load_packed(tmp_path, made(Convolutions))
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(OmnisparseError, match="checksum does not match"):
        omnisparse.load_packed(path, made(Convolutions))


def test_verbs_of_recognisers_say_what_a_packed_module_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    told = omnisparse.extract(made(Convolutions), sparsity=0.5, out=path)
    assert sorted(one.name for one in path.iterdir()) == [
        "README.md", "config.json", "model.safetensors"
    ]  # fmt: skip
    assert "load_packed" in (path / "README.md").read_text()
    assert "automatic-speech" not in (path / "README.md").read_text()
    seen = CliRunner().invoke(verbs, ["inspect", str(path), "--json"])
    found = json.loads(seen.stdout)
    assert found["problems"] == []
    assert [found[key] for key in ("nonzero", "bytes")] == [told["nonzero"], told["bytes"]]
    for verb in (["transcribe", str(path), "x.wav"], ["export", str(path), "--format", "onnx"]):
        failed = CliRunner().invoke(verbs, verb)
        assert failed.exit_code == 1
        assert "Traceback" not in failed.stderr
        assert "omnisparse.load_packed(path, model) loads it" in " ".join(failed.stderr.split())


def test_a_name_that_packing_takes_is_told() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_buffer("scale", torch.ones(3))
    with pytest.raises(ValueError, match="0.scale: its name is that of a part of 0.weight"):
        omnisparse.extract(model, sparsity=0.5, out="never")


def test_importing_the_package_imports_no_torch() -> None:
    code = (
        "import sys, omnisparse; dir(omnisparse); omnisparse.extract; "
        "assert 'torch' not in sys.modules; omnisparse.SandwichTraining; "
        "assert 'lhotse' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
