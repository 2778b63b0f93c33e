"""Everything of an artifact except its weights: a plan with the exact size of every file.

The header of ``model.safetensors`` and ``config.json`` are padded with spaces to their largest
possible length for this net, precision, block and format. So the size of an artifact is the data of
its tensors plus a constant, and never shrinks when a matrix keeps more. Therefore bisection finds
the largest model that fits a number of bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omnisparse.artifact.bitmask import Block, check_block
from omnisparse.artifact.layout import (
    FORMATS,
    Format,
    Kept,
    TensorPlan,
    candidate_plans,
    plan_tensor,
)
from omnisparse.artifact.precision import VALUE_BITS, parse_precision
from omnisparse.artifact.stored import StoredTensor, mask_bits, report_of
from omnisparse.artifact.tensorfile import longest_header, plan_layout
from omnisparse.sparsity.keys import block_of
from omnisparse.sparsity.report import SizeReport
from omnisparse.version import __version__

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.model"
TOKENS = "tokens.txt"
CONFIG = "config.json"
NO_DIGEST = "0" * 64
MODULE_KIND = "module"
"""Kind of a net that is no recogniser: any module, without the files of a tokenizer."""
WIDEST_FLOAT = -2.2250738585072014e-308
"""The longest number that a description has in JSON."""


def files_of(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of an artifact's files, without the card, by the description of its net."""
    texts = () if model.get("kind") == MODULE_KIND else (TOKENIZER, TOKENS)
    return (CONFIG, WEIGHTS, *texts)


class Spec(Protocol):
    """A subnet's description: it must give its exact JSON."""

    def to_json(self) -> str:
        """The description as JSON text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The data about its net in an artifact; see :func:`omnisparse.artifact.write_artifact`."""

    model: Mapping[str, Any]
    tokenizer: bytes
    tokens_txt: str
    features: Mapping[str, Any]
    dense_parameters: int
    prunable: Sequence[str]
    source: Mapping[str, Any]
    spec: Spec | None = None
    precision: str = "fp32"
    block: Block = (1, 1)
    format: str = "bitmask"
    wer: Mapping[str, Any] | None = None
    buffers: Sequence[str] = ()
    single: Sequence[str] = ()
    """Prunable tensors whose masks are of single weights, whatever ``block`` is."""

    def __post_init__(self) -> None:
        parse_precision(self.precision)
        check_block(self.block)
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is not one of {', '.join(FORMATS)}")

    def block_of(self, fqn: str) -> Block:
        """The block of the mask of a tensor."""
        return block_of(fqn, self.block, self.single)

    def plan(self, state: Mapping[str, Any], num_kept: Mapping[str, int | Kept]) -> ArtifactPlan:
        """The plan of all files.

        Args:
            state: Arrays or tensors; only names, shapes and dtypes are used, no weight is read.
            num_kept: Kept weights of every prunable tensor; a number where blocks hold no zeros.

        Raises:
            ValueError: If names, counts and ``state`` contradict each other.
        """
        for names, what in ((self.prunable, "prunable"), (self.buffers, "buffers")):
            unknown = sorted(set(names) - set(state))
            if unknown:
                raise ValueError(f"{what} names tensors that are not in the state: {unknown[:3]}")
        if set(num_kept) != set(self.prunable):
            raise ValueError("num_kept must name exactly the prunable tensors")
        precision = parse_precision(self.precision)
        format_: Format = "dense" if self.format == "dense" else "bitmask"
        kept = {
            fqn: Kept(count, count) if isinstance(count, int) else count
            for fqn, count in num_kept.items()
        }
        options: dict[str, Any] = {
            "precision": precision,
            "format": format_,
        }
        tensors, choices = [], []
        for fqn, tensor in state.items():
            count, numel = kept.get(fqn), math.prod(tensor.shape)
            options["block"] = self.block_of(fqn)
            tensors.append(plan_tensor(fqn, tensor, num_kept=count, **options))
            whole = None if count is None else Kept(numel, numel)
            longest = candidate_plans(fqn, tensor, num_kept=whole, **options)
            choices.append([candidate.fields for candidate in longest])
        plan = ArtifactPlan(self, tuple(tensors), longest_header(choices))
        if plan.parameters != self.dense_parameters:
            raise ValueError(
                f"dense_parameters is {self.dense_parameters}, but the state holds "
                f"{plan.parameters} parameters (list tensors that are not parameters in buffers)"
            )
        return plan


