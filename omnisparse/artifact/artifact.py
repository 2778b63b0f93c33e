"""The artifact: a directory that holds one deployable net, written completely or not at all.

``config.json``, ``model.safetensors``, ``tokenizer.model`` and ``tokens.txt`` are the net; their
bytes are "the bytes of the artifact". ``README.md`` is a model card for people; it is not counted,
not read and has no checksum. Nothing is pickled.

``config.json`` holds the checksums of the other three files and of itself (computed with its own
digest replaced by zeros), so any changed byte of the four files is detected. Beside our
``omnisparse`` block it has a ``quantization_config`` of compressed-tensors if that package can read
the file: bit-masks without blocks in fp32, fp16 or bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnisparse import atomic
from omnisparse.artifact.bitmask import Block
from omnisparse.artifact.card import render_card
from omnisparse.artifact.contents import (
    CONFIG,
    WEIGHTS,
    ArtifactPlan,
    Contents,
    Spec,
)
from omnisparse.artifact.packing import CountError, TensorPacker, count_kept
from omnisparse.artifact.reading import Artifact, is_artifact, read_artifact
from omnisparse.artifact.stored import StoredTensor
from omnisparse.artifact.tensorfile import Array, TensorFileWriter
from omnisparse.artifact.tensors import as_array
from omnisparse.sparsity.report import SizeReport
from omnisparse.sparsity.selection import Rows, kept_rows

PACKING_THREADS = 2
"""Tensors that are packed, and so in memory, at the same time."""

FINISHING_THREADS = 8
"""Files that are hashed or synced to the disk at the same time; this is mostly waiting."""

__all__ = [
    "Artifact",
    "ArtifactInfo",
    "is_artifact",
    "planned_bytes",
    "read_artifact",
    "write_artifact",
    "write_plans",
]


@dataclass(frozen=True)
class ArtifactInfo:
    """Counts of the written files.

    A bit-mask does not store a weight that is exactly zero, and such a weight never counts as
    non-zero, even if it was to be kept.

    Attributes:
        path: The directory.
        bytes: Bytes of all files except the card.
        report: Counts of the whole net.
        layers: Counts of each tensor, without buffers.
    """

    path: Path
    bytes: int
    report: SizeReport
    layers: tuple[StoredTensor, ...]

    @property
    def parameters(self) -> int:
        """Parameters of the dense net."""
        return self.report.dense_parameters

    @property
    def nonzero(self) -> int:
        """Non-zero prunable weights plus every parameter that is never pruned."""
        return self.report.nonzero

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is zero."""
        return self.report.sparsity

    def to_dict(self) -> dict[str, Any]:
        """JSON view; ``layers`` are those that :func:`inspect_artifact` recounts."""
        return {
            "path": str(self.path),
            "parameters": self.parameters,
            "nonzero": self.nonzero,
            "sparsity": self.sparsity,
            "bytes": self.bytes,
            **self.report.summary(),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def planned_bytes(state: Mapping[str, Any], num_kept: Mapping[str, int], **contents: Any) -> int:
    """Exact bytes of the artifact that :func:`write_artifact` would write; no weight is read.

    Args:
        state: Only names, shapes and dtypes are used; meta tensors are enough.
        num_kept: Kept weights of every prunable tensor (with blocks: weights in kept blocks).
        **contents: The other arguments of :func:`write_artifact`, from ``model`` to ``buffers``.

    Returns:
        Bytes of all files but ``README.md``.

    Raises:
        ValueError: As :func:`write_artifact`.
    """
    return Contents(**contents).plan(state, num_kept).size_bytes()


def write_artifact(
    out: Path,
    *,
    state: Mapping[str, Any],
    model: Mapping[str, Any],
    tokenizer: bytes,
    tokens_txt: str,
    features: Mapping[str, Any],
    spec: Spec | None = None,
    precision: str = "fp32",
    block: Block = (1, 1),
    format: str = "bitmask",
    wer: Mapping[str, Any] | None = None,
    dense_parameters: int,
    prunable: Sequence[str],
    source: Mapping[str, Any],
    buffers: Sequence[str] = (),
    single: Sequence[str] = (),
    num_kept: Mapping[str, int] | None = None,
) -> ArtifactInfo:
    """Pack a net into a directory, atomically.

    Args:
        out: The directory. An existing artifact there is replaced; anything else there is an error.
        state: The dense state dict with pruned weights exactly 0: tensors, or arrays (uint16: bits
            of bfloat16). Two threads read two of them at a time, so a mapping that makes its
            tensors on demand keeps memory small.
        model: Configuration of the model (``kind``, its fields, ``input_dim``, ``vocab_size``), as
            JSON.
        tokenizer: The bytes of ``tokenizer.model``.
        tokens_txt: The text of ``tokens.txt``.
        features: Configuration of the feature extractor, as JSON.
        spec: The subnet's description; it is only recorded.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8`` (symmetric, a scale per row).
        block: Block of the masks; ``(1, 1)`` is unstructured.
        format: ``bitmask``, or ``dense``, which also stores zeros, for loaders without masks.
        wer: Known word error rates in percent by test set, for the record and the card.
        dense_parameters: Parameters of the dense net; must equal the number in ``state`` without
            ``buffers``.
        prunable: Names of the tensors that were pruned; all others count and are stored in full.
        source: Origin of the net (run, step, commit), as JSON.
        buffers: Names in ``state`` that are not parameters and so not counted.
        single: Names of prunable tensors whose masks are of single weights, whatever ``block`` is.
        num_kept: Non-zero weights of every prunable tensor if already known; this saves
            a pass over ``state``.

    Returns:
        Place, counts and bytes; ``bytes`` equals :func:`planned_bytes`.

    Raises:
        ValueError: If an argument is illegal, or a weight is not finite or too large for the
            precision.
        OmnisparseError: If ``out`` exists and is not an artifact, or writing fails; nothing has
            changed then.
    """
    contents = Contents(
        model=model,
        tokenizer=tokenizer,
        tokens_txt=tokens_txt,
        features=features,
        spec=spec,
        precision=precision,
        block=block,
        format=format,
        wer=wer,
        dense_parameters=dense_parameters,
        prunable=prunable,
        source=source,
        buffers=buffers,
        single=single,
    )
    if num_kept is not None:
        try:
            return write_plans([(Path(out), contents.plan(state, num_kept))], state)[0]
        except CountError:
            pass  # a kept weight is zero: count again
    counts = {
        fqn: count_kept(state[fqn], contents.block_of(fqn)) for fqn in prunable if fqn in state
    }
    return write_plans([(Path(out), contents.plan(state, counts))], state)[0]


def write_plans(
    jobs: Sequence[tuple[Path, ArtifactPlan]],
    state: Mapping[str, Any],
    select: Callable[[str, Array], Iterable[Rows]] | None = None,
) -> list[ArtifactInfo]:
    """Write one or many artifacts in one pass over the weights.

    Args:
        jobs: Directory and plan of each artifact.
        state: Arrays or tensors by name; each is read once.
        select: For a name and its array, the weights that the jobs keep, in their order. Default:
            all weights.

    Raises:
        ValueError: If a weight cannot be stored.
        CountError: If a tensor does not have the planned number of non-zeros.
        OmnisparseError: If a directory exists and is not an artifact, or writing fails.
    """
    plans = [{tensor.fqn: tensor for tensor in plan.tensors} for _, plan in jobs]
    sizes = {fqn: math.prod(tensor.shape) for fqn, tensor in plans[0].items()}
    block = jobs[0][1].contents.block  # no chunk may end within one
    with ExitStack() as stack:
        places = [stack.enter_context(ExitStack()) for _ in jobs]
        folders = [
            place.enter_context(atomic.replaced_directory(out, is_artifact))
            for place, (out, _) in zip(places, jobs, strict=True)
        ]
        writers = [
            place.enter_context(
                TensorFileWriter(
                    folder / WEIGHTS,
                    [field for tensor in plan.tensors for field in tensor.fields],
                    plan.header_bytes,
                )
            )
            for place, folder, (_, plan) in zip(places, folders, jobs, strict=True)
        ]

        def pack(fqn: str) -> None:
            packers = [
                TensorPacker(plan[fqn], writer) for plan, writer in zip(plans, writers, strict=True)
            ]
            array = as_array(state[fqn])
            for rows in kept_rows(array, block=block) if select is None else select(fqn, array):
                for index, packer in enumerate(packers):
                    packer.add(rows, index)
            for packer in packers:
                packer.finish()

        # Ranking, packing, writing, hashing and waiting for the disk release the interpreter lock.
        # The largest tensors first, so that both threads end at about the same time.
        with ThreadPoolExecutor(PACKING_THREADS) as pool:
            list(pool.map(pack, sorted(sizes, key=lambda fqn: -sizes[fqn])))
        with ThreadPoolExecutor(FINISHING_THREADS) as pool:
            # In pairs: one thread waits for the disk while another hashes.
            pairs = [(pool.submit(writer.finish), pool.submit(writer.digest)) for writer in writers]
            for synced, _ in pairs:
                synced.result()
            digests = [digest.result() for _, digest in pairs]
            written = list(pool.map(_finish, jobs, folders, digests))
            # All are complete: move each to its final place, which again is waiting for the disk.
            list(pool.map(ExitStack.close, places))
        return written


def _finish(job: tuple[Path, ArtifactPlan], folder: Path, digest: str) -> ArtifactInfo:
    out, plan = job
    atomic.write_synced(folder / CONFIG, plan.config(digest))
    for name, data in plan.texts.items():
        atomic.write_synced(folder / name, data)
    size = sum(path.stat().st_size for path in folder.iterdir())
    report = plan.report()
    card = render_card(plan.block(), report, size_bytes=size)
    atomic.write_synced(folder / "README.md", card.encode())
    return ArtifactInfo(out, size, report, tuple(plan.layers()))
