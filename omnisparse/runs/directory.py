"""Run directories, and MODEL: the run or artifact that commands read.

``runs/<name>/`` holds ``config.yaml`` (resolved), ``model.json`` (needed to read a checkpoint),
``metrics.jsonl``, ``checkpoints/``, ``tokenizer.model`` and ``tokens.txt``; ``runs/latest`` links
to the newest run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.runs.description import DESCRIPTION
from omnisparse.runs.description import RunDescription as RunDescription
from omnisparse.runs.description import read_description as read_description
from omnisparse.runs.description import write_description as write_description

if TYPE_CHECKING:
    from torch import Tensor

    from omnisparse.artifact import Artifact, MappedState
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer
    from omnisparse.models import SpeechModel

RUNS = Path("runs")
WEIGHTS = "model.safetensors"
"""File of the weights in a checkpoint."""


@dataclass(frozen=True)
class LoadedModel:
    """A net ready to recognise, with its features and tokenizer."""

    model: SpeechModel
    tokenizer: Tokenizer
    extractor: FeatureExtractor
    kind: Literal["run", "artifact", "nested"]
    path: Path | str
    trained_seconds: float | None = None
    """Longest utterance that it was trained on; None where that is not recorded."""

    @property
    def cut_above(self) -> float | None:
        """Length in seconds above which audio must be cut; None where none need be."""
        from omnisparse.data.pauses import cut_length

        return cut_length(self.trained_seconds, streams=self.model.streams)


def extractor_of(run: Path) -> FeatureExtractor:
    """The features that the net of ``run`` reads, with the statistics that normalise them.

    Raises:
        FormatError: If ``run`` is not a run directory, or damaged.
    """
    from omnisparse.data.features import FeatureExtractor

    return _extractor(FeatureExtractor, read_description(run).features, run)


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
    """Let ``runs/latest`` point to ``run`` (anywhere on the disk), atomically."""
    link = RUNS / "latest"
    if link.exists() and not link.is_symlink():
        return  # the user has a folder of that name
    RUNS.mkdir(parents=True, exist_ok=True)
    partial = RUNS / f".latest.{os.getpid()}"
    partial.unlink(missing_ok=True)
    target = run.resolve()
    inside = target.parent == RUNS.resolve()
    partial.symlink_to(target.name if inside else target)
    os.replace(partial, link)


def newest_checkpoint(run: Path) -> tuple[Path, dict[str, Any]]:
    """Find the newest checkpoint of ``run`` with complete weights, and its ``state.json``.

    Only the size of the file and its header are checked: reading every byte would take longer than
    an extraction.

    Raises:
        FormatError: If there is no complete checkpoint.
    """
    from omnisparse.artifact import MappedState
    from omnisparse.training.checkpoint import list_checkpoints, read_state, tensor_file

    checkpoints = list_checkpoints(run / "checkpoints")
    if not checkpoints:
        raise FormatError(f"{run}: the run has no checkpoint")
    failure: FormatError | None = None
    for path in reversed(checkpoints):
        try:
            document = read_state(path)
            MappedState(tensor_file(path, WEIGHTS, document))
            return path, document
        except FormatError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def newest_weights(run: Path, *, with_heads: bool = False) -> tuple[MappedState, Path]:
    """Map the weights of the newest checkpoint of ``run`` into memory.

    Args:
        run: Run directory.
        with_heads: Include the layers that only training uses.

    Returns:
        The weights and the checkpoint's folder. Read all other files from this folder, because a
        running training may write the next checkpoint at any moment.

    Raises:
        FormatError: If there is no complete checkpoint.
    """
    from omnisparse.artifact import MappedState

    path, _ = newest_checkpoint(run)
    description = read_description(run)
    without = [] if with_heads else description.training_only
    return MappedState(path / WEIGHTS, order=description.parameters, without=without), path


def load_model(path: Path | str, *, size: str | None = None) -> LoadedModel:
    """Load MODEL.

    Args:
        path: An artifact directory, a run directory (its dense net), a checkpoint of a run, or a
            nested file or its ``http(s)://`` address.
        size: Model of a nested file: ``16M``, ``25%``, or ``2MB`` for the largest in its first
            2 MB; None for the largest that is present.

    Raises:
        OmnisparseError: If it is none of these, or damaged, or ``size`` is given for another kind
            than a nested file.
        ValueError: If the file has no model of ``size``; names the legal range.
    """
    from omnisparse.artifact import as_tensor, is_artifact, read_recogniser
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer
    from omnisparse.nested import is_nested_place, read_nested
    from omnisparse.training.checkpoint import is_checkpoint, load_checkpoint

    if is_nested_place(path):
        return _from_artifact(read_nested(path, size), "nested", path)
    path = Path(path)
    require_directory(path)
    if size is not None:
        raise no_sizes(path, size)
    if is_artifact(path):
        return _from_artifact(read_recogniser(path), "artifact", path)
    if is_checkpoint(path):
        run = path.resolve().parents[1]
        state = load_checkpoint(path).tensors["model"]
    else:
        run = path
        if not (run / DESCRIPTION).exists():
            raise FormatError(f"{run}: neither an artifact nor a run (their files are not in it)")
        mapped, _ = newest_weights(path, with_heads=True)
        state = {name: as_tensor(array).clone() for name, array in mapped.items()}
    description = read_description(run)
    return _fitting(
        _build(description.model, state, path, ships_heads=not description.training_only),
        Tokenizer.load(run / "tokenizer.model"),
        _extractor(FeatureExtractor, description.features, path),
        "run",
        path,
        description.trained_seconds,
    )


def no_sizes(path: Path, size: str) -> OmnisparseError:
    """What is said of a size of a MODEL that has one only."""
    return OmnisparseError(
        f"{path}: size {size} goes with a nested file; of a run, "
        f"`omnisparse extract --size {size}` makes that model"
    )


def _from_artifact(
    artifact: Artifact, kind: Literal["artifact", "nested"], path: Path | str
) -> LoadedModel:
    """Build what the files hold, or the model that was read from a nested file."""
    from omnisparse.artifact.reading import trained_seconds_of
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

    return _fitting(
        _build(artifact.model, artifact.state, path),
        Tokenizer.from_bytes(artifact.tokenizer),
        _extractor(FeatureExtractor, artifact.features, path),
        kind,
        path,
        trained_seconds_of(artifact.config),
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the word pieces of MODEL (a run, a checkpoint or an artifact), or of one file.

    Raises:
        OmnisparseError: If there are none.
    """
    from omnisparse.data.tokenizer import Tokenizer
    from omnisparse.training.checkpoint import is_checkpoint

    folder = path.resolve().parents[1] if is_checkpoint(path) else path
    file = folder / "tokenizer.model" if folder.is_dir() else path
    if not file.is_file():
        raise OmnisparseError(
            f"{file}: no such file; a run, an artifact or a tokenizer.model is expected"
        )
    return Tokenizer.load(file)


