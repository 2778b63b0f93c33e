"""Packed files of any module: one size written, and read back into a module of the same shape.

The folder is an artifact as those of recognisers are, without a tokenizer. A weight of more than
two dimensions, as of a convolution, is stored as the matrix ``[first, product of the others]``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from omnisparse.artifact import (
    MODULE_KIND,
    Contents,
    Extraction,
    is_artifact,
    planned_bytes,
    read_artifact,
    write_extractions,
)
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.generic.statistics import has_statistics, recalibrate
from omnisparse.sparsity.allocation import Scope
from omnisparse.sparsity.budget import matrix_shape, num_parameters
from omnisparse.sparsity.keys import Norm, parse_block
from omnisparse.sparsity.space import SubnetSpec
from omnisparse.sparsity.supernet import Supernet

Module = TypeVar("Module", bound=nn.Module)

_RESERVED = ("bitmask", "block_bitmask", "compressed", "shape", "block", "row_offsets", "scale")
"""Suffixes by which a packed matrix is stored."""


def extract_module(
    model: nn.Module,
    *,
    out: Path | str,
    size: str | int | None = None,
    sparsity: float | None = None,
    spec: SubnetSpec | None = None,
    prunable: list[str] | None = None,
    precision: str = "fp32",
    block: str | None = None,
    norm: Norm = "l1",
    scope: Scope = "layer",
    floor: float = 0.0,
    format: str = "bitmask",
    calibrate: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Write one size of a module or of its supernet as a packed folder.

    Args:
        model: A :class:`Supernet`, or any module: its weights are ranked as they are, which prunes
            a net that was not trained for it.
        out: The folder. An artifact there is replaced; anything else there is an error.
        size: ``500K`` or a whole number of non-zeros of the whole model, ``2MB`` of the files,
            ``25%`` of the dense parameters.
        sparsity: Share of the prunable weights that becomes zero. Exactly one of ``size``,
            ``sparsity`` and ``spec`` is given.
        spec: A subnet.
        prunable: Matrices to prune of a module; a supernet has its own.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8`` (matrices; vectors stay fp32).
        block: ``1x1``, ``8x1``, ``16x1`` or ``4x4``, of a module; a supernet has its own.
        norm: Score of a block, of a module.
        scope: How matrices share the total; see :func:`omnisparse.pipeline.extract.extract`.
        floor: Least density of any matrix.
        format: ``bitmask``, or ``dense``, which stores zeros too.
        calibrate: Arguments of the model for some batches, from which the running statistics of
            batch normalisation are computed for this size (those of the dense net do not fit it);
            see :func:`omnisparse.generic.statistics.recalibrate`. The model keeps its own.

    Returns:
        ``path, parameters, nonzero, sparsity, bytes, seconds, warnings``, the counts of
        ``SizeReport.summary``, and ``layers``; all counted from what was written. A tied matrix
        counts once.

    Raises:
        ValueError: If the model cannot have the size (names the legal range), or a tensor cannot
            be stored.
        OmnisparseError: If ``out`` exists and is no artifact, or writing fails.
    """
    started = time.perf_counter()
    if isinstance(model, Supernet):
        supernet = model
        if prunable is not None or block is not None:
            raise ValueError("prunable and block are the supernet's own: give them to Supernet")
    else:
        shape = parse_block(block or "1x1")
        supernet = Supernet(model, prunable=prunable, block=shape, norm=norm)
    contents, state = _contents(supernet, precision, format)
    numel = supernet.budget.prunable

    def size_of(kept: Mapping[str, int]) -> int:
        planned = replace(contents, spec=SubnetSpec.from_counts(kept, numel))
        return planned_bytes(state, kept, **vars(planned))

    if spec is None:
        spec = supernet.spec_for(
            size,
            sparsity=sparsity,
            scope=scope,
            floor=floor,
            size_of=size_of,
        )
    elif size is not None or sparsity is not None:
        raise ValueError("exactly one of size, sparsity and spec must be given")
    kept = spec.counts(numel)
    warnings = []
    if calibrate is not None:
        state |= _calibrated(supernet, spec, calibrate)
    elif has_statistics(supernet.model):
        warnings.append(
            "the running statistics of batch normalisation are the dense net's: give some batches "
            "as calibrate=[...], without which a small size may be far from its accuracy"
        )
    job = Extraction(out=Path(out), num_kept=kept, contents=replace(contents, spec=spec))
    (info,) = write_extractions(state, [job], norm=supernet.norm)
    seconds = time.perf_counter() - started
    return {**info.to_dict(), "warnings": warnings, "seconds": seconds}


