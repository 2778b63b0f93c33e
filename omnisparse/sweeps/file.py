"""W&B sweep files, read without W&B: the runs that a file requests, and their command lines.

Source: W&B's reference of sweep configurations (docs.wandb.ai, "Sweep configuration options").
Deviation: ``bayes`` is another method than the server's (:mod:`omnisparse.sweeps.bayes`), and
``early_terminate`` is refused, because it needs the server. Nested parameters are refused, because
our keys have dots.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from omnisparse.config.yaml_core import read_yaml
from omnisparse.errors import OmnisparseError
from omnisparse.sweeps import bayes

LEGAL_KEYS = (
    "program", "method", "parameters", "command", "name", "description", "project", "entity",
    "metric", "run_cap",
)  # fmt: skip
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
"""W&B's own default."""

DISTRIBUTIONS = (
    "constant", "categorical", "int_uniform", "uniform", "q_uniform", "log_uniform",
    "log_uniform_values", "normal", "q_normal",
)  # fmt: skip

MACROS = (
    "${env}", "${interpreter}", "${program}", "${args}", "${args_no_hyphens}", "${args_no_equals}",
    "${args_no_boolean_flags}", "${args_json}",
)  # fmt: skip
MOST_POINTS = 100_000
"""Runs of one sweep."""
_MOST_LOG = 700.0
_LARGEST = 1e300
_MACRO = re.compile(r"\$\{[a-z_]+\}")
_ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


class SweepError(OmnisparseError):
    """A sweep file that cannot be run here (bad usage)."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    program: str
    method: Literal["grid", "random", "bayes"]
    parameters: Mapping[str, Mapping[str, Any]]
    """Constraints by parameter, in the order of the file."""
    command: tuple[str, ...]
    run_cap: int | None
    metric: str | None = None
    """Name of what a bayes sweep improves."""
    minimise: bool = True
    """Whether smaller metrics are better."""

    def number_of_points(self, count: int | None) -> int:
        """Runs of a random or bayes sweep.

        Raises:
            SweepError: If nothing says it.
        """
        limits = [limit for limit in (count, self.run_cap) if limit is not None]
        if not limits:
            raise SweepError(f"{self.path}: a {self.method} sweep needs run_cap or --count")
        if min(limits) > MOST_POINTS:
            raise SweepError(f"{self.path}: {min(limits):,} points; legal: up to {MOST_POINTS:,}")
        return min(limits)

    def next_point(
        self, results: Sequence[tuple[Mapping[str, Any], float]], *, number: int, seed: int
    ) -> dict[str, Any]:
        """A point of a bayes sweep, from the results so far; see :func:`bayes.next_point`."""
        kinds = {name: str(_distribution(rule)) for name, rule in self.parameters.items()}
        return bayes.next_point(
            self.parameters, kinds, results, minimise=self.minimise, number=number, seed=seed
        )

    def points(self, *, count: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
        """The parameters of every run, in order; the same for the same file, count and seed.

        Args:
            count: Most runs; for a random sweep, the number of runs unless ``run_cap`` is given.
            seed: Seed of a random sweep; run i is drawn from (seed, i).

        Raises:
            SweepError: If a random sweep has no number of runs.
        """
        assert self.method != "bayes"
        limits = [limit for limit in (count, self.run_cap) if limit is not None]
        if self.method == "random":
            number = self.number_of_points(count)
            return [self._draw(random.Random(f"{seed}/{i}")) for i in range(number)]
        names = list(self.parameters)
        values = [_grid_values(self.parameters[name]) for name in names]
        number = math.prod(map(len, values))
        if number > MOST_POINTS:
            raise SweepError(f"{self.path}: {number:,} points; at most {MOST_POINTS:,} are legal")
        points = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]
        return points[: min(limits)] if limits else points

    def _draw(self, generator: random.Random) -> dict[str, Any]:
        return {name: _sample(rule, generator) for name, rule in self.parameters.items()}

    def command_line(self, point: Mapping[str, Any], environment: Mapping[str, str]) -> list[str]:
        """The command of one run, with macros expanded as W&B's agent does.

        Args:
            point: The run's parameters.
            environment: For ``${envvar:NAME}``; the name of a missing variable is not replaced.
        """
        flags = [f"{name}={value}" for name, value in point.items()]
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            "${args}": [f"--{flag}" for flag in flags],
            "${args_no_hyphens}": flags,
            "${args_no_equals}": [
                p for name, value in point.items() for p in (f"--{name}", str(value))
            ],
            "${args_no_boolean_flags}": [
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in point.items()
                if value is not False
            ],
            "${args_json}": [json.dumps(dict(point))],
        }
        line: list[str] = []
        for part in self.command:
            part = _ENVIRONMENT.sub(lambda m: environment.get(m[1], m[1]), part)
            line += macros.get(part, [part])
        return line


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file.

    Raises:
        SweepError: If it cannot be read, or requests something unsupported; one line.
    """
    try:
        document = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SweepError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(document, dict):
        raise SweepError(
            f"{path}: not a sweep; a mapping with {', '.join(LEGAL_KEYS[:3])} is expected"
        )
    _check_top(document, path)
    parameters = document.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise SweepError(f"{path}: parameters is missing or empty")
    for name, rule in parameters.items():
        _check_rule(f"{path}: parameters.{name}", rule, document["method"])
        kind = _distribution(rule)
        if document["method"] == "bayes" and kind not in bayes.LEGAL:
            legal = ", ".join(bayes.LEGAL)
            raise SweepError(f"{path}: parameters.{name}: {kind} in a bayes sweep; legal: {legal}")
    command = document.get("command", DEFAULT_COMMAND)
    if not isinstance(command, list | tuple) or not command:
        raise SweepError(f"{path}: command must be a list of words")
    unknown = [part for part in map(str, command) if _MACRO.fullmatch(part) and part not in MACROS]
    if unknown:
        raise SweepError(f"{path}: command: {unknown[0]} is unknown; legal: {', '.join(MACROS)}")
    return Sweep(
        path=path,
        program=document["program"],
        method=document["method"],
        parameters={str(name): rule for name, rule in parameters.items()},
        command=tuple(map(str, command)),
        run_cap=document.get("run_cap"),
        **_metric(document, path),
    )


