"""Two processes train what one process trains on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.supernet import Supernet

BATCH = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
SPARSITIES = (None, 0.5, 0.9)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(6, 8, batch_first=True)
        self.projection = nn.Linear(8, 4)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.encoder(features)[0]).square().mean()


def train(features: Tensor, parallel: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Net()
    supernet = Supernet(model, prunable=find_prunable(model))
    forward: nn.Module = DistributedDataParallel(supernet) if parallel else supernet
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.5)
    for step in range(4):
        if step % 2 == 0:
            supernet.refresh()
        for index, sparsity in enumerate(SPARSITIES):
            spec = None if sparsity is None else supernet.spec_for(sparsity=sparsity)
            forward.require_backward_grad_sync = index == len(SPARSITIES) - 1
            with supernet.active(spec):
                forward(features).backward()
        optimizer.step()
        optimizer.zero_grad()
    return supernet.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    state = train(BATCH[2 * rank : 2 * rank + 2], parallel=True)
    torch.save(state, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.multiprocess
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = train(BATCH, parallel=False)
    for name, expected in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected)
