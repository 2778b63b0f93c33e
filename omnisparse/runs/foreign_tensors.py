"""What a net of another toolkit is, and how its tensors are read."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar

from omnisparse.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class ForeignNet:
    """A net of another toolkit with our names and our order of tokens."""

    state: Mapping[str, Tensor]
    tokenizer: Tokenizer
    extractor: FeatureExtractor

    kind: ClassVar[str] = "transducer"

    @property
    def vocab_size(self) -> int:
        """Tokens with blank."""
        return len(self.state["joiner.output.bias"])


def read_tensors(source: Path | IO[bytes], place: str) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a checkpoint with one, by name, in float32.

    Torch's restricted unpickler makes tensors and plain containers only; a file with anything else
    in it is refused before any of it runs.

    Args:
        source: The file.
        place: What people call it.

    Raises:
        FormatError: If it holds anything else, or a number that is none.
    """
    import torch
    from torch import Tensor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles by other writers
            found = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(
            f"{place}: holds more than tensors, so it is not read ({reason})"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # its unpickler lets errors of a dozen kinds through
        reason = " ".join(str(error).split())[:160]
        raise FormatError(f"{place}: cannot be read as a .pt file ({reason})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise FormatError(f"{place}: no state dict: tensors by their names are expected")
    named = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise FormatError(f"{place}: {name} is no tensor of floating-point numbers")
        if not bool(tensor.isfinite().all()):
            raise FormatError(f"{place}: {name} holds NaN or infinite values")
    return {name: tensor.float() for name, tensor in named.items()}
