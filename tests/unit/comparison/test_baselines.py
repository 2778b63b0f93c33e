"""The rows of the comparison as configurations: sizes, order of combination, limits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from omnisparse.cli.baseline import configure, parse_request
from omnisparse.comparison import baselines
from omnisparse.comparison.baselines import (
    SUPERNET_BUDGETS,
    baseline_config,
    layer_limit_configs,
)
from omnisparse.comparison.rows import PLANS, ROWS, SUPERNETS
from omnisparse.config import ConfigError, RunConfig, config_to_yaml, load_config
from omnisparse.errors import OmnisparseError
from omnisparse.methods import (
    DenseConfig,
    DistillationConfig,
    GradualPruningConfig,
    SandwichConfig,
)
from omnisparse.methods.widths import (
    count_parameters,
    parameter_shapes,
    solve_model,
    with_projections,
)
from omnisparse.models import LasConfig, TransducerConfig, build_model
from omnisparse.runs import directory as runs
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.layer_limit import count_layers

BASE = RunConfig(
    name="las",
    model=LasConfig(encoder_dim=64, decoder_dim=48, attention_dim=32, embedding_dim=24),
)
DIMENSIONS = {"input_dim": 240, "vocab_size": 500}
DENSE = count_parameters(BASE.model, **DIMENSIONS)
LARGE = Path("runs/large")


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher as large as the dense net."""
    monkeypatch.setattr(runs, "inspect", lambda path: {"nonzero": DENSE})
    return LARGE


def row(method: str, size: str | None, teacher: Path | None = None, **options: object) -> RunConfig:
    return baseline_config(
        BASE,
        method=method,
        size=size,
        teacher=teacher,
        init=None,
        **options,  # type: ignore[arg-type]
    )


def las_formula(config: LasConfig, input_dim: int, vocab_size: int) -> int:
    """Parameters of a LAS by hand, layer by layer."""

    def lstm(inputs: int, cells: int, width: int | None) -> int:
        count = 4 * cells * (inputs + (width or cells)) + 8 * cells
        return count + (width or 0) * cells

    total, inputs = 0, input_dim
    halvings = int(math.log2(config.time_reduction))
    for layer in range(config.encoder_layers):
        total += lstm(inputs, config.encoder_dim, config.encoder_projection)
        out = config.encoder_projection or config.encoder_dim
        total += 2 * out if config.layer_norm else 0
        inputs = out * (2 if layer < halvings else 1)
    state, context = config.decoder_projection or config.decoder_dim, config.attention_dim
    total += vocab_size * config.embedding_dim
    for layer in range(config.decoder_layers):
        reads = config.embedding_dim if layer == 0 else state + (context if layer == 1 else 0)
        total += lstm(reads, config.decoder_dim, config.decoder_projection)
    total += (state + 1) * context + out * context + (out + 1) * context
    return total + (state + context + 1) * vocab_size


@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("target", [60_000, 301_234])
def test_the_solver_comes_as_close_as_whole_cells_allow(target: int, factored: bool) -> None:
    family = with_projections(BASE.model, decoder=True) if factored else BASE.model
    solved = solve_model(family, parameters=target, **DIMENSIONS)
    assert isinstance(solved, LasConfig)
    count = count_parameters(solved, **DIMENSIONS)
    assert count == las_formula(solved, **DIMENSIONS)
    model = build_model(solved, **DIMENSIONS)
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert 0.98 * target < count <= target
    assert (solved.encoder_projection is None) == (not factored)
    share = solved.encoder_dim / solved.decoder_dim
    assert share == pytest.approx(64 / 48, rel=0.12)  # a member of the family


def test_the_solver_serves_transducers() -> None:
    family = TransducerConfig(encoder_dim=64, predictor_dim=48, joiner_dim=32, embedding_dim=24)
    solved = solve_model(family, parameters=150_000, **DIMENSIONS)
    assert 0.98 * 150_000 < count_parameters(solved, **DIMENSIONS) <= 150_000


def test_a_size_below_the_narrowest_net_names_that() -> None:
    with pytest.raises(ValueError, match=r"its narrowest has \d"):
        solve_model(BASE.model, parameters=1000, **DIMENSIONS)
    with pytest.raises(ValueError, match="neither"):
        solve_model(BASE.model, **DIMENSIONS)


