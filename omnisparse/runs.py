"""Run directories, and MODEL: what a run or an artifact is to every command.

``runs/<name>/`` holds ``config.yaml`` (resolved), ``model.json`` (what a reader of the checkpoint
needs to know), ``metrics.jsonl``, ``checkpoints/``, ``tokenizer.model`` and ``tokens.txt``;
``runs/latest`` links to the newest.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnisparse.errors import FormatError, OmnisparseError

if TYPE_CHECKING:
    from torch import Tensor

    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer
    from omnisparse.models import SpeechModel
    from omnisparse.sparsity.budget import Budget
    from omnisparse.sparsity.space import SubnetSpec

RUNS = Path("runs")
_DESCRIPTION = "model.json"
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What the weights of a run are weights of."""

    model: dict[str, Any]
    """Configuration of the model with ``kind``, ``input_dim`` and ``vocab_size``."""
    features: dict[str, Any]
    """``FeatureExtractor.to_dict()``."""
    prunable: list[str]
    """Names of the matrices that an extraction may thin."""
    parameters: list[str]
    """Names of all parameters, in model order."""
    method: str
    """Kind of the training method."""


@dataclass(frozen=True)
class LoadedModel:
    """A net ready to recognise, with what belongs to it."""

    model: SpeechModel
    tokenizer: Tokenizer
    extractor: FeatureExtractor
    kind: Literal["run", "artifact"]
    path: Path


def write_description(run: Path, description: RunDescription) -> None:
    """Write ``model.json`` of ``run``."""
    document = {"format": _FORMAT, **asdict(description)}
    partial = run / f".{_DESCRIPTION}.{os.getpid()}"
    partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
    os.replace(partial, run / _DESCRIPTION)


