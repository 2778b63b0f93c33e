"""Everything of an artifact but its weights: a plan that knows the size of every file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omnisparse.artifact.bitmask import Block, check_block
from omnisparse.artifact.layout import FORMATS, Format, Kept, TensorPlan, plan_tensor
from omnisparse.artifact.precision import parse_precision
from omnisparse.artifact.tensorfile import plan_layout
from omnisparse.version import __version__

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.model"
TOKENS = "tokens.txt"
CONFIG = "config.json"
NO_DIGEST = "0" * 64


class Spec(Protocol):
    """What is asked of a subnet's description: its exact JSON."""

    def to_json(self) -> str:
        """The description as JSON text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What an artifact says about its net; see :func:`omnisparse.artifact.write_artifact`."""

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

    def __post_init__(self) -> None:
        parse_precision(self.precision)
        check_block(self.block)
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is not one of {', '.join(FORMATS)}")

    def plan(self, state: Mapping[str, Any], num_kept: Mapping[str, int | Kept]) -> ArtifactPlan:
        """The plan of all files.

        Args:
            state: Arrays or tensors; names, shapes and dtypes count, no weight is looked at.
            num_kept: Kept weights of every prunable tensor; a number where blocks hold no zeros.

        Raises:
            ValueError: If names, counts and ``state`` do not fit together.
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
        tensors = tuple(
            plan_tensor(
                fqn,
                tensor,
                num_kept=kept.get(fqn),
                precision=precision,
                block=self.block,
                format=format_,
            )
            for fqn, tensor in state.items()
        )
        plan = ArtifactPlan(self, tensors)
        if plan.parameters != self.dense_parameters:
            raise ValueError(
                f"dense_parameters is {self.dense_parameters}, but the state holds "
                f"{plan.parameters} parameters (list tensors that are not parameters in buffers)"
            )
        return plan


@dataclass(frozen=True)
class ArtifactPlan:
    """Everything but the weights: enough to know the size of every file."""

    contents: Contents
    tensors: tuple[TensorPlan, ...]

    @property
    def tokens(self) -> bytes:
        """The bytes of ``tokens.txt``."""
        return self.contents.tokens_txt.encode()

    def _counted(self) -> list[TensorPlan]:
        buffers = set(self.contents.buffers)
        return [plan for plan in self.tensors if plan.fqn not in buffers]

    @property
    def parameters(self) -> int:
        """Parameters of the dense net."""
        return sum(math.prod(plan.shape) for plan in self._counted())

    @property
    def nonzero(self) -> int:
        """Kept prunable weights plus everything that is never pruned."""
        return sum(plan.num_nonzero for plan in self._counted())

    @property
    def kept(self) -> dict[str, int]:
        """Non-zero weights of every prunable tensor."""
        names = set(self.contents.prunable)
        return {plan.fqn: plan.num_nonzero for plan in self.tensors if plan.fqn in names}

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is zero."""
        names = set(self.contents.prunable)
        prunable = sum(math.prod(plan.shape) for plan in self.tensors if plan.fqn in names)
        return (self.parameters - self.nonzero) / prunable if prunable else 0.0

    def block(self) -> dict[str, Any]:
        """Our block of ``config.json``, checksums and counts aside."""
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
        return plan_layout(field for plan in self.tensors for field in plan.fields).size_bytes

    def config(self, weights_digest: str = NO_DIGEST) -> bytes:
        """The bytes of ``config.json``; their number does not depend on the digest."""
        ours = {
            **self.block(),
            "num_nonzero": self.nonzero,
            "sha256": {
                WEIGHTS: weights_digest,
                TOKENIZER: hashlib.sha256(self.contents.tokenizer).hexdigest(),
                TOKENS: hashlib.sha256(self.tokens).hexdigest(),
            },
            "config_sha256": NO_DIGEST,
        }
        whole: dict[str, Any] = {"omnisparse": ours}
        if self._is_interoperable():
            whole = {"quantization_config": self._quantization(), **whole}
        text = json.dumps(whole, indent=1, allow_nan=False) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        head, tail = text.rsplit(NO_DIGEST, 1)
        return f"{head}{digest}{tail}".encode()

    def _is_interoperable(self) -> bool:
        return any(plan.packing == "bitmask" for plan in self.tensors) and not any(
            plan.packing == "block" or plan.precision == "int8" for plan in self.tensors
        )

    def _quantization(self) -> dict[str, Any]:
        return {
            "quant_method": "compressed-tensors",
            "version": "0.14.0.1",
            "sparsity_config": {
                "format": "sparse-bitmask",
                "global_sparsity": 1 - self.nonzero / self.parameters,
                "sparsity_structure": "unstructured",
                "targets": None,
                "ignore": None,
                "registry_requires_subclass": False,
            },
            "transform_config": {},
        }

    def size_bytes(self) -> int:
        """Bytes of the artifact: all files but the card."""
        tokenizer = len(self.contents.tokenizer) + len(self.tokens)
        return self.weights_bytes() + len(self.config()) + tokenizer