def _fitting(
    model: SpeechModel,
    tokenizer: Tokenizer,
    extractor: FeatureExtractor,
    kind: Literal["run", "artifact", "nested"],
    path: Path | str,
    trained_seconds: float | None,
) -> LoadedModel:
    """Combine the parts, after checking that net, extractor and tokenizer fit together."""
    if extractor.input_dim != model.input_dim:
        raise FormatError(
            f"{path}: its features have {extractor.input_dim} values a frame, its model reads "
            f"{model.input_dim}"
        )
    if tokenizer.vocab_size < model.vocab_size:
        raise FormatError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} tokens, its model {model.vocab_size}"
        )
    return LoadedModel(model, tokenizer, extractor, kind, path, trained_seconds)


def _extractor(owner: type[FeatureExtractor], document: Any, path: Path | str) -> FeatureExtractor:
    try:
        return owner.from_dict(document)
    except (TypeError, ValueError, KeyError) as error:
        raise FormatError(f"{path}: its features cannot be used ({error})") from error


RUN_ONLY = "a RUN is the directory of a training"
"""What :func:`require_directory` says where an artifact is not legal."""


def require_directory(path: Path, legal: str = "a MODEL is an artifact or run directory") -> None:
    """Refuse a MODEL that is not a directory; where only a run is legal, say so.

    Raises:
        OmnisparseError: If ``path`` is absent or a file.
    """
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise OmnisparseError(f"{path}: {what}; {legal}")


