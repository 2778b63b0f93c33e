"""The run configuration: the union of the rooms' configs, read from YAML and ``key=value``.

Unknown keys are errors that name their path and the legal keys; types and ranges are checked by
pydantic and by each config's own ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from omnisparse.config.yaml_core import read_argument, read_yaml, write_yaml
from omnisparse.data.batching import DataConfig
from omnisparse.errors import OmnisparseError, Range, check_ranges
from omnisparse.methods import MethodConfig, SandwichConfig
from omnisparse.models import LasConfig, TransducerConfig
from omnisparse.sparsity.layer_limit import parse_layer_limit
from omnisparse.synthetic.corpus import SyntheticConfig
from omnisparse.training.config import TrainingConfig
from omnisparse.training.tracking import TrackingConfig

MAX_SEED = 2**63 - 1
"""Largest seed that torch's generators accept unchanged."""


_NO_NAMES = ("latest", "None", "none", "null")
"""Names that no run may have: the link to the newest run, and words that mean "no name"."""
_EMBEDDED = SyntheticConfig()
"""The default embedded corpus. An equal corpus in the configuration counts as requested."""


class ConfigError(OmnisparseError):
    """A configuration that cannot be used (bad usage: exit code 2)."""

    exit_code = 2
    on_every_process = True


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """Corpora for training, development and test: an embedded corpus, manifests, or both."""

    synthetic: SyntheticConfig | None = _EMBEDDED
    """Embedded corpus, made when it is missing; null for none. If this key is left out, the corpus
    is used only without ``train`` manifests; to train on both, give both keys."""
    base: str = "."
    """Base folder of relative paths in ``train``, ``dev`` and ``test``."""
    train: tuple[str, ...] = ()
    """Training manifests (NeMo JSONL or lhotse cuts) or folders of shards."""
    dev: tuple[str, ...] = ()
    """Manifests to tune on."""
    test: tuple[str, ...] = ()
    """Manifests to report on, each separately."""
    root: str = "data"
    """Folder for embedded corpora and computed features."""

    def __post_init__(self) -> None:
        """Leave out the embedded corpus if it was not requested; check that there is a corpus."""
        if self.train and self.synthetic is _EMBEDDED:
            object.__setattr__(self, "synthetic", None)
        if self.synthetic is None and not self.train:
            raise ValueError("corpus has neither 'synthetic' nor 'train' manifests")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything that determines a training run."""

    name: str = "supernet"
    """Name of the run directory below ``runs/``."""
    seed: Annotated[int, Range(minimum=0, maximum=MAX_SEED)] = 0
    """Seed of initialisation, data order, augmentation, dropout and subnet draws."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """Corpora."""
    data: DataConfig = field(default_factory=DataConfig)
    """Features, augmentation, batches, vocabulary."""
    model: Annotated[LasConfig | TransducerConfig, Field(discriminator="kind")] = field(
        default_factory=LasConfig
    )
    """Architecture."""
    method: Annotated[MethodConfig, Field(discriminator="kind")] = field(
        default_factory=SandwichConfig
    )
    """Training method."""
    license: str | None = None
    """Licence of the weights as model hubs know it, such as apache-2.0; for the model card."""
    init: str | None = None
    """Run, artifact or checkpoint folder with the initial weights: a net of the same shape, or the
    same net without projections, which is then factorised by truncated SVD; null for random
    weights. ``torchaudio:PATH`` reads a net of torchaudio's ``emformer_rnnt``, ``nemo:PATH`` an
    LSTM transducer of NeMo."""
    reduce_init: bool = False
    """Whether ``init`` may also be a larger net of the same kind, of which only a part is taken:
    some of its layers, some of their units, or products of a lower rank."""
    max_layer_parameters: str | int | None = None
    """Most parameters of any recurrent layer, such as 4M; null for no limit."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimizer, schedule, length."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Experiment tracking."""

    def __post_init__(self) -> None:
        """Check the name, which becomes a folder name, and the seed."""
        if self.name in _NO_NAMES:
            raise ValueError(f"name is {self.name!r}; it must not be one of {', '.join(_NO_NAMES)}")
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name is {self.name!r}; it must be a plain folder name")
        check_ranges(self)
        if self.data.statistics == "init" and self.init is None:
            raise ValueError(
                "data.statistics is 'init' without init; legal: auto, own, or init=RUN"
            )
        if self.reduce_init and self.init is None:
            raise ValueError("reduce_init is true without init; legal: init=RUN")
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", self.license):
            raise ValueError(f"license is {self.license!r}; a hub's name of one, as apache-2.0")
        if self.max_layer_parameters is not None:
            parse_layer_limit(self.max_layer_parameters)


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run configuration.

    Args:
        path: YAML file; None for the embedded default.
        overrides: ``dotted.key=value`` strings, the value in YAML syntax; ``method=dense`` and
            ``model=transducer`` choose a kind with its defaults.

    Raises:
        ConfigError: If the file cannot be read, a key is unknown or a value is not legal.
    """
    document: Any = {}
    if path is not None:
        try:
            document = read_yaml(path.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML ({_one_line(error)})") from error
    if document is None:
        raise ConfigError(
            f"{path}: the file is empty; legal: keys of docs/keys.md, {{}} for defaults"
        )
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a mapping is expected, not {type(document).__name__}")
    _apply_all(document, overrides)
    return config_from_dict(document, source=str(path) if path else "configuration")


def override_config(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return ``config`` changed by ``dotted.key=value`` strings, as in :func:`load_config`.

    Raises:
        ConfigError: If a key is unknown or a value is not legal.
    """
    document = config_to_dict(config)
    _apply_all(document, overrides)
    return config_from_dict(document)


def config_from_dict(document: Mapping[str, Any], *, source: str = "configuration") -> RunConfig:
    """Build and validate a run configuration from plain data.

    Raises:
        ConfigError: If a key is unknown or a value is not legal.
    """
    document = {key: _with_kind(key, value) for key, value in document.items()}
    _check_keys(RunConfig, document, "")
    try:
        return _adapter().validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or source
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {message} (given: {_short(first.get('input'))})") from error


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """Return ``config`` as plain data for YAML and JSON."""
    return _plain(dataclasses.asdict(config))  # type: ignore[no-any-return]


def config_to_yaml(config: RunConfig) -> str:
    """Return ``config`` as YAML with every value resolved."""
    return write_yaml(config_to_dict(config))


def _with_kind(key: str, value: Any) -> Any:
    """Fill in the default ``kind`` if a section of a union does not name one."""
    default = {"model": LasConfig().kind, "method": SandwichConfig().kind}.get(key)
    if default is None or not isinstance(value, Mapping) or "kind" in value:
        return value
    return {"kind": default, **value}


@cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def parse_value(key: str, text: str) -> Any:
    """The value of an override: YAML 1.2, as in a configuration file, and Python's ``None``.

    Raises:
        ConfigError: If it is not YAML; the message names ``key``.
    """
    try:
        return read_argument(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"'{key}={text}': the value is not YAML ({_one_line(error)})") from error


def _apply_all(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply overrides; if they set train manifests, the embedded corpus is switched off."""
    before = document.get("corpus")
    had_manifests = bool(before.get("train")) if isinstance(before, Mapping) else False
    for override in overrides:
        _apply(document, override)
    corpus = document.get("corpus")
    keys = [override.removeprefix("--").partition("=")[0] for override in overrides]
    asked = any(key == "corpus.synthetic" or key.startswith("corpus.synthetic.") for key in keys)
    if not had_manifests and not asked and isinstance(corpus, dict) and corpus.get("train"):
        corpus.pop("synthetic", None)


def _apply(document: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in ``document``."""
    key, equals, text = override.removeprefix("--").partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: an override is written key=value")
    value = parse_value(key, text)
    *parents, last = key.split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{key}: {parent!r} holds a value, not a section")
        node = child
    if not parents and last in {"model", "method"} and isinstance(value, str):
        value = {"kind": value}  # a new kind starts from its own defaults
    node[last] = value


def _check_keys(owner: type, document: Any, path: str) -> None:
    """Raise for the first key of ``document`` that is not a field of dataclass ``owner``."""
    if not isinstance(document, Mapping):
        return  # pydantic reports the wrong type
    hints = get_type_hints(owner, include_extras=True)
    names = [item.name for item in fields(owner)]
    for key, value in document.items():
        if key not in names:
            where = path or "the configuration"
            raise ConfigError(
                f"unknown key {path + '.' if path else ''}{key};{_meant(str(key), path)} "
                f"legal keys of {where}: {', '.join(names)}"
            )
        child = _dataclass_of(hints[key], value)
        if child is not None:
            _check_keys(child, value, f"{path}.{key}" if path else str(key))


def _meant(key: str, path: str) -> str:
    """`` did you mean a.b?`` for a key that is nearly one of this section, or stands elsewhere."""
    known = _known_keys()
    if path in known.get(key, ()):
        return f" another {path}.kind has it;"
    near = get_close_matches(key, [name for name, places in known.items() if path in places], 1)
    if near:
        return f" did you mean {path + '.' if path else ''}{near[0]}?"
    places = sorted(known.get(key, ()))
    return f" did you mean {' or '.join(f'{p}.{key}' if p else key for p in places)}?" * bool(
        places
    )


@cache
def _known_keys() -> dict[str, set[str]]:
    """Every key of the configuration with the paths of the sections that have it."""
    known: dict[str, set[str]] = {}

    def add(owner: type, path: str) -> None:
        hints = get_type_hints(owner, include_extras=True)
        for item in fields(owner):
            known.setdefault(item.name, set()).add(path)
            for child in _dataclasses_in(hints[item.name]):
                add(child, f"{path}.{item.name}" if path else item.name)

    add(RunConfig, "")
    return known


def _dataclasses_in(hint: Any) -> list[type]:
    """The dataclasses among the options of a type."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    options = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    return [option for option in options if isinstance(option, type) and is_dataclass(option)]


def _dataclass_of(hint: Any, value: Any) -> type | None:
    """The dataclass for ``value``; for unions its ``kind`` decides."""
    owners = _dataclasses_in(hint)
    if len(owners) == 1:
        return owners[0]
    kind = value.get("kind") if isinstance(value, Mapping) else None
    for owner in owners:
        if any(item.name == "kind" and item.default == kind for item in fields(owner)):
            return owner
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
