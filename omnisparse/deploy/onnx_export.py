"""Writes a recogniser as ONNX files that any onnxruntime loads, checked before they are kept."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnisparse.artifact.precision import Precision
from omnisparse.atomic import replaced_directory, write_synced
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.models.base import SpeechModel
from omnisparse.models.las import LasModel
from omnisparse.models.transducer import TransducerModel
from omnisparse.version import __version__

if TYPE_CHECKING:
    from omnisparse.deploy.onnx_encoders import Frames
    from omnisparse.deploy.onnx_weights import Layout, WeightStore

DESCRIPTION = "export.json"
"""File of an exported folder that says what is in it; a folder with one may be replaced."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The net to be exported.

    Attributes:
        model: A net in evaluation mode; it is left as it is.
        tokenizer: Its tokens.
        extractor: Its features.
        name: What people call it, for the card.
    """

    model: SpeechModel
    tokenizer: Tokenizer
    extractor: FeatureExtractor
    name: str

    def __post_init__(self) -> None:
        """Refuse nets whose layers have no ONNX form here."""
        family = getattr(self.model, "family", "omnisparse")
        if family != "omnisparse":
            raise OmnisparseError(
                f"ONNX files of a transducer of family {family} cannot be written yet; "
                "transcribe, serve and Recognizer run it"
            )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Files that were compared with PyTorch, not yet on the disk.

    Attributes:
        files: Bytes by name.
        max_abs_difference: Of any output, to PyTorch with the same rounded weights.
        rounding: Largest change of a weight by ``precision``.
        description: What ``export.json`` says.
    """

    files: Mapping[str, bytes]
    max_abs_difference: float
    rounding: float
    description: Mapping[str, Any]

    def write(self, out: Path) -> dict[str, Any]:
        """Write the folder, whole or not at all.

        Args:
            out: The folder. An earlier export there is replaced; anything else there is an error.

        Returns:
            ``path``, ``files`` (``{path, bytes}`` each), ``bytes``, ``max_abs_difference`` and
            ``rounding``.

        Raises:
            OmnisparseError: If ``out`` is taken by something else, or the disk refuses.
        """
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        described = {"omnisparse_export": {**self.description, "sha256": digests}}
        text = json.dumps(described, indent=1) + "\n"
        with replaced_directory(out, is_export) as folder:
            for name, data in {**self.files, DESCRIPTION: text.encode()}.items():
                write_synced(folder / name, data)
        return {
            "path": out,
            "files": [
                {"path": out / name, "bytes": len(data)} for name, data in self.files.items()
            ],
            "bytes": sum(len(data) for data in self.files.values()),
            "max_abs_difference": self.max_abs_difference,
            "rounding": self.rounding,
        }


def is_export(path: Path) -> bool:
    """Whether a folder was written by :meth:`Exported.write`."""
    try:
        document = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "omnisparse_export" in document


def require_runtime() -> None:
    """Demand the packages that export needs.

    Raises:
        OmnisparseError: If one is not installed.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise OmnisparseError(
            f"export needs {' and '.join(missing)}: pip install 'omnisparse[deploy]'"
        )


def export_onnx(
    source: Source, *, layout: Layout = "dense", precision: Precision | None = None
) -> Exported:
    """A recogniser as ONNX files, for onnxruntime.

    Args:
        source: The net.
        layout: ``dense``, ``packed`` or ``sparse``; see :mod:`omnisparse.deploy.onnx_weights`.
        precision: ``fp32``, ``fp16`` or ``int8``; None for fp16 where packed, else fp32.

    Returns:
        ``encoder.onnx``, ``decoder.onnx``, of a transducer ``joiner.onnx``, and ``tokens.txt``.

    Raises:
        OmnisparseError: If a package is missing, or a file does not compute what PyTorch does.
        ValueError: If ``precision`` is unknown, or the net cannot be written in ONNX.
    """
    require_runtime()
    if source.extractor.kind != "kaldi":
        raise OmnisparseError(
            f"ONNX files of a net that reads {source.extractor.kind} features cannot be written "
            "yet: runtimes compute Kaldi's"
        )
    from omnisparse.deploy.onnx_check import Comparison, check_las, check_transducer
    from omnisparse.deploy.onnx_models import LasGraphs, TransducerGraphs

    store = weight_store(source.model, layout=layout, precision=precision)
    model = rounded_model(source.model, store)
    frames = frames_of(source.extractor)
    comparison = Comparison(source.extractor)
    metadata = {"model_author": "omnisparse", "comment": source.name}
    if isinstance(model, TransducerModel):
        graphs = TransducerGraphs(model, store, frames)
        files = {
            "encoder.onnx": graphs.encoder(metadata),
            "decoder.onnx": graphs.decoder(metadata),
            "joiner.onnx": graphs.joiner(metadata),
        }
        check_transducer(graphs, model, files, comparison, chunk=None)
    else:
        assert isinstance(model, LasModel)
        speller = LasGraphs(model, store, frames)
        files = {
            "encoder.onnx": speller.encoder(metadata),
            "decoder.onnx": speller.decoder(metadata),
        }
        check_las(speller, model, files, comparison)
    return Exported(
        files={**files, "tokens.txt": source.tokenizer.tokens_txt().encode()},
        max_abs_difference=comparison.largest,
        rounding=largest_rounding(source.model, store),
        description={
            "format": "onnx", "kind": model.kind, "layout": layout, "precision": store.precision,
            "version": __version__, "features": source.extractor.to_dict(),
        },
    )  # fmt: skip


def weight_store(
    model: SpeechModel, *, layout: Layout = "dense", precision: Precision | None = None
) -> WeightStore:
    """The weights of a net as they will be stored.

    Raises:
        UsageError: If ``precision`` is not one that an export may have.
        ValueError: If a weight is too large for it.
    """
    from omnisparse.deploy.onnx_weights import WeightStore

    if precision is None:
        precision = "fp16" if layout == "packed" else "fp32"
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    parameters = dict(model.named_parameters())
    state = {
        name: np.asarray(tensor.detach().cpu().float().numpy(), np.float32)
        for name, tensor in parameters.items()
        if not name.startswith("ctc_output.")  # trains the encoder, recognises nothing
    }
    return WeightStore(state, layout, precision)


def rounded_model(model: SpeechModel, store: WeightStore) -> SpeechModel:
    """A copy of the net with the weights that a reader of the files gets."""
    twin = copy.deepcopy(model).cpu().float().eval()
    restored = {name: torch.from_numpy(value) for name, value in store.restored().items()}
    twin.load_state_dict(restored, strict=False)
    return twin


def largest_rounding(model: SpeechModel, store: WeightStore) -> float:
    """Largest change of a weight by the precision of the files."""
    if store.precision == "fp32":
        return 0.0
    return max(
        float(np.abs(value - store.state[name]).max(initial=0.0))
        for name, value in store.restored().items()
    )


def frames_of(extractor: FeatureExtractor) -> Frames:
    """How the features of an extractor become frames."""
    from omnisparse.deploy.onnx_encoders import Frames

    return Frames(extractor.num_bins, extractor.stack, extractor.mean, extractor.std)