def _build(
    model: Mapping[str, Any],
    state: Mapping[str, Tensor],
    path: Path | str,
    *,
    ships_heads: bool = True,
) -> SpeechModel:
    """Build the net of ``model`` around ``state``, without initialising weights first."""
    import torch

    from omnisparse.models import LasConfig, TransducerConfig, build_model

    fields = dict(model)
    try:
        sizes = {name: int(fields.pop(name)) for name in ("input_dim", "vocab_size")}
        config = {"las": LasConfig, "transducer": TransducerConfig}[fields["kind"]](**fields)
        for name, value in fields.items():
            if name.endswith("_layers") and value > len(state):  # building them would take hours
                raise ValueError(f"{name} is {value} with {len(state)} tensors")
        with torch.device("meta"):
            net = build_model(config, **sizes)
        net.load_state_dict(dict(state), assign=True)
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{path}: its weights do not fit its model ({reason[:200]})") from error
    net.requires_grad_(False)
    net.ships_heads = ships_heads
    return net.eval()


def inspect(path: Path | str) -> dict[str, Any]:
    """Count the content of MODEL or a nested file from its bytes.

    Args:
        path: MODEL, a nested file, or the ``http(s)://`` address of one; for an address, only the
            header is read.

    Returns:
        ``kind, parameters, nonzero, sparsity, bytes, layers``, the counts of
        ``SizeReport.summary``, and further entries for each kind of file: see
        :func:`omnisparse.artifact.inspect_artifact`, ``inspect_nested`` and ``inspect_header``.

    Raises:
        OmnisparseError: If it is none of these, or damaged.
    """
    from omnisparse.artifact import inspect_artifact, is_artifact
    from omnisparse.nested import inspect_header, inspect_nested, is_nested, is_url

    if is_url(path):
        return inspect_header(path)
    path = Path(path)
    if path.is_file() and is_nested(path):
        return inspect_nested(path)
    require_directory(path)
    return inspect_artifact(path) if is_artifact(path) else _inspect_run(path)


def _inspect_run(run: Path) -> dict[str, Any]:
    from omnisparse.artifact import MappedState, StoredTensor, report_of
    from omnisparse.sparsity.arrays import dtype_name
    from omnisparse.sparsity.budget import num_nonzero

    description = read_description(run)
    path, document = newest_checkpoint(run)
    state = MappedState(path / WEIGHTS, order=description.parameters)
    prunable = set(description.prunable)
    layers = []
    for name in description.parameters:
        weight = state[name]
        layers.append(
            StoredTensor(
                name=name,
                shape=tuple(weight.shape),
                nonzero=num_nonzero({name: weight}, prunable),
                bytes=weight.nbytes,
                dtype=dtype_name(weight),
                packing="dense",
                mask_bits=0,
                prunable=name in prunable,
            )
        )
    report = report_of(layers, 32)
    return {
        "kind": "run",
        "method": description.method,
        "step": document["step"],
        "parameters": report.dense_parameters,
        "nonzero": report.nonzero,
        "sparsity": report.sparsity,
        "bytes": (path / WEIGHTS).stat().st_size,
        **report.summary(),
        "layers": [layer.to_dict() for layer in layers],
    }
