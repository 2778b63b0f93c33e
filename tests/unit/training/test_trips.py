"""How often a step waits for a number: on a GPU each such trip leaves the device without work."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from omnisparse.data.batching import Batch
from omnisparse.methods import Sandwich, SandwichConfig
from omnisparse.models import LasConfig, TransducerConfig, build_model
from omnisparse.training.config import TrainingConfig
from omnisparse.training.trainer import Trainer

MODELS = {
    "las": LasConfig(
        encoder_layers=2, encoder_dim=16, decoder_dim=16, attention_dim=8, attention_heads=2,
        embedding_dim=8, ctc_weight=0.3,
    ),
    "transducer": TransducerConfig(
        encoder_layers=2, encoder_dim=16, predictor_dim=16, joiner_dim=8, embedding_dim=8,
        predictor_warmup=0, ctc_weight=0.3,
    ),
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts what Python asks for. Step counters that AdamW's kernel reads itself are on the CPU or
    stay on the device, and are no wait."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.counts[str(operation).rpartition(".")[0]] += 1
        return operation(*arguments, **(options or {}))


def make_batch(device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(1)
    batch = Batch(
        features=torch.randn(8, 20, 12, generator=generator),
        feature_lengths=torch.randint(15, 21, (8,), generator=generator),
        tokens=torch.randint(3, 10, (8, 4), generator=generator),
        token_lengths=torch.full((8,), 4),
        ids=tuple(f"u{index}" for index in range(8)),
        positions=torch.arange(8),
        audio_seconds=8.0,
    )
    return batch.to(device)


def make_trainer(name: str, tmp_path: Path, accelerator: Accelerator) -> Trainer:
    torch.manual_seed(0)
    sandwich = SandwichConfig(
        min_size="50%", warmup_fraction=0.0, shrink_fraction=0.0, lattice_nodes="occupied"
    )
    trainer = Trainer(
        build_model(MODELS[name], input_dim=12, vocab_size=10),
        Sandwich(sandwich, seed=0),
        None,  # type: ignore[arg-type]
        TrainingConfig(),
        max_steps=1000,
        seed=0,
        run=tmp_path,
        accelerator=accelerator,
        tracker=None,
    )
    trainer.train_step(make_batch(accelerator.device))  # ranks the weights
    return trainer


@pytest.mark.parametrize("name", MODELS)
def test_a_sandwich_step_reads_few_numbers(name: str, tmp_path: Path) -> None:
    trainer = make_trainer(name, tmp_path, Accelerator(cpu=True))
    batch = make_batch(torch.device("cpu"))
    with Operations() as seen:
        trainer.train_step(batch)
    assert seen.counts["aten.mm"] > 10
    assert 1 <= seen.counts["aten._local_scalar_dense"] <= 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_a_sandwich_step_waits_at_most_three_times_on_a_gpu(name: str, tmp_path: Path) -> None:
    trainer = make_trainer(name, tmp_path, Accelerator())
    batch = make_batch(trainer.accelerator.device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in caught if "synchroniz" in str(one.message)]
    assert len(waits) <= 3, waits
