"""Configurations: unknown keys name their path, values are checked, YAML round-trips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from omnisparse.config import (
    ConfigError,
    CorpusConfig,
    RunConfig,
    config_to_yaml,
    load_config,
    override_config,
    parse_value,
)
from omnisparse.config.yaml_core import read_yaml, write_yaml
from omnisparse.methods import (
    DenseConfig,
    DistillationConfig,
    GradualPruningConfig,
    ProgressiveConfig,
    SandwichConfig,
    StagedConfig,
    build_method,
)
from omnisparse.methods.progressive import plan_models
from omnisparse.models import SpeechModel, TransducerConfig, build_model
from omnisparse.sparsity.decomposition import RankBudget
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.synthetic.corpus import SyntheticConfig

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([*(ROOT / "recipes/configs").glob("*.yaml"), *ROOT.glob("omnisparse/configs/*")])


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_every_shipped_configuration_is_legal(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config_to_yaml(config))
    assert load_config(resolved) == config


def test_off_is_a_word_and_not_a_boolean(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("tracking: {wandb: off}\n")
    assert load_config(path).tracking.wandb == "off"
    assert load_config(None, ["tracking.wandb=off"]).tracking.wandb == "off"
    assert not load_config(None, ["method.full_batch=false"]).method.full_batch  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "overrides", "mixes"),
    [
        ("train: [a.jsonl]", [], False),
        ("train: [a.jsonl]\n  synthetic: null", [], False),
        ("train: [a.jsonl]\n  synthetic: {}", [], True),
        ("train: [a.jsonl]\n  synthetic: {hours: 2}", [], True),
        ("train: [a.jsonl]", ["corpus.synthetic.hours=1"], True),
        ("train: [a.jsonl]\n  synthetic: {hours: 2}", ["corpus.train=[b.jsonl]"], True),
        ("synthetic: {hours: 2}", ["corpus.train=[b.jsonl]"], False),
        ("synthetic: {hours: 2}", ["--corpus.train=['b.jsonl']"], False),
        ("synthetic: {hours: 2}", ["corpus={train: [b.jsonl]}"], False),
        ("synthetic: {hours: 2}", ["corpus.train=[b.jsonl]", "corpus.synthetic.hours=1"], True),
        ("synthetic: {hours: 2}", ["corpus.train=[]"], True),
        ("dev: [a.jsonl]", [], True),
    ],
)
def test_own_manifests_switch_the_embedded_corpus_off(
    tmp_path: Path, text: str, overrides: list[str], mixes: bool
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"corpus:\n  {text}\n")
    config = load_config(path, overrides)
    assert (config.corpus.synthetic is not None) is mixes
    path.write_text(config_to_yaml(config))
    assert load_config(path) == config  # what a run keeps says it in full


def test_own_manifests_switch_the_embedded_corpus_off_in_python_too() -> None:
    assert CorpusConfig(train=("a.jsonl",)).synthetic is None
    assert CorpusConfig(train=("a.jsonl",), synthetic=SyntheticConfig()).synthetic is not None
    own = dataclasses.replace(CorpusConfig(), train=("a.jsonl",))
    assert own.synthetic is None
    assert override_config(RunConfig(), ["corpus.train=[a.jsonl]"]).corpus.synthetic is None
    assert load_config(None, ["corpus.train=[a.jsonl]"]).corpus.synthetic is None
    assert load_config(None).corpus.synthetic == SyntheticConfig()


@pytest.mark.parametrize("name", ["las_real", "transducer_real"])
def test_recipes_that_mix_ask_for_it(name: str) -> None:
    config = load_config(ROOT / "recipes/configs" / f"{name}.yaml", ["corpus.base=elsewhere"])
    assert config.corpus.train
    assert config.corpus.synthetic is not None


def net_of(config: RunConfig) -> SpeechModel:
    """The net of a configuration, without weights."""
    with torch.device("meta"):
        return build_model(
            config.model,
            input_dim=80 * config.data.features.stack,
            vocab_size=config.data.vocab_size,
        )


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_the_sizes_that_a_shipped_configuration_trains_can_be_reached(path: Path) -> None:
    config = load_config(path)
    method = config.method
    if isinstance(method, GradualPruningConfig):
        method = dataclasses.replace(
            method, distillation=None
        )  # a teacher has no say in what can be pruned
    if isinstance(method, ProgressiveConfig):
        net = net_of(config)
        dims = {"input_dim": net.input_dim, "vocab_size": config.data.vocab_size}
        *_, last = plan_models(method, config.model, **dims)
        whole = sum(weight.numel() for weight in net.parameters())
        assert 0.39 * whole < last.size <= 0.4 * whole
    elif isinstance(method, StagedConfig):
        net = net_of(config)
        names = set(find_prunable(net))
        shapes = {n: (p.shape[0], p.shape[1]) for n, p in net.named_parameters() if n in names}
        factorable = sum(rows * columns for rows, columns in shapes.values())
        compression = float(str(method.size).removesuffix("x"))
        assert RankBudget(shapes, 0).uniform(int(factorable / compression))
    elif not isinstance(method, DistillationConfig):
        build_method(method, seed=0).prepare(net_of(config), max_steps=10)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("transducer_emformer_76m", 76_730_496),
        ("transducer_conformer_30m", 29_506_560),
        ("transducer_lstm_85m", 85_287_552),
        ("transducer_emformer_small", 3_213_280),
        ("transducer_conformer_small", 3_416_104),
    ],
)
def test_a_configuration_says_how_large_its_net_is(name: str, parameters: int) -> None:
    path = ROOT / f"recipes/configs/{name}.yaml"
    config = load_config(path)
    assert sum(weight.numel() for weight in net_of(config).parameters()) == parameters
    said = f"{parameters / 1e6:.1f} M" if name.endswith("small") else f"{parameters:,}"
    assert f"of {said} parameters" in path.read_text()


def test_no_file_and_no_overrides_is_the_default() -> None:
    assert load_config() == RunConfig()


def test_overrides_reach_every_depth() -> None:
    config = load_config(
        None, ["training.learning_rate=3e-4", "data.features.stack=4", "seed=7", "method=dense"]
    )
    assert config.training.learning_rate == 3e-4
    assert (config.data.features.stack, config.seed) == (4, 7)
    assert config.method == DenseConfig()
    assert isinstance(load_config(None, ["model=transducer"]).model, TransducerConfig)


def test_values_are_read_as_an_agent_writes_them() -> None:
    def value(text: str) -> object:
        return parse_value("init", text)

    for text in ("None", "null", "~", "Null"):
        assert load_config(None, [f"init={text}"]).init is None
    assert value("'None'") == "None"
    assert value("{'kind': 'dense', 'size': None}") == {"kind": "dense", "size": None}
    assert (value("1e-05"), value("1e5"), value("-inf")) == (1e-5, 1e5, float("-inf"))
    assert load_config(None, ["method.full_batch=True"]).method.full_batch  # type: ignore[union-attr]


def test_yaml_is_read_as_its_version_1_2(tmp_path: Path) -> None:
    text = "[1e-5, 1E3, .5, 5., 010, 0o10, 0x1F, 1_000, 1:30, yes, off, 2026-01-01, None, ~, .inf]"
    values = [1e-5, 1e3, 0.5, 5.0, 10, 8, 31, "1_000", "1:30", "yes", "off", "2026-01-01", "None",
              None, float("inf")]  # fmt: skip
    assert read_yaml(text) == values
    assert read_yaml(write_yaml(values)) == values
    words = ["1e5", "010", "0o10", "off", "None", "null", "2026-01-01", "1:30", "nan"]
    assert read_yaml(write_yaml(words)) == yaml.safe_load(write_yaml(words)) == words
    path = tmp_path / "config.yaml"
    path.write_text("training: {learning_rate: 1e-4, weight_decay: 1e-5}\n")
    assert load_config(path).training.learning_rate == 1e-4


def test_sizes_are_plain_counts_too() -> None:
    overrides = ["method.min_size=300000", "method.distribution=levels", "method.levels=[400000]"]
    method = load_config(None, overrides).method
    assert isinstance(method, SandwichConfig)
    assert (method.min_size, method.levels) == (300_000, (400_000,))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.nrs=2", "unknown key method.nrs; legal keys of method: "),
        ("trainig.max_steps=2", "unknown key trainig; did you mean training\\? legal keys of the "),
        (
            "method={kind: dense, min_size: 1M}",
            r"method\.min_size; another method\.kind has it; legal",
        ),
        ("training.epoch=2", r"unknown key training\.epoch; did you mean training\.epochs\? "),
        ("epochs=2", r"unknown key epochs; did you mean training\.epochs\? legal keys of the conf"),
        ("data.features.bins=2", r"unknown key data\.features\.bins; .*num_bins, stack"),
        ("method=sandwitch", "method: .*sandwich"),
        ("training.learning_rate=fast", r"training\.learning_rate: .*given: 'fast'"),
        ("training.learning_rate=-1", "learning_rate is -1"),
        ("model.encoder_dim=0", "encoder_dim"),
        ("model.encoder=gru", r"unknown key model\.encoder; "),
        ("model={kind: transducer, encoder: gru}", r"model\..*encoder: .*'emformer'.*given: 'gru'"),
        ("model={kind: transducer, segments: 4}", r"unknown key model\.segments; .*segment, left"),
        ("seed", "'seed': an override is written key=value"),
        ("seed.x=1", "unknown key|seed"),
        ("seed=-1", "seed is -1; it must be from 0 to 9223372036854775807"),
        ("seed=9223372036854775808", "from 0 to 9223372036854775807"),
        ("seed=12345678901234567890123", "from 0 to 9223372036854775807"),
        ("name=../x", "a plain folder name"),
        ("name=null", r"name: .*given: None"),
        ("name=None", r"name: .*given: None"),
        ("name='None'", "name is 'None'"),
        ("name=latest", "name is 'latest'"),
        ("seed=None", r"seed: .*given: None"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "\x00", "name: {x: 1}"])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n", "# all: comments\n", "---\n", "null\n"])
def test_an_empty_file_is_no_request_for_defaults(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(content)
    for overrides in ([], ["seed=1"]):
        with pytest.raises(ConfigError, match=r"empty\.yaml: the file is empty") as failed:
            load_config(path, overrides)
        assert failed.value.exit_code == 2
    path.write_text("{}\n")
    assert load_config(path) == RunConfig()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: No such file"):
        load_config(tmp_path / "absent.yaml")


def test_every_config_field_is_documented() -> None:
    """The string under each field is what a reader of the YAML has."""
    import ast
    import inspect
    import sys

    def owners(owner: type) -> set[type]:
        found = {owner}
        for item in dataclasses.fields(owner):
            default = item.default_factory() if callable(item.default_factory) else item.default
            if dataclasses.is_dataclass(default):
                found |= owners(type(default))
        return found

    for owner in owners(RunConfig) | {DenseConfig, TransducerConfig}:
        tree = ast.parse(inspect.getsource(sys.modules[owner.__module__]))
        body = next(
            n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner.__name__
        )
        for node, following in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign):
                documented = isinstance(following, ast.Expr) and isinstance(
                    following.value, ast.Constant
                )
                assert documented, f"{owner.__name__}.{ast.unparse(node.target)} has no text"
