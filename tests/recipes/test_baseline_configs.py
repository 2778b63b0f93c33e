"""Every baseline through the one pipeline, on a tiny corpus: starts, teachers, refusals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from omnisparse.comparison.baselines import baseline_config
from omnisparse.config import RunConfig
from omnisparse.errors import OmnisparseError
from omnisparse.methods import DistillationConfig, GradualPruningConfig
from omnisparse.models import TransducerConfig
from omnisparse.pipeline.train import train
from omnisparse.runs import directory as runs
from omnisparse.training.checkpoint import load_newest
from omnisparse.training.stop_signals import InterruptedTrainingError

Configs = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, speech_root: Path) -> dict[str, Path]:
    """Where the trained dense net of each kind goes; see ``dense_run``."""
    return {
        kind: tmp_path_factory.mktemp(f"dense-{kind}") / "run" for kind in ("las", "transducer")
    }


@pytest.fixture
def dense_run(dense: dict[str, Path], tiny_config: Configs) -> Callable[[str], Path]:
    """The trained dense net of a kind, with a checkpoint of half its training."""

    def make(kind: str = "las") -> Path:
        config = tiny_config(kind, "dense", max_steps=4, checkpoint_every=2)
        return train(config, out=dense[kind]).run

    return make


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.tensors["model"]


@pytest.mark.parametrize("kind", ["las", "transducer"])
@pytest.mark.parametrize("objective", ["truth", "top", "beam"])
def test_distillation_of_a_smaller_factored_student(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path,
    kind: str, objective: str,
) -> None:  # fmt: skip
    teacher = dense_run(kind)
    base = tiny_config(kind, "dense", max_steps=2)
    method = DistillationConfig(teacher=str(teacher), objective=objective, beam=2)  # type: ignore[arg-type]
    model = replace(base.model, encoder_dim=16, encoder_projection=8)
    lines: list[str] = []
    result = train(
        replace(base, method=method, model=model), out=tmp_path / "run", on_stage=lines.append
    )
    name = {"truth": "truth", "top": "top", "beam": "beam_0"}[objective]
    assert result.metrics[f"loss/{name}"] > 0
    decoded = [line for line in lines if line.startswith("decoding hypotheses")]
    assert len(decoded) <= (objective != "truth")
    lines.clear()
    again = replace(base, method=method, model=model, seed=1)
    assert train(again, out=tmp_path / "again", on_stage=lines.append).steps == 2
    assert not [line for line in lines if line.startswith("decoding")]  # once for every seed


def test_factored_distilled_pruned_from_the_factorised_dense_net(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher = dense_run("las")
    base = tiny_config("las", "dense", max_steps=6)
    # F: the dense net's layers factorised by SVD; D: under the teacher; S: and pruned.
    factored = replace(
        base,
        model=replace(base.model, encoder_projection=10, decoder_projection=10),
        method=DistillationConfig(teacher=str(teacher)),
        init=str(teacher),
    )
    lines: list[str] = []
    train(factored, out=tmp_path / "fd", on_stage=lines.append)
    assert any("4 layers factorised by truncated SVD" in line for line in lines)
    pruned = replace(
        factored,
        method=GradualPruningConfig(
            size="70%", begin=0, end=0.5, distillation=DistillationConfig(teacher=str(teacher))
        ),
        init=str(tmp_path / "fd"),
    )
    result = train(pruned, out=tmp_path / "fds")
    assert "loss/truth" in result.metrics
    found = runs.inspect(tmp_path / "fds")
    assert found["nonzero"] == round(0.7 * found["parameters"])


def test_a_student_starts_from_an_early_checkpoint(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path
) -> None:
    early = dense_run("transducer") / "checkpoints" / "step-00000002"
    base = tiny_config("transducer", "dense", max_steps=0)
    train(replace(base, init=str(early)), out=tmp_path / "run")
    begun, expected = weights(tmp_path / "run"), runs.load_model(early).model.state_dict()
    assert all(torch.equal(begun[name], expected[name]) for name in expected)
    assert not all(
        torch.equal(begun[name], tensor) for name, tensor in weights(early.parents[1]).items()
    )


def test_pruning_resumed_twice_equals_not_stopping(tiny_config: Configs, tmp_path: Path) -> None:
    config = replace(
        tiny_config("las", "dense"),
        method=GradualPruningConfig(size="60%", begin=0.2, end=0.6, frequency=3),
    )
    train(config, out=tmp_path / "straight")
    for step in (4, 8):

        def stop(done: int, _: int, metrics: object, step: int = step) -> None:
            if done == step:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InterruptedTrainingError):
            train(config, out=tmp_path / "resumed", on_progress=stop)
    train(config, out=tmp_path / "resumed")
    one, other = (load_newest(tmp_path / n / "checkpoints") for n in ("straight", "resumed"))
    assert one is not None
    assert other is not None
    assert one.tensors["method"].keys() == other.tensors["method"].keys() != set()
    for stem, tensors in one.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[stem][name]), f"{stem}: {name}"


def test_a_row_of_the_comparison_is_trained_at_its_size(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_config("las", "dense", max_steps=3)
    teacher = dense_run("las")
    parameters = runs.inspect(teacher)["parameters"]
    for method, size in (("pruned", "60%"), ("factored_distilled", "80%")):
        taught = teacher if "distilled" in method else None
        config = baseline_config(base, method=method, size=size, teacher=taught, init=None)
        train(config, out=tmp_path / method)
        counted = runs.inspect(tmp_path / method)["nonzero"]
        target = round(float(size[:-1]) / 100 * parameters)
        assert counted == target if method == "pruned" else 0.9 * target < counted <= target


def test_a_limit_prints_every_layer_and_names_the_one_above_it(
    tiny_config: Configs, tmp_path: Path
) -> None:
    config = tiny_config("las", "dense", max_steps=0)
    lines: list[str] = []
    with pytest.raises(OmnisparseError, match=r"layer encoder\.layers\.0\.l0 has .* allows 20,000"):
        train(
            replace(config, max_layer_parameters="20K"), out=tmp_path / "r", on_stage=lines.append
        )
    assert any("decoder.layers.1.l0: " in line for line in lines)
    assert any("output: " in line and "(no limit)" in line for line in lines)
    train(replace(config, max_layer_parameters="40K"), out=tmp_path / "r")


def other_pieces(config: RunConfig) -> RunConfig:
    return replace(config, data=replace(config.data, vocab_size=44))


def other_frames(config: RunConfig) -> RunConfig:
    features = replace(config.data.features, stack=2)
    return replace(config, data=replace(config.data, features=features))


def large(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, encoder_dim=64))


def transducer(config: RunConfig) -> RunConfig:
    return replace(config, model=TransducerConfig(encoder_layers=2, encoder_dim=16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_pieces, r"has a vocabulary of 40 pieces; this run's has 44 \(data\.vocab_size;"),
        (other_frames, r"reads features with stack 3; this run's have 2 \(data\.features\.stack\)"),
        (large, r"the target of .* is above the .* legal: up to "),
        (transducer, r"is a las; a transducer is needed"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_clear_line(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path,
    change: Callable[[RunConfig], RunConfig], message: str,
) -> None:  # fmt: skip
    method = DistillationConfig(teacher=str(dense_run("las")))
    config = change(replace(tiny_config("las", "dense", max_steps=1), method=method))
    with pytest.raises(OmnisparseError, match=message) as caught:
        train(config, out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("field", ["teacher", "init"])
def test_a_missing_net_is_named_before_anything_is_written(
    tiny_config: Configs, tmp_path: Path, field: str
) -> None:
    config = tiny_config("las", "dense")
    config = (
        replace(config, init="runs/none")
        if field == "init"
        else replace(config, method=DistillationConfig(teacher="runs/none"))
    )
    with pytest.raises(OmnisparseError, match=r"runs/none: does not exist"):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_initial_net_of_another_shape_is_named_with_its_parameter(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path
) -> None:
    config = replace(tiny_config("las", "dense"), init=str(dense_run("las")))
    wider: dict[str, Any] = {"encoder_dim": 32}
    with pytest.raises(
        OmnisparseError, match=r"init .*: encoder\.layers\.0\.weight_ih_l0 is \[96, "
    ):
        train(replace(config, model=replace(config.model, **wider)), out=tmp_path / "one")
    factored = replace(config, model=replace(config.model, encoder_projection=8, **wider))
    with pytest.raises(OmnisparseError, match=r"layers\.0 has 24 cells, and 32 are needed"):
        train(factored, out=tmp_path / "two")


def test_a_damaged_cache_is_noticed_and_decoded_again(
    tiny_config: Configs, dense_run: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_config("las", "dense", max_steps=1)
    method = DistillationConfig(teacher=str(dense_run("las")), objective="top", beam=1)
    train(replace(base, method=method), out=tmp_path / "one")
    caches = Path(base.corpus.root, "hypotheses").glob("*/key.json")
    (key,) = [path for path in caches if json.loads(path.read_text())["beam"] == 1]
    part = key.with_name("part-00000.json")
    intact = part.read_bytes()
    part.write_bytes(intact[:-3])
    lines: list[str] = []
    train(replace(base, method=method), out=tmp_path / "two", on_stage=lines.append)
    assert any("does not match its checksum; decoding it again" in line for line in lines)
    assert part.read_bytes() == intact
