"""Packed model files: written atomically, with an exact size, and checked when read.

Nothing here loads torch until a caller needs tensors: extraction works on numpy arrays.
"""

from omnisparse.artifact.artifact import ArtifactInfo, planned_bytes, write_artifact
from omnisparse.artifact.card import CARD, add_latency, update_card
from omnisparse.artifact.contents import MODULE_KIND, Contents
from omnisparse.artifact.extraction import Extraction, write_extractions
from omnisparse.artifact.inspection import inspect_artifact
from omnisparse.artifact.mapped import MappedState
from omnisparse.artifact.reading import (
    Artifact,
    is_artifact,
    read_artifact,
    read_config,
    read_recogniser,
)
from omnisparse.artifact.stored import StoredTensor, report_of
from omnisparse.artifact.tensors import as_array, as_tensor
from omnisparse.artifact.untrained import MAX_STEPS, SMALLEST, untrained_warnings

__all__ = [
    "CARD",
    "MAX_STEPS",
    "MODULE_KIND",
    "SMALLEST",
    "Artifact",
    "ArtifactInfo",
    "Contents",
    "Extraction",
    "MappedState",
    "StoredTensor",
    "add_latency",
    "as_array",
    "as_tensor",
    "inspect_artifact",
    "is_artifact",
    "planned_bytes",
    "read_artifact",
    "read_config",
    "read_recogniser",
    "report_of",
    "untrained_warnings",
    "update_card",
    "write_artifact",
    "write_extractions",
]
