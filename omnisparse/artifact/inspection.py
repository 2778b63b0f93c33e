"""What an artifact really holds, recounted from its bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from omnisparse.artifact.contents import CONFIG, TOKENIZER, TOKENS, WEIGHTS
from omnisparse.artifact.decoding import decode
from omnisparse.artifact.precision import VALUE_BITS
from omnisparse.artifact.reading import check_files, check_names, read_config
from omnisparse.artifact.tensorfile import TensorFile
from omnisparse.errors import FormatError
from omnisparse.sparsity.budget import Budget
from omnisparse.sparsity.ranking import BLOCKS


def inspect_artifact(path: Path) -> dict[str, Any]:
    """Count parameters, non-zeros and bytes layer by layer, trusting no metadata.

    Args:
        path: Artifact directory.

    Returns:
        ``kind`` (``"artifact"``), ``model_kind``, ``precision``, ``format``, ``block``,
        ``parameters``, ``nonzero``, ``sparsity`` (share of zeros among the prunable weights),
        ``bytes`` (all files but the card), ``layers`` (a dict per tensor: ``name, shape,
        parameters, nonzero, sparsity, bytes, dtype, packing``; never-pruned tensors count in full;
        buffers are not listed), the counts of ``SizeReport.summary`` over the matrices that are
        packed, and ``problems``: whatever in the files contradicts itself, empty if sound.

    Raises:
        FormatError: If the files cannot be understood at all.
    """
    path = Path(path)
    ours, problems = read_config(path)
    problems += check_files(path, ours)[2]
    file = TensorFile(path / WEIGHTS)
    try:
        check_names(file, ours)
    except FormatError as error:
        problems.append(str(error))
    layers: list[dict[str, Any]] = []
    prunable = set(ours["prunable"])
    buffers = set(ours["buffers"])
    for fqn in ours["fqns"]:
        try:
            decoded = decode(file, fqn)
        except FormatError as error:
            problems.append(str(error))
            continue
        if fqn in buffers:
            continue
        parameters = decoded.tensor.numel()
        nonzero = int(decoded.tensor.count_nonzero()) if fqn in prunable else parameters
        layers.append(
            {
                "name": fqn,
                "shape": list(decoded.tensor.shape),
                "parameters": parameters,
                "nonzero": nonzero,
                "sparsity": 1 - nonzero / parameters if parameters else 0.0,
                "bytes": decoded.num_bytes,
                "dtype": decoded.dtype,
                "packing": decoded.packing,
            }
        )
    parameters = sum(layer["parameters"] for layer in layers)
    nonzero = sum(layer["nonzero"] for layer in layers)
    pruned = sum(layer["parameters"] for layer in layers if layer["name"] in prunable)
    for key, count in (("dense_parameters", parameters), ("num_nonzero", nonzero)):
        if ours[key] != count:
            problems.append(f"{CONFIG}: {key} is {ours[key]}, the files hold {count}")
    return {
        "kind": "artifact",
        "model_kind": ours["model"].get("kind"),
        "precision": ours.get("precision"),
        "format": ours.get("format"),
        "block": ours.get("block"),
        "parameters": parameters,
        "nonzero": nonzero,
        "sparsity": (parameters - nonzero) / pruned if pruned else 0.0,
        "bytes": sum((path / name).stat().st_size for name in (CONFIG, WEIGHTS, TOKENIZER, TOKENS)),
        **_summary(layers, ours, prunable),
        "layers": layers,
        "problems": problems,
    }


def _summary(
    layers: list[dict[str, Any]], ours: dict[str, Any], prunable: set[str]
) -> dict[str, Any]:
    """The count with masks and the largest layer, of what the files were found to hold."""
    kept = {layer["name"]: layer["nonzero"] for layer in layers if layer["name"] in prunable}
    if not kept:
        return {}
    shapes = {layer["name"]: layer["shape"] for layer in layers}
    block = ours.get("block")
    whole = block if isinstance(block, list) and tuple(block) in BLOCKS else [1, 1]
    if not all(math.prod(shape) for shape in shapes.values()):
        return {}  # an empty tensor: nothing that can be counted as a matrix
    budget = Budget(shapes, list(kept), block=(whole[0], whole[1]))
    bits = next((b for name, b in VALUE_BITS.items() if name == ours.get("precision")), 32)
    return budget.report(kept, bits=bits).summary()