def _metric(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Name and direction of the metric; needed by bayes alone."""
    metric = document.get("metric")
    if metric is None and document["method"] != "bayes":
        return {}
    goal = metric.get("goal", "minimize") if isinstance(metric, dict) else None
    name = metric.get("name") if isinstance(metric, dict) else None
    if not isinstance(name, str) or goal not in ("minimize", "maximize"):
        raise SweepError(
            f"{path}: metric is {metric!r}; a name and a goal, minimize or maximize, are expected"
        )
    return {"metric": name, "minimise": goal == "minimize"}


def _check_top(document: Mapping[str, Any], path: Path) -> None:
    method = document.get("method")
    if method not in ("grid", "random", "bayes"):
        raise SweepError(f"{path}: method is {method!r}; legal: grid, random, bayes")
    if "early_terminate" in document:
        raise SweepError(f"{path}: early_terminate needs the W&B server; remove it")
    unknown = [key for key in document if key not in LEGAL_KEYS]
    if unknown:
        raise SweepError(f"{path}: unknown key {unknown[0]}; legal keys: {', '.join(LEGAL_KEYS)}")
    if not isinstance(document.get("program"), str):
        raise SweepError(f"{path}: program is missing: the script that every run starts")
    cap = document.get("run_cap")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int) or cap < 1):
        raise SweepError(f"{path}: run_cap is {cap!r}; it must be a whole number of at least 1")


def _check_rule(where: str, rule: Any, method: str) -> None:
    """Refuse a constraint of a parameter that is not legal."""
    if not isinstance(rule, dict) or not rule:
        raise SweepError(f"{where}: values or value is expected, not {rule!r}")
    if "parameters" in rule:
        raise SweepError(f"{where}: nested parameters are not legal here; write dotted names")
    values = rule.get("values")
    if values is not None and (not isinstance(values, list) or not values):
        raise SweepError(f"{where}.values is {values!r}; it must be a list of at least one value")
    kind = _distribution(rule)
    if kind is None:
        raise SweepError(f"{where}: give values, value, or min and max")
    if kind not in DISTRIBUTIONS:
        raise SweepError(f"{where}.distribution is {kind!r}; legal: {', '.join(DISTRIBUTIONS)}")
    if method == "grid" and kind not in ("constant", "categorical"):
        raise SweepError(f"{where}: a grid needs values or value, not a distribution")
    if not _is_plain(values if values is not None else rule.get("value")):
        raise SweepError(f"{where}: a value that JSON cannot hold, such as !!binary")
    needed = {"categorical": "values", "constant": "value"}.get(kind)
    if needed is not None and needed not in rule:
        raise SweepError(f"{where}: {kind} needs {needed}")
    if "probabilities" in rule:
        _check_weights(f"{where}.probabilities", rule["probabilities"], len(values or ()))
    _check_range(where, rule, kind)


def _check_weights(where: str, weights: Any, count: int) -> None:
    if not _are_numbers(weights) or len(weights) != count:
        raise SweepError(f"{where}: a number for each of the values is expected")
    if min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise SweepError(f"{where}: no number may be below 0, and one must be above 0")


def _check_range(where: str, rule: Mapping[str, Any], kind: str) -> None:
    numbers = [rule[key] for key in ("mu", "sigma", "q") if key in rule]
    if not _are_numbers(numbers) or not all(map(math.isfinite, numbers)):
        raise SweepError(f"{where}: mu, sigma and q must be numbers")
    if not rule.get("q", 1) > 0:
        raise SweepError(f"{where}: q is {rule['q']!r}; it must be above 0")
    if kind in ("constant", "categorical", "normal", "q_normal"):
        return
    low: Any = rule.get("min")
    high: Any = rule.get("max")
    if not _are_numbers([low, high]) or not low <= high:
        raise SweepError(
            f"{where}: min {low!r} and max {high!r}; two numbers in order are expected"
        )
    if kind == "int_uniform" and not (isinstance(low, int) and isinstance(high, int)):
        raise SweepError(f"{where}: min {low!r} and max {high!r}; whole numbers for int_uniform")
    if kind == "log_uniform" and not high < _MOST_LOG:
        raise SweepError(f"{where}: max is {high!r}; it must be below {_MOST_LOG:g} (value: e^max)")
    if kind == "log_uniform_values" and not low > 0:
        raise SweepError(f"{where}: min is {low!r}; log_uniform_values needs min above 0")


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _are_numbers(values: Any) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
        for value in values
    )


def _distribution(rule: Mapping[str, Any]) -> str | None:
    """The distribution of a rule; W&B's default if it names none."""
    if "distribution" in rule:
        return str(rule["distribution"])
    if "value" in rule:
        return "constant"
    if "values" in rule:
        return "categorical"
    if "min" in rule and "max" in rule:
        whole = isinstance(rule["min"], int) and isinstance(rule["max"], int)
        return "int_uniform" if whole else "uniform"
    return None


def _grid_values(rule: Mapping[str, Any]) -> list[Any]:
    return list(rule["values"]) if "values" in rule else [rule["value"]]


def _sample(rule: Mapping[str, Any], generator: random.Random) -> Any:
    """One draw."""
    kind = _distribution(rule)
    if kind == "constant":
        return rule["value"]
    if kind == "categorical":
        return generator.choices(rule["values"], weights=rule.get("probabilities"))[0]
    if kind in ("normal", "q_normal"):
        value = generator.gauss(float(rule.get("mu", 0.0)), float(rule.get("sigma", 1.0)))
    else:
        low, high = rule["min"], rule["max"]
        if kind == "int_uniform":
            return generator.randint(low, high)
        if kind == "log_uniform_values":
            return math.exp(generator.uniform(math.log(low), math.log(high)))
        value = generator.uniform(low, high)
        if kind == "log_uniform":
            return math.exp(value)
    if kind in ("q_uniform", "q_normal"):
        step = rule.get("q", 1)
        value = round(value / step) * step
    return value