def _contents(
    supernet: Supernet, precision: str, format: str
) -> tuple[Contents, dict[str, Tensor]]:
    """What an artifact of the net holds, and its tensors as they are stored."""
    model = supernet.model
    owners = {id(parameter): fqn for fqn, parameter in model.named_parameters()}
    parameters = dict(model.named_parameters())
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = {fqn: owners[id(one)] for fqn, one in every.items() if owners[id(one)] != fqn}
    buffers: dict[str, Tensor] = {}
    for fqn, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{fqn} is no tensor, which a packed file cannot hold")
        if fqn not in every:
            buffers[fqn] = value
    state = {fqn: one.detach() for fqn, one in {**parameters, **buffers}.items()}
    names = set(state)
    shapes = {}
    for fqn in supernet.prunable:
        taken = {f"{fqn.removesuffix('.weight')}.{suffix}" for suffix in _RESERVED} & names
        if taken:
            raise ValueError(f"{min(taken)}: its name is that of a part of {fqn} when packed")
        if state[fqn].ndim > 2:
            shapes[fqn] = list(state[fqn].shape)
            state[fqn] = state[fqn].reshape(matrix_shape(state[fqn].shape))
    contents = Contents(
        model={
            "kind": MODULE_KIND,
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "tied": tied,
            "shapes": shapes,
        },
        features={},
        tokenizer=b"",
        tokens_txt="",
        dense_parameters=num_parameters(parameters),
        prunable=supernet.prunable,
        source={},
        precision=precision,
        block=supernet.block,
        single=[fqn for fqn in supernet.prunable if fqn in supernet.single],
        format=format,
        buffers=list(buffers),
    )
    return contents, state


def _calibrated(supernet: Supernet, spec: SubnetSpec, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Buffers of the net with the running statistics of a subnet; the net keeps its own."""
    model = supernet.model
    before = {fqn: buffer.clone() for fqn, buffer in model.named_buffers()}
    try:
        with supernet.squashed(spec) as squashed:
            recalibrate(squashed, batches)
        held = set(model.state_dict())
        return {fqn: one.clone() for fqn, one in model.named_buffers() if fqn in held}
    finally:
        with torch.no_grad():
            for fqn, buffer in model.named_buffers():
                buffer.copy_(before[fqn])


def load_packed(path: Path | str, model: Module) -> Module:
    """Load a packed folder into a module of the shape from which it was extracted.

    Args:
        path: What :func:`omnisparse.extract` wrote of a module, from anyone: every byte is checked,
            nothing is unpickled.
        model: A module with the same parameters and buffers; it is changed only after all checks.
            Its own dtypes and devices stay.

    Returns:
        ``model``, whose pruned weights are exactly zero.

    Raises:
        OmnisparseError: If the folder is no such artifact, or is damaged, or its tensors are not
            those of ``model``: names the first that differs.
    """
    path = Path(path)
    if not is_artifact(path):
        raise OmnisparseError(f"{path}: no packed folder (config.json and model.safetensors)")
    artifact = read_artifact(path)
    if artifact.model.get("kind") != MODULE_KIND:
        raise OmnisparseError(
            f"{path}: a recogniser of kind {artifact.model.get('kind')!s:.40}; "
            "omnisparse.load_model and Recognizer.from_path load it"
        )
    tied, shapes = (_mapping(artifact.model, key, path) for key in ("tied", "shapes"))
    state = dict(artifact.state)
    for fqn, shape in shapes.items():
        try:
            state[fqn] = state[fqn].reshape(shape)
        except (KeyError, RuntimeError, TypeError) as error:
            raise FormatError(f"{path}: config.json: shapes does not fit {fqn!s:.80}") from error
    for fqn, owner in tied.items():
        if owner not in state or fqn in state:
            raise FormatError(f"{path}: config.json: tied does not fit {fqn!s:.80}")
        state[fqn] = state[owner]
    _check_fits(path, model, state, tied)
    model.load_state_dict(state)
    return model


def _mapping(model: Mapping[str, Any], key: str, path: Path) -> Mapping[str, Any]:
    found = model.get(key, {})
    if not isinstance(found, Mapping):
        raise FormatError(f"{path}: config.json: {key} is no table")
    return found


def _check_fits(
    path: Path, model: nn.Module, state: Mapping[str, Tensor], tied: Mapping[str, Any]
) -> None:
    """Refuse tensors that are not those of the module."""
    theirs = {fqn: list(one.shape) for fqn, one in state.items()}
    ours = {fqn: list(one.shape) for fqn, one in model.state_dict().items()}
    for fqn in [*ours, *theirs]:
        if theirs.get(fqn) != ours.get(fqn):
            raise OmnisparseError(
                f"{path}: {fqn} is {theirs.get(fqn) or 'absent'} in the file and "
                f"{ours.get(fqn) or 'absent'} in the model; legal: a model of the same shape"
            )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first = {id(one): fqn for fqn, one in reversed(parameters.items())}
    for fqn, parameter in parameters.items():
        owner = first[id(parameter)]
        if tied.get(fqn, fqn) != owner:
            one, other = ("the file", "the model") if fqn in tied else ("the model", "the file")
            raise OmnisparseError(
                f"{path}: {fqn} is tied to {tied.get(fqn, owner)} in {one}, but not in {other}"
            )
