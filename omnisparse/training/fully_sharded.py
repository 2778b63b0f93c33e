"""Weights, gradients and optimizer state shared among the processes (FSDP2), and whole again.

accelerate splits a net by its layers, and on CPUs takes plain data parallelism without a word. A
supernet makes its masks for the whole net before the pass, so here the whole net is one group of
torch's own ``fully_shard``: its weights are whole from the first pass of a step to the last, and
between the steps each process keeps its part of weights, gradients and moments.

Checkpoints are those of an unsharded training: either goes on from the other, on any number of
processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch import Tensor, nn

from omnisparse.models.base import ModelOutput
from omnisparse.sparsity.sharded_tensors import shared_like, whole

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

LEGAL_METHODS = ("dense", "sandwich")
"""Methods whose nets can be shared."""


def is_asked_for() -> bool:
    """Whether the launcher asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the net of a training is shared among its processes."""
    return is_asked_for() and accelerator.num_processes > 1


def prepare_module(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """A net on its device, for this process's part of the training."""
    if not is_sharded(accelerator):
        prepared: nn.Module = accelerator.prepare(module)
        return prepared
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module.to(accelerator.device)
    # For the casts of the pass alone: what distributes is the next line.
    module = accelerator.prepare_model(module, evaluation_mode=True)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    module.register_forward_hook(_without_views)  # before the hooks of the next line
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    return module


@contextmanager
def unsynchronised(accelerator: Accelerator, module: nn.Module) -> Iterator[None]:
    """Passes whose gradients are added up on this process alone, until others are synchronised."""
    shared = _shared(module)
    if shared is None:
        with accelerator.no_sync(module):
            yield
        return
    shared.set_requires_gradient_sync(False)
    shared.set_reshard_after_backward(False)  # the next pass needs the weights, too
    try:
        yield
    finally:
        shared.set_requires_gradient_sync(True)
        shared.set_reshard_after_backward(True)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The weights are whole on every process within, for passes that are none of training."""
    shared = _shared(module)
    if shared is None:
        yield
        return
    shared.unshard()
    try:
        yield
    finally:
        shared.reshard()


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with all of their values on every process; all processes must ask for them."""
    return {name: whole(tensor.detach()) for name, tensor in tensors.items()}


def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write whole tensors into a net, which may be shared."""
    state = module.state_dict()
    module.load_state_dict(
        {
            name: shared_like(tensor, state[name]) if name in state else tensor
            for name, tensor in tensors.items()
        }
    )


def _without_views(module: nn.Module, inputs: Any, output: ModelOutput) -> ModelOutput:
    """Copies of the outputs that are views, such as the encoder's without its padding.

    FSDP gathers weights and reduces gradients by hooks on its outputs, and a view loses its hook
    to whatever is then written into it: the gradients would be wrong in silence. Nothing of ours
    writes into an output; of a copy, anything may.
    """
    views = {
        name: tensor.clone()
        for name, tensor in output._asdict().items()
        if tensor is not None and tensor.requires_grad and tensor._is_view()
    }
    return output._replace(**views)


def _shared(module: nn.Module) -> FSDPModule | None:
    from torch.distributed.fsdp import FSDPModule

    return module if isinstance(module, FSDPModule) else None