@dataclass(frozen=True)
class ArtifactPlan:
    """Everything except the weights: enough to know the size of every file."""

    contents: Contents
    tensors: tuple[TensorPlan, ...]
    header_bytes: int
    """Bytes of the header of ``model.safetensors``, for any counts."""

    @property
    def texts(self) -> dict[str, bytes]:
        """The bytes of the tokenizer's files, by name; empty for a net that has none."""
        contents = self.contents
        held = {TOKENIZER: contents.tokenizer, TOKENS: contents.tokens_txt.encode()}
        return {name: held[name] for name in files_of(contents.model) if name in held}

    def layers(self) -> list[StoredTensor]:
        """Counts of each tensor, without buffers."""
        buffers = set(self.contents.buffers)
        return [
            StoredTensor(
                name=plan.fqn,
                shape=plan.shape,
                nonzero=plan.num_nonzero,
                bytes=plan.num_bytes,
                dtype=plan.dtype,
                packing=plan.packing,
                mask_bits=mask_bits(plan.packing, plan.shape, plan.block),
                prunable=plan.prunable,
            )
            for plan in self.tensors
            if plan.fqn not in buffers
        ]

    def report(self) -> SizeReport:
        """The counts with and without masks, and the largest layer."""
        return report_of(self.layers(), VALUE_BITS[parse_precision(self.contents.precision)])

    @property
    def parameters(self) -> int:
        """Parameters of the dense net."""
        return sum(layer.parameters for layer in self.layers())

    @property
    def nonzero(self) -> int:
        """Non-zero prunable weights plus everything that is never pruned."""
        return sum(layer.nonzero for layer in self.layers())

    def block(self) -> dict[str, Any]:
        """Our block of ``config.json``, without checksums and counts."""
        contents = self.contents
        fqns = [plan.fqn for plan in self.tensors]
        prunable, buffers = set(contents.prunable), set(contents.buffers)
        return {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "model": dict(contents.model),
            "features": dict(contents.features),
            "subnet": None if contents.spec is None else json.loads(contents.spec.to_json()),
            "precision": contents.precision,
            "block": list(contents.block),
            **({"single": list(contents.single)} if contents.single else {}),
            "format": contents.format,
            "wer": None if contents.wer is None else dict(contents.wer),
            "source": dict(contents.source),
            "dense_parameters": contents.dense_parameters,
            "fqns": fqns,
            "prunable": [fqn for fqn in fqns if fqn in prunable],
            "buffers": [fqn for fqn in fqns if fqn in buffers],
        }

    def weights_bytes(self) -> int:
        """Bytes of ``model.safetensors``."""
        fields = (field for plan in self.tensors for field in plan.fields)
        return plan_layout(fields, self.header_bytes).size_bytes

    def config(self, weights_digest: str = NO_DIGEST) -> bytes:
        """The bytes of ``config.json``; their number does not depend on the digest or the counts.

        Raises:
            ValueError: If a description is not JSON.
        """
        ours = {
            **self.block(),
            "num_nonzero": self.nonzero,
            "sha256": {
                WEIGHTS: weights_digest,
                **{n: hashlib.sha256(data).hexdigest() for n, data in self.texts.items()},
            },
            "config_sha256": NO_DIGEST,
        }
        widest = {**ours, "num_nonzero": self.parameters, "subnet": _widest(ours["subnet"])}
        room = len(_render(widest, WIDEST_FLOAT if self._may_interoperate() else None))
        sparsity = 1 - self.nonzero / self.parameters if self._is_interoperable() else None
        text = _render(ours, sparsity).ljust(room) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        head, tail = text.rsplit(NO_DIGEST, 1)
        return f"{head}{digest}{tail}".encode()

    def _may_interoperate(self) -> bool:
        """Whether compressed-tensors could read this net with some counts."""
        return self.contents.format == "bitmask" and self.contents.precision != "int8"

    def _is_interoperable(self) -> bool:
        return any(plan.packing == "bitmask" for plan in self.tensors) and not any(
            plan.packing == "block" or plan.precision == "int8" for plan in self.tensors
        )

    def size_bytes(self) -> int:
        """Bytes of the artifact: all files except the card."""
        return self.weights_bytes() + len(self.config()) + sum(map(len, self.texts.values()))


def _render(ours: Mapping[str, Any], global_sparsity: float | None) -> str:
    """``config.json`` without its end; with a sparsity, in the form of compressed-tensors."""
    whole: dict[str, Any] = {"omnisparse": ours}
    if global_sparsity is not None:
        whole = {"quantization_config": _quantization(global_sparsity), **whole}
    return json.dumps(whole, indent=1, allow_nan=False)


def _quantization(global_sparsity: float) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "version": "0.14.0.1",
        "sparsity_config": {
            "format": "sparse-bitmask",
            "global_sparsity": global_sparsity,
            "sparsity_structure": "unstructured",
            "targets": None,
            "ignore": None,
            "registry_requires_subclass": False,
        },
        "transform_config": {},
    }


def _widest(value: Any) -> Any:
    """A JSON document with every number replaced by the longest one."""
    if isinstance(value, Mapping):
        return {key: _widest(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_widest(item) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return WIDEST_FLOAT
    return value
