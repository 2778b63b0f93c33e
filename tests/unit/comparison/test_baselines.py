"""The rows of the comparison as configurations: sizes, order of combination, limits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omnisparse.cli.baseline import configure, parse_request
from omnisparse.comparison import baselines
from omnisparse.comparison.baselines import (
    SUPERNET_BUDGETS,
    baseline_config,
)
from omnisparse.comparison.layer_limits import layer_limit_configs
from omnisparse.comparison.rows import PLANS, ROWS, SUPERNETS
from omnisparse.config import ConfigError, RunConfig, config_to_yaml, load_config
from omnisparse.errors import OmnisparseError
from omnisparse.methods import (
    DenseConfig,
    DistillationConfig,
    GradualPruningConfig,
    SandwichConfig,
    distillation_of,
    passes_of,
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
from omnisparse.sparsity.prunable import find_prunable

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
    names = set()
    target = round(0.5 * DENSE)
    kinds = {
        "base": DenseConfig, "factored": DenseConfig, "distilled": DistillationConfig,
        "factored_distilled": DistillationConfig, "pruned": GradualPruningConfig,
        "factored_distilled_pruned": GradualPruningConfig, "supernet": SandwichConfig,
        "supernet_double": SandwichConfig, "supernet_labels": SandwichConfig,
        "supernet_single": SandwichConfig, "pruned_double": GradualPruningConfig,
        "pruned_once": GradualPruningConfig, "cut": GradualPruningConfig,
    }  # fmt: skip
    assert set(kinds) == set(ROWS) - set(PLANS)
    assert set(SUPERNET_BUDGETS) == set(SUPERNETS)
    alone = (*SUPERNET_BUDGETS, "pruned_once")
    for method, kind in kinds.items():
        size = None if method in alone else "50%"
        config = baseline_config(
            BASE, method=method, size=size, teacher=teacher if "distilled" in method else None,
            init=Path("r") if method == "cut" else None,
        )  # fmt: skip
        assert type(config.method) is kind
        assert isinstance(config.model, LasConfig)
        assert (config.model.encoder_projection is not None) == method.startswith("factored")
        count = count_parameters(config.model, **DIMENSIONS)
        if method in ("pruned", "pruned_double", "cut", *alone):
            assert config.model == BASE.model
        elif method == "factored_distilled_pruned":
            assert 0.98 * math.sqrt(target * DENSE) < count <= math.sqrt(target * DENSE)
        else:
            assert 0.98 * target < count <= target
        if isinstance(config.method, GradualPruningConfig):
            smallest = round(0.125 * DENSE) if method == "pruned_once" else target
            assert config.method.size == str(smallest)
            assert config.method.sizes == (("50%", "25%") if method == "pruned_once" else ())
        passes = config.training.epochs * passes_of(config.method) / BASE.training.epochs
        assert passes == pytest.approx(2.0 if method.endswith("double") else 1.0)
        config = replace(config, training=replace(config.training, epochs=BASE.training.epochs))
        assert (config.training, config.data) == (BASE.training, BASE.data)
        assert "%" not in config.name
        names.add(config.name)
    assert len(names) == len(kinds)


def test_the_controls_of_the_supernet_change_what_they_say() -> None:
    base = replace(BASE, method=SandwichConfig(min_size="60%", member_share=0.3))
    labels, single = (
        baseline_config(base, method=f"supernet_{name}", size=None, teacher=None, init=None).method
        for name in ("labels", "single")
    )
    assert labels == replace(base.method, label_weight=1.0, distillation_weight=0.0)
    assert single == replace(base.method, rule="single")
    assert passes_of(single) == 1.0


def test_sizes_of_one_pruning() -> None:
    for words in (["method=pruned", "sizes=[50%,25%]"], ["method=pruned_once", "sizes=25%,50%"]):
        request = parse_request(words)
        assert request.method == "pruned_once"
        config = configure(BASE, request)
        assert isinstance(config.method, GradualPruningConfig)
        assert (config.method.sizes, config.method.size) == (("50%",), str(round(DENSE / 4)))
        assert config.name == "las-pruned-once-s0"
    # In a sweep over sizes it is one run.
    assert parse_request(["method=pruned_once", "size=25%"]).size is None
    with pytest.raises(ConfigError, match="sizes is for pruned and cut; base takes size="):
        parse_request(["method=base", "sizes=[50%,25%]"])
    with pytest.raises(ConfigError, match=r"sizes is '\[50%\]'; legal: two or more"):
        parse_request(["method=pruned", "sizes=[50%]"])
    with pytest.raises(OmnisparseError, match="needs init: the dense net that it cuts"):
        row("cut", "25%")


def test_the_combination_factors_then_distils_then_prunes(teacher: Path) -> None:
    config = row("factored_distilled_pruned", "25%", teacher)
    assert isinstance(config.method, GradualPruningConfig)
    assert config.method.distillation == DistillationConfig(teacher=str(LARGE))
    assert (config.method.begin, config.method.end) == baselines.FACTORED_DISTILLED_PRUNED
    assert isinstance(config.model, LasConfig)
    assert config.model.encoder_projection
    earlier = row("factored_distilled", "50%", teacher)
    assert isinstance(earlier.model, LasConfig)
    assert earlier.model == config.model  # what is pruned to 25 % is the F + D net of 50 %


@pytest.mark.parametrize(
    ("words", "share"),
    [((), 0.2), (("pretrain=30%",), 0.3), (("init=r",), 0.0), (("init=r", "pretrain=0.1"), 0.1)],
)
@pytest.mark.parametrize("method", ["distilled", "factored_distilled_pruned", "pruned"])
def test_a_student_learns_from_labels_first(
    teacher: Path, method: str, words: tuple[str, ...], share: float
) -> None:
    request = parse_request([f"method={method}", "size=25%", f"teacher={teacher}", *words])
    config = configure(BASE, request)
    found = distillation_of(config.method)
    assert found is not None
    assert found.label_fraction == share
    assert config.training == BASE.training  # one training, as long as any other row


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


CONTROLS = {"pruned_double", "pruned_once", "cut"}


@pytest.mark.parametrize(
    "method", sorted(set(ROWS) - {"base", *SUPERNET_BUDGETS, *PLANS} - CONTROLS)
)
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


SMALL_ALREADY = ("16m", "32m", "57m", "distilled", "factored")
"""Nets that are a compression themselves."""


@pytest.mark.parametrize(
    "name",
    sorted(
        path.name
        for path in CONFIGS.glob("*.yaml")
        if not any(word in path.name for word in SMALL_ALREADY)
    ),
)
def test_every_shipped_net_can_be_pruned_to_an_eighth_and_all_rows_prune_the_same(
    name: str,
) -> None:
    base, dimensions = shipped(name)
    with torch.device("meta"):
        model = build_model(base.model, **dimensions)
    sets = []
    for method in ("pruned", "supernet"):
        for size in ("50%", "25%", "12.5%"):
            config = baseline_config(
                base, method=method, size=size if method == "pruned" else None,
                teacher=None, init=None,
            )  # fmt: skip
            assert config.model == base.model
            assert isinstance(config.method, GradualPruningConfig | SandwichConfig)
            sets.append(find_prunable(model, include=config.method.prunable))
            budget = Budget.of(model, sets[-1])
            target = config.method.size if method == "pruned" else size  # type: ignore[union-attr]
            kept = budget.solve(target)
            assert kept + budget.unprunable == pytest.approx(
                float(size[:-1]) / 100 * budget.dense_parameters, abs=1
            )
            assert kept > 0.02 * budget.prunable_parameters  # more than a name of a net
    assert all(names == sets[0] for names in sets)
    assert not any("embedding" in name or name.startswith("output") for name in sets[0])


def test_the_paper_scale_net_is_pruned_the_same_by_its_two_files() -> None:
    alone, dimensions = shipped("las_110m_librispeech_pruned.yaml")
    base, _ = shipped("las_110m_librispeech.yaml")
    row = baseline_config(base, method="pruned", size="32M", teacher=None, init=None)
    assert alone.model == base.model
    assert (alone.data, alone.corpus, alone.training) == (row.data, row.corpus, row.training)
    budget = pruning_budget(parameter_shapes(base.model, **dimensions))
    assert isinstance(alone.method, GradualPruningConfig)
    assert replace(alone.method, size="32000000") == row.method
    # 16 M, the smallest net of the paper, is a net and not a few connections.
    assert budget.solve("16M") > 0.02 * budget.prunable_parameters


@pytest.mark.parametrize(
    ("objective", "ctc", "each"), [("truth", 0.3, 1), ("top", 0.0, 1), ("beam", 0.3, 5)]
)
def test_hypotheses_are_in_the_budget(objective: str, ctc: float, each: int) -> None:
    """A pass for each hypothesis, one for labels where CTC trains, and one to decode them all."""
    method = DistillationConfig(teacher="t", objective=objective, beam=4, label_fraction=0.2)
    base = replace(BASE, method=method, model=replace(BASE.model, ctc_weight=ctc))
    share = baselines._share_of_length(base, method, base.model, 1.0)
    epochs = share * base.training.epochs
    decoded = objective != "truth"
    passes = epochs * (0.2 + 0.8 * each) if decoded else epochs
    assert passes + decoded == pytest.approx(base.training.epochs)
    short = replace(base, training=replace(base.training, epochs=1.0))
    if decoded:
        with pytest.raises(OmnisparseError, match="decoding the hypotheses"):
            baselines._share_of_length(short, method, base.model, 1.0)