def test_every_row_is_of_its_size_and_kind(teacher: Path) -> None:
    target = round(0.5 * DENSE)
    kinds = {
        "base": DenseConfig, "factored": DenseConfig, "distilled": DistillationConfig,
        "factored_distilled": DistillationConfig, "pruned": GradualPruningConfig,
        "factored_distilled_pruned": GradualPruningConfig, "supernet": SandwichConfig,
        "supernet_double": SandwichConfig,
    }  # fmt: skip
    assert set(kinds) == set(ROWS) - set(PLANS)
    assert set(SUPERNET_BUDGETS) == set(SUPERNETS)
    for method, kind in kinds.items():
        size = None if method in SUPERNET_BUDGETS else "50%"
        config = row(method, size, teacher if "distilled" in method else None)
        assert type(config.method) is kind
        assert isinstance(config.model, LasConfig)
        assert (config.model.encoder_projection is not None) == method.startswith("factored")
        count = count_parameters(config.model, **DIMENSIONS)
        if method in ("pruned", *SUPERNET_BUDGETS):
            assert config.model == BASE.model
        elif method == "factored_distilled_pruned":
            assert 0.98 * math.sqrt(target * DENSE) < count <= math.sqrt(target * DENSE)
        else:
            assert 0.98 * target < count <= target
        if isinstance(config.method, GradualPruningConfig):
            assert config.method.size == str(target)
        if isinstance(config.method, SandwichConfig):
            passes = config.training.epochs * config.method.mean_passes / BASE.training.epochs
            assert passes == pytest.approx(SUPERNET_BUDGETS[method])
            config = replace(config, training=replace(config.training, epochs=BASE.training.epochs))
        assert (config.training, config.data) == (BASE.training, BASE.data)
        assert "%" not in config.name
    names = {row(method, "50%", teacher if "distilled" in method else None).name
             for method in kinds if method not in SUPERNET_BUDGETS}  # fmt: skip
    assert len(names) == 6


def test_the_combination_factors_then_distils_then_prunes(teacher: Path) -> None:
    config = row("factored_distilled_pruned", "25%", teacher)
    assert isinstance(config.method, GradualPruningConfig)
    assert config.method.distillation == DistillationConfig(teacher=str(LARGE))
    assert isinstance(config.model, LasConfig)
    assert config.model.encoder_projection
    earlier = row("factored_distilled", "50%", teacher)
    assert isinstance(earlier.model, LasConfig)
    assert earlier.model == config.model  # what is pruned to 25 % is the F + D net of 50 %


def test_choices_of_the_base_are_kept(teacher: Path) -> None:
    pruning = GradualPruningConfig(begin=0.2, scope="global")
    config = baseline_config(
        replace(BASE, method=pruning), method="pruned", size="25%", teacher=None, init=Path("r")
    )
    assert config.method == replace(pruning, size=str(round(DENSE / 4)))
    assert config.init == "r"
    beam = DistillationConfig(teacher="other", objective="beam", beam=2)
    config = baseline_config(
        replace(BASE, method=beam), method="distilled", size="25%", teacher=teacher, init=None
    )
    assert config.method == replace(beam, teacher=str(LARGE))


def test_the_budget_of_a_supernet_follows_its_own_options() -> None:
    request = parse_request(["method=supernet", "method.full_batch=true", "method.min_size=60%"])
    for base in (BASE, replace(BASE, method=DenseConfig())):
        config = configure(base, request)
        assert isinstance(config.method, SandwichConfig)
        assert config.method.full_batch
        assert config.training.epochs * config.method.mean_passes == pytest.approx(
            BASE.training.epochs
        )


def test_pruned_rows_prune_what_the_supernet_is_told_to() -> None:
    base = replace(BASE, method=SandwichConfig(prunable=("attention", "weight_hh")))
    method = baseline_config(base, method="pruned", size="50%", teacher=None, init=None).method
    assert isinstance(method, GradualPruningConfig)
    assert method.prunable == ("attention", "weight_hh")
    base = replace(BASE, method=SandwichConfig())
    method = baseline_config(base, method="pruned", size="50%", teacher=None, init=None).method
    assert method == GradualPruningConfig(size=method.size)


def test_a_method_may_come_with_its_choices() -> None:
    request = parse_request(
        ["method.min_size=60%", "method.block=8x1", "method={kind: supernet, block: 4x4}"]
    )
    assert request.method == "supernet"
    method = configure(BASE, request).method
    assert isinstance(method, SandwichConfig)
    assert (method.min_size, method.block) == ("60%", "4x4")
    again = parse_request(["method={kind: sandwich}", "method.alphas=[-2.0, 0.5]"])
    assert configure(BASE, again).method == SandwichConfig(alphas=(-2.0, 0.5))
    with pytest.raises(ConfigError, match="has no kind; legal: kind and keys of that method"):
        parse_request(["method={min_size: 60%}"])
    with pytest.raises(ConfigError, match="the value is not YAML"):
        parse_request(["method={min_size: "])
    with pytest.raises(ConfigError, match="method 'sieve' is unknown"):
        parse_request(["method={kind: sieve}"])


