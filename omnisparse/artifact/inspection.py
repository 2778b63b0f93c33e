"""The real content of an artifact: counted from its bytes and compared with its statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.artifact.bitmask import Block
from omnisparse.artifact.contents import CONFIG, WEIGHTS, files_of
from omnisparse.artifact.decoding import Decoded, decode
from omnisparse.artifact.layout import Kept, plan_tensor
from omnisparse.artifact.packing import count_kept
from omnisparse.artifact.precision import VALUE_BITS, VALUE_DTYPES, Precision
from omnisparse.artifact.reading import check_files, check_names, read_config
from omnisparse.artifact.stored import StoredTensor, mask_bits, report_of
from omnisparse.artifact.tensorfile import TensorFile
from omnisparse.errors import FormatError
from omnisparse.sparsity.report import SizeReport

_PRECISIONS: dict[str, Precision] = {tag: name for name, tag in VALUE_DTYPES.items()}


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Count parameters, non-zeros and bytes layer by layer, without relying on metadata.

    Args:
        path: Artifact directory.

    Returns:
        ``kind`` (``"artifact"``) and ``model_kind``; as found in the tensors: ``precision`` (None
        if it is mixed), ``format`` (``bitmask`` if any tensor is packed), ``block`` (of the stored
        masks), ``parameters``, ``nonzero``, ``sparsity`` (share of zeros among the prunable
        weights), the counts of ``SizeReport.summary`` with the masks that are stored, ``layers``
        (a dict per tensor: ``name, shape, parameters, nonzero, sparsity, bytes, dtype, packing``;
        never-pruned tensors count in full; buffers are not listed); ``bytes`` (all files except the
        card); ``mismatches``, the statements of ``config.json`` that differ from the findings; and
        ``problems``, these and all other contradictions in the files (empty if there are none).

    Raises:
        FormatError: If the files cannot be read as an artifact.
    """
    path = Path(path)
    ours, problems = read_config(path)
    problems += check_files(path, ours)[2]
    file = TensorFile(path / WEIGHTS)
    try:
        check_names(file, ours)
    except FormatError as error:
        problems.append(str(error))
    found = _Findings(ours)
    for fqn in ours["fqns"]:
        try:
            found.add(decode(file, fqn))
        except FormatError as error:
            problems.append(str(error))
    report = report_of(found.layers, VALUE_BITS[found.precision] if found.precision else 32)
    mismatches = found.mismatches()
    return {
        "kind": "artifact",
        "model_kind": ours["model"].get("kind"),
        "precision": found.precision,
        "format": found.format,
        "block": list(found.block),
        "parameters": report.dense_parameters,
        "nonzero": report.nonzero,
        "sparsity": report.sparsity,
        "bytes": sum((path / name).stat().st_size for name in files_of(ours["model"])),
        **(report.summary() if report.layers else {}),
        "layers": [layer.to_dict() for layer in found.layers],
        "mismatches": mismatches,
        "problems": problems + mismatches,
    }


def recount(path: Path) -> SizeReport:
    """The counts of an artifact's tensors.

    Raises:
        FormatError: If a tensor cannot be read.
    """
    ours, _ = read_config(path)
    file = TensorFile(path / WEIGHTS)
    found = _Findings(ours)
    for fqn in ours["fqns"]:
        found.add(decode(file, fqn))
    return report_of(found.layers, VALUE_BITS[found.precision] if found.precision else 32)


