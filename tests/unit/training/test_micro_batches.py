"""A batch computed in parts has the gradient of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from omnisparse.data.batching import Batch
from omnisparse.errors import OmnisparseError
from omnisparse.methods import Dense, Method, Sandwich, SandwichConfig
from omnisparse.models import LasConfig, TransducerConfig, build_model
from omnisparse.training.config import TrainingConfig
from omnisparse.training.micro_batches import micro_batches, raise_if_out_of_memory
from omnisparse.training.trainer import Trainer

LAS = LasConfig(
    encoder_layers=2, encoder_dim=16, decoder_dim=16, attention_dim=8, attention_heads=2,
    embedding_dim=8, dropout=0.0, ctc_weight=0.3,
)  # fmt: skip
TRANSDUCER = TransducerConfig(
    encoder_layers=2, encoder_dim=16, predictor_dim=16, joiner_dim=8, embedding_dim=8,
    dropout=0.0, predictor_warmup=0, ctc_weight=0.3,
)  # fmt: skip


def make_batch(utterances: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(12, 21, (utterances,), generator=generator)
    token_lengths = torch.randint(1, 5, (utterances,), generator=generator)
    tokens = torch.randint(3, 10, (utterances, 4), generator=generator)
    return Batch(
        features=torch.randn(utterances, 20, 12, generator=generator),
        feature_lengths=lengths,
        tokens=tokens,
        token_lengths=token_lengths,
        ids=tuple(f"u{index}" for index in range(utterances)),
        positions=torch.arange(utterances),
        audio_seconds=float(lengths.sum()) / 10,
    )


def test_parts_are_neighbours_and_complete() -> None:
    batch = make_batch()
    assert micro_batches(batch, 1, None) == [batch]
    for parts, seconds, expected in ((4, None, 4), (1, 4.1, 5), (99, None, 9), (1, 0.1, 9)):
        found = micro_batches(batch, parts, seconds)
        assert len(found) == expected
        assert tuple(name for part in found for name in part.ids) == batch.ids
        if seconds == 4.1:
            assert max(part.features.size(1) * len(part) for part in found) <= 41


def gradients(
    config: LasConfig | TransducerConfig, method: Method, tmp_path: Path, accumulate: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    torch.manual_seed(0)
    trainer = Trainer(
        build_model(config, input_dim=12, vocab_size=10),
        method,
        None,  # type: ignore[arg-type]
        TrainingConfig(accumulate=accumulate),
        max_steps=10,
        seed=0,
        run=tmp_path,
        accelerator=Accelerator(cpu=True),
        tracker=None,
    )
    trainer.model.set_step(3)
    losses, passes = trainer.gradients.accumulate(make_batch(), 3)
    values = {loss.name: float(loss.value / loss.num_units.clamp(min=1)) for loss in losses}
    return {n: p.grad for n, p in trainer.parameters.items()}, {**values, "passes": passes}


@pytest.mark.parametrize("config", [LAS, TRANSDUCER], ids=["las", "transducer"])
@pytest.mark.parametrize("kind", ["dense", "sandwich"])
def test_four_parts_have_the_gradient_of_one_batch(
    config: LasConfig | TransducerConfig, kind: str, tmp_path: Path
) -> None:
    def method() -> Method:
        if kind == "dense":
            return Dense()
        sandwich = SandwichConfig(
            min_size="50%", warmup_fraction=0.0, shrink_fraction=0.0, member_share=0.7
        )
        return Sandwich(sandwich, seed=0)

    whole, losses = gradients(config, method(), tmp_path, 1)
    parts, again = gradients(config, method(), tmp_path, 4)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert again == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might come late"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["cuda", "cpu", "driver", "cublas"],
)
def test_out_of_memory_names_the_setting(error: Exception) -> None:
    with pytest.raises(OmnisparseError, match=r"9 utterances.*data.micro_batch_seconds"):
        raise_if_out_of_memory(error, make_batch())
    raise_if_out_of_memory(RuntimeError("shapes differ"), make_batch())
