"""Every arm of a sweep over training choices is a configuration that can be trained."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from omnisparse.config import RunConfig, load_config

ROOT = Path(__file__).parents[2]
# Those of train_baseline.py, whose parameters are rows and sizes, are read in unit/sweep.
SWEEPS = sorted(
    path
    for path in (ROOT / "recipes" / "sweeps").glob("*.yaml")
    if yaml.safe_load(path.read_text())["program"] == "recipes/train_supernet.py"
)


def arms_of(path: Path) -> list[RunConfig]:
    """The configurations that an agent would train, by its own command line."""
    sweep = yaml.safe_load(path.read_text())
    command = sweep["command"]
    assert command[-1] == "${args_no_hyphens}"
    config = ROOT / command[command.index("--config") + 1]
    fixed = [part for part in command if "=" in part]
    names = list(sweep["parameters"])
    values = [sweep["parameters"][name]["values"] for name in names]
    return [
        load_config(config, [*fixed, *(f"{n}={v}" for n, v in zip(names, chosen, strict=True))])
        for chosen in itertools.product(*values)
    ]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_arm_is_legal_and_different(path: Path) -> None:
    assert (ROOT / yaml.safe_load(path.read_text())["program"]).is_file()
    arms = arms_of(path)
    assert len({repr(arm) for arm in arms}) == len(arms)


def test_the_ablation_changes_one_choice_at_a_time() -> None:
    arms = [arm.method for arm in arms_of(ROOT / "recipes" / "sweeps" / "ablation.yaml")]
    base = arms[0]
    names = base.__dataclass_fields__
    together = [{"label_weight", "distillation_weight"}, {"full_batch", "num_random_subnets"}]
    for arm in arms[1:]:
        changed = {name for name in names if getattr(arm, name) != getattr(base, name)}
        assert len(changed) <= 1 or changed in together