class _Findings:
    """Findings from the tensors, read one after the other; no tensor stays in memory.

    Args:
        ours: Our block of ``config.json``: names of prunable tensors and buffers, and its claims.
    """

    def __init__(self, ours: Mapping[str, Any]) -> None:
        self._ours = ours
        self._prunable, self._buffers = set(ours["prunable"]), set(ours["buffers"])
        self.layers: list[StoredTensor] = []
        self._matrices: dict[Precision, str] = {}
        self._vectors: dict[Precision, str] = {}
        self._blocks: dict[Block, str] = {}
        self._unfilled: str | None = None
        self._unpacked: str | None = None
        self._in_blocks: str | None = None

    @property
    def _precisions(self) -> dict[Precision, str]:
        """Every precision, and the first tensor that has it."""
        if set(self._matrices) == {"int8"} and set(self._vectors) <= {"fp32"}:
            return self._matrices  # vectors of an int8 artifact stay float32
        return {**self._vectors, **self._matrices}

    @property
    def precision(self) -> Precision | None:
        """The precision of all tensors; None if they differ."""
        return next(iter(self._precisions)) if len(self._precisions) == 1 else None

    @property
    def format(self) -> str:
        """``bitmask`` if any mask is stored, else ``dense``."""
        return "bitmask" if any(layer.mask_bits for layer in self.layers) else "dense"

    @property
    def block(self) -> Block:
        """The largest block of a stored mask; (1, 1) if there is no mask."""
        return max(self._blocks, default=(1, 1), key=lambda block: block[0] * block[1])

    def add(self, decoded: Decoded) -> None:
        """Count a tensor, and record its findings."""
        fqn, array = decoded.fqn, decoded.array
        if fqn in self._buffers:
            return
        prunable = fqn in self._prunable
        layer = StoredTensor(
            name=fqn,
            shape=array.shape,
            nonzero=int(np.count_nonzero(array)) if prunable else array.size,
            bytes=decoded.num_bytes,
            dtype=decoded.dtype,
            packing=decoded.packing,
            mask_bits=mask_bits(decoded.packing, array.shape, decoded.block),
            prunable=prunable,
        )
        self.layers.append(layer)
        if array.dtype != np.float32:
            return
        seen = self._matrices if array.ndim > 1 else self._vectors
        seen.setdefault(_PRECISIONS[decoded.dtype], fqn)
        if prunable and array.ndim == 2:
            self._note_packing(decoded, layer)

    def _note_packing(self, decoded: Decoded, layer: StoredTensor) -> None:
        """Record a block, and tensors that contradict the claimed block or format."""
        claimed = _claimed_block(self._ours, layer.name)
        if decoded.packing != "dense":
            self._blocks.setdefault(decoded.block, layer.name)
            if decoded.block != claimed == (1, 1) != _claimed_block(self._ours):
                self._in_blocks = self._in_blocks or layer.name
            if claimed != (1, 1) and decoded.packing == "bitmask":
                in_blocks = count_kept(decoded.array, claimed).in_blocks
                if in_blocks > 2 * layer.nonzero:
                    self._unfilled = self._unfilled or layer.name
        elif self._ours.get("format") == "bitmask":
            best = plan_tensor(
                layer.name,
                decoded.array,
                num_kept=Kept(layer.nonzero, layer.nonzero),
                precision=_PRECISIONS[decoded.dtype],
            )
            if best.packing != "dense":
                self._unpacked = self._unpacked or layer.name

    def mismatches(self) -> list[str]:
        """Statements of ``config.json`` that differ from the tensors, one line each."""
        ours, lines = self._ours, []
        counts = {
            "dense_parameters": sum(layer.parameters for layer in self.layers),
            "num_nonzero": sum(layer.nonzero for layer in self.layers),
        }
        lines += [
            f"{CONFIG}: {key} is {ours[key]}, the files hold {count}"
            for key, count in counts.items()
            if ours[key] != count
        ]
        for precision, fqn in self._precisions.items():
            if ours.get("precision") != precision:
                lines.append(
                    f"{CONFIG}: precision is {ours.get('precision')!s:.40}, "
                    f"{fqn} is stored as {precision}"
                )
        return lines + self._layout_mismatches()

    def _layout_mismatches(self) -> list[str]:
        claimed, lines = self._ours.get("format"), []
        if self._unpacked is not None:
            lines.append(f"{CONFIG}: format is bitmask, {self._unpacked} is stored dense")
        if claimed != "bitmask" and (self.format == "bitmask" or claimed != "dense"):
            lines.append(f"{CONFIG}: format is {claimed!s:.40}, the files hold {self.format}")
        block = _claimed_block(self._ours)
        for stored, fqn in self._blocks.items():
            if stored not in (block, (1, 1)):
                lines.append(f"{CONFIG}: block is {_text(block)}, {fqn} has {_text(stored)}")
        if self._in_blocks is not None:
            lines.append(f"{CONFIG}: single names {self._in_blocks}, which is stored in blocks")
        if self._unfilled is not None:
            lines.append(
                f"{CONFIG}: block is {_text(block)}, the zeros of {self._unfilled} are scattered"
            )
        return lines


def _claimed_block(ours: Mapping[str, Any], fqn: str = "") -> Block:
    """The block that is claimed of a tensor; of all that are not single weights without a name."""
    block = ours.get("block")
    if fqn in ours.get("single", ()):
        return (1, 1)
    sound = isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)
    if not sound or not isinstance(block, list) or not all(0 < n <= 16 for n in block):
        return (1, 1)
    return (block[0], block[1])


def _text(block: Sequence[int]) -> str:
    return "x".join(map(str, block))
