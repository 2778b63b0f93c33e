"""A small net with every kind of tensor an artifact or nested file may meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnisparse.artifact import ArtifactInfo, write_artifact

PRUNABLE = ["encoder.lstm.weight_ih_l0", "encoder.lstm.weight_hh_l0", "joiner.weight"]
BUFFERS = ["steps"]


@dataclass
class Net:
    """A state dict and everything else that :func:`write_artifact` wants."""

    state: dict[str, Tensor]
    contents: dict[str, Any] = field(default_factory=dict)

    def write(self, out: Path, **changes: Any) -> ArtifactInfo:
        return write_artifact(out, **{"state": self.state, **self.contents, **changes})


def make_net(sparsity: float = 0.8, seed: int = 0, block: tuple[int, int] = (1, 1)) -> Net:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "encoder.lstm.weight_ih_l0": (48, 37),
        "encoder.lstm.weight_hh_l0": (48, 64),
        "encoder.lstm.bias_ih_l0": (48,),
        "joiner.weight": (41, 30),
        "joiner.bias": (41,),
        "embedding.weight": (13, 7),
        "convolution.weight": (4, 3, 5),
    }
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["joiner.bias"].zero_()
    for name in PRUNABLE:
        rows, columns = state[name].shape
        grid = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=generator)
        mask = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        state[name][mask[:rows, :columns] < sparsity] = 0
    parameters = sum(tensor.numel() for tensor in state.values())
    state["steps"] = torch.tensor(7)
    contents = {
        "model": {"kind": "las", "input_dim": 80},
        "tokenizer": bytes(range(256)),
        "tokens_txt": "<blk> 0\n<sos/eos> 1\n\u2581a 2\n",
        "features": {"num_bins": 80, "mean": [0.125, -3.5]},
        "dense_parameters": parameters,
        "prunable": PRUNABLE,
        "source": {"run": "r", "step": 3},
        "buffers": BUFFERS,
    }
    return Net(state, contents)


@pytest.fixture
def net() -> Net:
    return make_net()


@pytest.fixture
def net_with() -> Callable[..., Net]:
    return make_net