def read_description(run: Path) -> RunDescription:
    """Read ``model.json`` of ``run``.

    Raises:
        FormatError: If ``run`` is not a run directory, or of an unknown format.
    """
    try:
        document = json.loads((run / _DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{run}: not a run directory (it has no {_DESCRIPTION})") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"{run / _DESCRIPTION}: cannot be read as JSON") from error
    version = document.pop("format", None) if isinstance(document, dict) else None
    if version != _FORMAT:
        raise FormatError(f"{run / _DESCRIPTION}: format {version!r}; known: {_FORMAT}")
    try:
        return RunDescription(**document)
    except TypeError as error:
        raise FormatError(f"{run / _DESCRIPTION}: {error}") from error


def latest_run() -> Path:
    """Return the run that ``runs/latest`` links to.

    Raises:
        OmnisparseError: If there is none.
    """
    link = RUNS / "latest"
    if not link.exists():
        raise OmnisparseError(f"there is no {link}: train first, or name a run with --run DIR")
    return link.resolve()


def link_latest(run: Path) -> None:
    """Let ``latest`` beside ``run`` point to it, in one step."""
    link = run.parent / "latest"
    if link.exists() and not link.is_symlink():
        return  # the user's own folder of that name
    partial = run.parent / f".latest.{os.getpid()}"
    partial.unlink(missing_ok=True)
    partial.symlink_to(run.name)
    os.replace(partial, link)


def newest_weights(run: Path) -> tuple[dict[str, Tensor], int]:
    """Map the weights of the newest checkpoint of ``run`` into memory, and tell its step.

    Only the size of the file is checked: reading every byte would cost more than an extraction.

    Raises:
        FormatError: If there is no checkpoint that is whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from omnisparse.training.checkpoint import list_checkpoints, read_state, tensor_file

    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        raise FormatError(f"{run}: the run has no checkpoint")
    failure: FormatError | None = None
    for path in reversed(checkpoints):
        try:
            document = read_state(path)
            file = tensor_file(path, "model.safetensors", document)
            return load_file(file), document["step"]
        except FormatError as error:
            failure = failure or error
        except SafetensorError as error:
            failure = failure or FormatError(f"{file}: no safetensors file ({error})")
    assert failure is not None
    raise failure


def load_model(path: Path | str) -> LoadedModel:
    """Load MODEL: an artifact directory, or a run directory (its dense net).

    Raises:
        OmnisparseError: If it is neither, or damaged.
    """
    from omnisparse.artifact import is_artifact, read_artifact
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

    path = Path(path)
    _require_directory(path)
    if is_artifact(path):
        artifact = read_artifact(path)
        return LoadedModel(
            _build(artifact.model, artifact.state, path),
            Tokenizer.from_bytes(artifact.tokenizer),
            _extractor(FeatureExtractor, artifact.features, path),
            "artifact",
            path,
        )
    description = read_description(path)
    state, _ = newest_weights(path)
    return LoadedModel(
        _build(description.model, state, path),
        Tokenizer.load(path / "tokenizer.model"),
        _extractor(FeatureExtractor, description.features, path),
        "run",
        path,
    )


def _extractor(owner: type[FeatureExtractor], document: Any, path: Path) -> FeatureExtractor:
    try:
        return owner.from_dict(document)
    except (TypeError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: its features cannot be used ({error})") from error


def _require_directory(path: Path) -> None:
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise OmnisparseError(f"{path}: {what}; a MODEL is an artifact or run directory")


def _build(model: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> SpeechModel:
    """Build the net of ``model`` around ``state``, without initialising weights first."""
    import torch

    from omnisparse.models import LasConfig, TransducerConfig, build_model

    fields = dict(model)
    try:
        sizes = {name: int(fields.pop(name)) for name in ("input_dim", "vocab_size")}
        owner = {"las": LasConfig, "transducer": TransducerConfig}[fields["kind"]]
        with torch.device("meta"):
            net = build_model(owner(**fields), **sizes)
        net.load_state_dict(dict(state), assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{path}: its weights do not fit its model ({reason[:200]})") from error
    net.requires_grad_(False)
    return net.eval()


def extract(
    run: Path | None = None,
    *,
    size: str | None = None,
    sparsity: float | None = None,
    spec: Path | None = None,
    out: Path | None = None,
    precision: str = "fp32",
    block: str = "1x1",
    format: str = "bitmask",
    wer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a deployable model of any size from a trained run, without retraining.

    Args:
        run: Run directory; None for ``runs/latest``.
        size: ``16M`` non-zeros of the whole model, ``20MB``/``20MiB`` bytes of the files, ``25%``
            of the dense net's parameters.
        sparsity: Share of the prunable weights that becomes zero, in [0, 1).
        spec: JSON file with a sparsity for each matrix. Exactly one of these three is given.
        out: Artifact directory; None for ``<run>/extracted/<what was asked>``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        block: ``1x1``, ``8x1`` or ``16x1``: weights that are kept or dropped together.
        format: ``bitmask``, or ``dense`` for loaders that know nothing of masks.
        wer: Known word error rates in percent by test set, for the model card.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds``.

    Raises:
        ValueError: If the request cannot be met; the message names the legal range.
        OmnisparseError: If the run cannot be read.
    """
    from omnisparse.artifact import write_artifact
    from omnisparse.sparsity.masks import apply_mask, mask_from_count
    from omnisparse.sparsity.space import SubnetSpec

    started = time.perf_counter()
    run = latest_run() if run is None else run
    _require_directory(run)
    description = read_description(run)
    weights, step = newest_weights(run)
    shape = parse_block(block)
    request = _Request(size, sparsity, spec, shape)
    fixed: dict[str, Any] = {
        "model": description.model,
        "features": description.features,
        "tokenizer": (run / "tokenizer.model").read_bytes(),
        "tokens_txt": (run / "tokens.txt").read_text(encoding="utf-8"),
        "precision": precision,
        "block": shape,
        "format": format,
        "wer": wer,
        "prunable": description.prunable,
        "buffers": [name for name in weights if name not in set(description.parameters)],
        "source": {"run": run.name, "step": step, "method": description.method},
    }
    kept = request.solve(description, weights, fixed)
    numel = {name: weights[name].numel() for name in kept}
    state = _MaskedState(
        weights,
        {
            name: lambda weight, count=count: apply_mask(
                weight, mask_from_count(weight, count, shape)
            )
            for name, count in kept.items()
            if count < numel[name]
        },
    )
    info = write_artifact(
        out or run / "extracted" / request.folder(),
        state=state,
        spec=SubnetSpec.from_counts(kept, numel),
        dense_parameters=sum(weights[name].numel() for name in description.parameters),
        **fixed,
    )
    return {**info.to_dict(), "seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class _Request:
    """What the user asked of an extraction."""

    size: str | None
    sparsity: float | None
    spec: Path | None
    block: tuple[int, int]

    def __post_init__(self) -> None:
        given = [v for v in (self.size, self.sparsity, self.spec) if v is not None]
        if len(given) != 1:
            raise ValueError("exactly one of size, sparsity and spec must be given")

    def folder(self) -> str:
        """A folder name for the result."""
        if self.size is not None:
            return self.size.strip().replace("%", "pct")
        return f"sparsity-{self.sparsity}" if self.spec is None else self.spec.stem

    def solve(
        self, description: RunDescription, weights: Mapping[str, Tensor], fixed: dict[str, Any]
    ) -> dict[str, int]:
        """Number of weights that each prunable matrix keeps."""
        from omnisparse.sparsity.budget import Budget, parse_size, parse_sparsity
        from omnisparse.sparsity.masks import allocate

        shapes = {name: tuple(weights[name].shape) for name in description.parameters}
        budget = Budget(shapes, description.prunable, block=self.block)
        if self.spec is not None:
            return _read_spec(self.spec).counts(budget.prunable)
        size = parse_sparsity(self.sparsity) if self.sparsity is not None else None
        size = size or parse_size(self.size or "")
        if size.kind == "bytes":
            return self._solve_bytes(budget, weights, fixed)
        total = budget.solve(size)
        prunable = {name: weights[name] for name in description.prunable}
        return allocate(prunable, total, block=self.block)

    def _solve_bytes(
        self, budget: Budget, weights: Mapping[str, Tensor], fixed: dict[str, Any]
    ) -> dict[str, int]:
        from omnisparse.artifact import planned_bytes
        from omnisparse.sparsity.masks import allocate
        from omnisparse.sparsity.space import SubnetSpec

        prunable = {name: weights[name] for name in budget.prunable}

        def split(total: int) -> dict[str, int]:
            return allocate(prunable, total, block=self.block)

        def size_of(kept: Mapping[str, int]) -> int:
            spec = SubnetSpec.from_counts(kept, budget.prunable)
            return planned_bytes(
                weights, kept, spec=spec, dense_parameters=budget.dense_parameters, **fixed
            )

        return budget.solve_bytes(self.size or "", size_of, split)


class _MaskedState(Mapping[str, "Tensor"]):
    """A state dict whose masked matrices are made when they are asked for, one at a time."""

    def __init__(self, weights: Mapping[str, Tensor], makers: Mapping[str, Any]) -> None:
        self._weights, self._makers = weights, makers

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        return self._makers[name](weight) if name in self._makers else weight

    def __iter__(self) -> Any:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def parse_block(text: str) -> tuple[int, int]:
    """Parse ``8x1`` (8 outputs by 1 input).

    Raises:
        ValueError: If it is not two whole numbers.
    """
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit()):
        raise ValueError(f"block is {text!r}; two whole numbers such as 8x1")
    return int(rows), int(columns)


def _read_spec(path: Path) -> SubnetSpec:
    from omnisparse.sparsity.space import SubnetSpec

    try:
        return SubnetSpec.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: spec is not UTF-8 text") from error


def inspect(path: Path) -> dict[str, Any]:
    """Count what MODEL holds, from its files.

    Returns:
        ``kind, parameters, nonzero, sparsity, bytes, layers``.

    Raises:
        OmnisparseError: If it is neither run nor artifact, or damaged.
    """
    from omnisparse.artifact import inspect_artifact, is_artifact

    _require_directory(path)
    return inspect_artifact(path) if is_artifact(path) else _inspect_run(path)


def _inspect_run(run: Path) -> dict[str, Any]:
    from omnisparse.training.checkpoint import list_checkpoints

    description = read_description(run)
    state, _ = newest_weights(run)
    newest = list_checkpoints(run / "checkpoints")[-1] / "model.safetensors"
    layers = [_layer(name, state[name], description.prunable) for name in description.parameters]
    parameters = sum(layer["parameters"] for layer in layers)
    nonzero = sum(layer["nonzero"] for layer in layers)
    prunable = sum(state[name].numel() for name in description.prunable)
    return {
        "kind": "run",
        "method": description.method,
        "parameters": parameters,
        "nonzero": nonzero,
        "sparsity": (parameters - nonzero) / prunable if prunable else 0.0,
        "bytes": newest.stat().st_size,
        "layers": layers,
    }


def _layer(name: str, weight: Tensor, prunable: Sequence[str]) -> dict[str, Any]:
    from omnisparse.sparsity.budget import num_nonzero

    nonzero = num_nonzero({name: weight}, prunable)
    return {
        "name": name,
        "shape": list(weight.shape),
        "parameters": weight.numel(),
        "nonzero": nonzero,
        "sparsity": 1 - nonzero / weight.numel(),
        "bytes": weight.numel() * weight.element_size(),
        "dtype": str(weight.dtype).removeprefix("torch."),
    }
