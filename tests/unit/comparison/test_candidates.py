"""Which runs are seeds of one configuration, and what distinguishes configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnisparse.cli.baseline import configure, parse_request
from omnisparse.comparison.candidates import REFERENCE, configuration_rows, differences
from omnisparse.config import (
    RunConfig,
    config_from_dict,
    config_to_yaml,
    load_config,
    override_config,
)
from omnisparse.sweeps.file import load_sweep

ROOT = Path(__file__).parents[3]
BASE = config_from_dict({"method": {"kind": "sandwich", "min_size": "12%"}})


def other(*overrides: str, base: RunConfig = BASE) -> RunConfig:
    return override_config(base, overrides)


def label(*overrides: str, base: RunConfig = BASE) -> str:
    """The label of what the overrides make of ``base``."""
    names, _ = configuration_rows([base, other(*overrides, base=base)], name="first")
    assert names[0] == REFERENCE
    return names[1]


def write_run(folder: Path, config: RunConfig) -> str:
    """As much of a run as says what it was trained as."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_to_yaml(config))
    return str(folder)


@pytest.mark.parametrize(
    "overrides",
    [
        ("seed=7",),
        ("name=another", "tracking.wandb=offline", "tracking.project=p", "corpus.root=elsewhere"),
        ("training.threads=3", "training.log_every=7", "training.evaluate_every=500"),
        ("corpus.test=[other.jsonl]", "corpus.dev=[other.jsonl]"),
        ("method={kind: sandwich, min_size: 12%, alphas: [-1, 1], label_weight: 0.3}",),
    ],
)
def test_what_does_not_change_the_training_makes_no_row(overrides: tuple[str, ...]) -> None:
    assert label(*overrides) == REFERENCE


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("method.divergence=alpha",), "method.divergence=alpha"),
        (
            ("seed=1", "method.label_weight=0", "method.distillation_weight=0.25"),
            "method.distillation_weight=0.25, method.label_weight=0",
        ),
        (("method.full_batch=true",), "method.full_batch=true"),
        (("method.levels=[10%,50%]",), "method.levels=[10%,50%]"),
        (("method.alphas=[-1,0.5]",), "method.alphas=[-1,0.5]"),
        (("data.augmentation.num_time_masks=3",), "data.augmentation.num_time_masks=3"),
        (("training.max_steps=10",), "training.max_steps=10"),
        (("corpus.train=[a.jsonl]", "corpus.synthetic=null"),
         "corpus.synthetic=null, corpus.train=[a.jsonl]"),
        (("corpus.synthetic.hours=4",), "corpus.synthetic.hours=4"),
        # Another kind: what it is, and what differs from its own defaults.
        (("method=dense",), "method=dense"),
        (("model={kind: transducer, joiner_dim: 96}",), "model=transducer, model.joiner_dim=96"),
        (("method={kind: gradual_pruning, size: 12%, exponent: 1}",),
         "method=gradual_pruning, method.exponent=1"),
        (("method={kind: distillation, teacher: gone}",),
         "method=distillation, method.teacher=gone"),
    ],
)  # fmt: skip
def test_labels_say_what_differs_from_the_reference(
    overrides: tuple[str, ...], expected: str
) -> None:
    assert label(*overrides) == expected


def test_a_section_that_the_reference_lacks_is_named() -> None:
    without = other("corpus.synthetic=null", "corpus.train=[a.jsonl]")
    assert label("corpus.synthetic={}", base=without) == "corpus.synthetic={}"
    spoken = label("corpus.synthetic={hours: 3}", base=without)
    assert spoken == "corpus.synthetic.hours=3"


def test_sizes_that_nets_were_pruned_to_are_columns_and_not_rows() -> None:
    pruned = [other(f"method={{kind: gradual_pruning, size: {size}}}") for size in ("50%", "25%")]
    names, rows = configuration_rows([BASE, *pruned], name="first")
    assert names == [REFERENCE, *["method=gradual_pruning"] * 2]
    assert rows.note == "reference: first, with method=sandwich, method.min_size=12%"