def test_a_configuration_survives_its_file(teacher: Path, tmp_path: Path) -> None:
    for method in ("factored_distilled_pruned", "pruned", "factored_distilled"):
        config = row(method, "25%", teacher if "distilled" in method else None)
        (tmp_path / "config.yaml").write_text(config_to_yaml(config))
        assert load_config(tmp_path / "config.yaml") == config


def test_a_limit_per_layer_builds_the_experiments_of_table_4(teacher: Path) -> None:
    base = replace(BASE, model=replace(BASE.model, encoder_layers=5))
    limit = 20_000
    configs = layer_limit_configs(base, "20K", teacher=teacher)
    deep_layers = {"deep": (10, 4), "deep_factored": (10, 4)}
    for name, config in configs.items():
        model = config.model
        assert isinstance(model, LasConfig)
        layers = (model.encoder_layers, model.decoder_layers)
        assert layers == deep_layers.get(name, (5, 2))
        factored = "factored" in name
        assert (model.encoder_projection is not None) == factored
        assert (model.decoder_projection is not None) == factored
        assert isinstance(config.method, DistillationConfig) == ("distilled" in name)
        counts = [c.parameters for c in count_layers(parameter_shapes(model, **DIMENSIONS))
                  if c.is_recurrent]  # fmt: skip
        assert len(counts) == sum(layers)
        assert 0.9 * limit < max(counts) <= limit
        assert config.max_layer_parameters == "20K"
    cells = {name: config.model.encoder_dim for name, config in configs.items()}
    assert cells["factored"] > cells["base"] == cells["distilled"]
    assert list(configs) == [
        "base", "distilled", "factored", "factored_distilled", "deep", "deep_factored"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "size", "given", "message"),
    [
        ("pruning", "25%", None, "method 'pruning' is unknown; legal: base, factored"),
        ("distilled", "25%", None, "needs a teacher"),
        ("base", "25%", LARGE, "uses no teacher"),
        ("supernet", "25%", None, "a supernet has every size"),
        ("pruned", None, None, "needs a size"),
        ("base", "20MB", None, "is in bytes"),
        ("base", "150%", None, r"legal: above 0, up to the dense net's \d"),
        ("base", "0.01%", None, "base of size 0.01%: no las of this family"),
        ("base", "lots", None, "'lots' is not understood"),
        (
            "distilled",
            "90%",
            LARGE,
            r"is above the 1,000 of teacher runs/large; legal: up to 1,000",
        ),
    ],
)
def test_illegal_rows_are_one_clear_line(
    method: str, size: str | None, given: Path | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines.runs, "inspect", lambda path: {"nonzero": 1000})
    with pytest.raises(OmnisparseError, match=message) as caught:
        row(method, size, given)
    assert "\n" not in str(caught.value)


def test_a_limit_is_no_matter_of_a_supernet() -> None:
    with pytest.raises(OmnisparseError, match="not for a supernet"):
        row("supernet", None, max_layer_parameters="4M")
    with pytest.raises(OmnisparseError, match="max_layer_parameters is '4MB'"):
        row("base", None, max_layer_parameters="4MB")


CONFIGS = Path(__file__).parents[3] / "recipes/configs"


def shipped(name: str) -> tuple[RunConfig, dict[str, int]]:
    config = load_config(CONFIGS / name)
    features, pieces = config.data.features, config.data.vocab_size
    return config, {"input_dim": features.num_bins * features.stack, "vocab_size": pieces}


@pytest.mark.parametrize("method", sorted(set(ROWS) - {"base", *SUPERNET_BUDGETS, *PLANS}))
def test_the_shipped_rows_have_the_size_they_say(method: str) -> None:
    base, dimensions = shipped("las_assistant.yaml")
    dense = count_parameters(base.model, **dimensions)
    config, _ = shipped(f"las_assistant_{method}.yaml")
    assert (config.corpus, config.data, config.training) == (
        base.corpus, base.data, base.training
    )  # fmt: skip
    shapes = parameter_shapes(config.model, **dimensions)
    nonzero = sum(math.prod(shape) for shape in shapes.values())
    if isinstance(config.method, GradualPruningConfig):
        budget = pruning_budget(shapes)
        nonzero = budget.unprunable + budget.solve(config.method.size)
    assert nonzero == pytest.approx(dense / 4, rel=0.01)


def pruning_budget(shapes: dict[str, tuple[int, ...]]) -> Budget:
    return Budget(shapes, [fqn for fqn in shapes if ".weight_" in fqn])


def test_how_far_the_paper_scale_net_can_be_pruned_is_said() -> None:
    config, dimensions = shipped("las_110m_librispeech_pruned.yaml")
    assert isinstance(config.method, GradualPruningConfig)
    budget = pruning_budget(parameter_shapes(config.model, **dimensions))
    budget.solve(config.method.size)
    with pytest.raises(ValueError, match=r"'16M' is out of range .*legal: 17[45]\d{5} "):
        budget.solve("16M")