def test_rows_are_the_reference_and_the_others_by_label() -> None:
    configs = [
        other("seed=3"),
        other("method.num_random_subnets=10"),
        other("method.num_random_subnets=2", "seed=1"),
        other("method.block=8x1"),
        other("method.num_random_subnets=2"),
        BASE,
    ]
    names, rows = configuration_rows(configs, name="first")
    few, many, block = (f"method.{t}" for t in (
        "num_random_subnets=2", "num_random_subnets=10", "block=8x1"
    ))  # fmt: skip
    assert names == [REFERENCE, many, few, block, few, REFERENCE]
    assert list(rows.labels) == [REFERENCE, block, few, many]
    assert (rows.rival, rows.compared) == (REFERENCE, {block, few, many})
    assert rows.note == "reference: first, with method.block=1x1, method.num_random_subnets=1"
    alone = configuration_rows([BASE, other("seed=1")], name="first")
    assert alone[0] == [REFERENCE, REFERENCE]
    assert alone[1].note == "reference: first"


def test_the_arms_of_the_ablation_are_its_rows() -> None:
    sweep = load_sweep(ROOT / "recipes/sweeps/ablation.yaml")
    configs = []
    for point in sweep.points():
        line = sweep.command_line(point, {})
        place = line.index("--config") + 1
        request = parse_request(line[place + 1 :])
        configs.append(configure(load_config(ROOT / line[place], request.common), request))
    names, rows = configuration_rows(configs, name="transducer-books")
    arms = len(sweep.parameters["method"]["values"])
    assert names[:arms] == names[arms:]  # the second seed of each
    assert len(rows.labels) == arms
    assert names[0] == REFERENCE
    assert "method.member_share=1" in rows.labels  # fewer steps of the same budget are no label
    assert "method.distillation_weight=0, method.label_weight=1" in rows.labels


def test_teachers_are_compared_by_what_they_are_and_not_by_their_path(tmp_path: Path) -> None:
    dense = other("method=dense")
    first = write_run(tmp_path / "first", dense)
    second = write_run(tmp_path / "second", other("seed=1", "name=second", base=dense))
    longer = write_run(tmp_path / "longer", other("training.epochs=99", base=dense))
    student = other(f"method={{kind: distillation, teacher: {first}}}")
    assert label(f"method.teacher={second}", base=student) == REFERENCE
    assert label(f"method.teacher={longer}", base=student) == f"method.teacher={longer}"
    assert label("method.teacher=gone", base=student) == "method.teacher=gone"
    early = f"{first}/checkpoints/step-10"
    assert label(f"method.teacher={early}", base=student) == f"method.teacher={early}"
    # Teachers of teachers, and a run that a moved link has made its own origin.
    deep = [
        write_run(tmp_path / f"deep-{number}", other(f"init={source}", f"seed={number}"))
        for number, source in enumerate((first, second, longer))
    ]
    own = write_run(tmp_path / "own", other(f"init={tmp_path / 'own'}"))
    begun = other(f"init={deep[0]}")
    assert label(f"init={deep[1]}", base=begun) == REFERENCE
    assert label(f"init={deep[2]}", base=begun) == f"init={deep[2]}"
    assert label(f"init={own}", base=begun) == f"init={own}"
    assert differences(begun, BASE) == {"init": deep[0]}


def test_other_weights_are_rows_of_their_own() -> None:
    """They are of the same training, and so no other seeds."""
    few = other("method.num_random_subnets=2")
    names, rows = configuration_rows(
        [BASE, BASE, other("seed=1"), few, few],
        name="first",
        weights=["last", "ema", "last", "last", "ema"],
    )
    label = "method.num_random_subnets=2"
    assert names == [REFERENCE, "weights=ema", REFERENCE, label, f"{label}, weights=ema"]
    assert rows.compared == {"weights=ema", label, f"{label}, weights=ema"}
    assert rows.note == "reference: first, with method.num_random_subnets=1, weights=last"
    alike, _ = configuration_rows([BASE, other("seed=1")], name="ema", weights=["ema", "ema"])
    assert alike == [REFERENCE] * 2
