"""The transducer loss of our own, against torchaudio and against every alignment, and alone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnisparse.errors import OmnisparseError
from omnisparse.models import losses
from omnisparse.models.losses import EMIT_BLANK, LABEL, LOG_ZERO, transducer_loss
from omnisparse.models.rnnt_loss import rnnt_loss_and_uses
from omnisparse.models.torchaudio import find_torchaudio, require_torchaudio
from omnisparse.models.transducer import TransducerModel
from omnisparse.pipeline.train import train


def drawn(batch: int, frames: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A lattice as the joiner leaves it, with utterances of many lengths, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    lattice = (2 * torch.randn(batch, frames, tokens + 1, 3, generator=generator)).log_softmax(-1)
    frame_lengths = torch.randint(1, frames + 1, (batch,), generator=generator)
    token_lengths = torch.randint(0, tokens + 1, (batch,), generator=generator)
    frame_lengths[0], token_lengths[0] = frames, tokens  # torchaudio wants the longest both
    for row, length in enumerate(token_lengths.tolist()):
        lattice[row, :, length, LABEL] = LOG_ZERO
    return lattice, frame_lengths, token_lengths


def enumerated(label: Tensor, blank: Tensor, frames: int, tokens: int) -> Tensor:
    """-log of the sum over every alignment of one utterance (Graves 2012, eq. 1)."""
    paths = []
    for places in itertools.combinations_with_replacement(range(frames), tokens):
        score = sum(
            (label[frame, index] for index, frame in enumerate(places)), blank.new_zeros(())
        )
        for frame in range(frames):
            score = score + blank[frame, sum(place <= frame for place in places)]
        paths.append(score)
    return -torch.stack(paths).logsumexp(0)


@pytest.mark.parametrize(("frames", "tokens"), [(5, 3), (1, 4), (6, 0), (4, 1)])
def test_value_and_gradient_are_those_of_all_alignments(frames: int, tokens: int) -> None:
    lattice, frame_lengths, token_lengths = drawn(4, frames, tokens)
    label, blank = (lattice[..., index].double().requires_grad_() for index in (LABEL, EMIT_BLANK))
    found, label_uses, blank_uses = rnnt_loss_and_uses(
        label.detach(), blank.detach(), frame_lengths, token_lengths
    )
    lengths = zip(frame_lengths.tolist(), token_lengths.tolist(), strict=True)
    expected = torch.stack(
        [enumerated(label[row], blank[row], *pair) for row, pair in enumerate(lengths)]
    )
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
    oracle = torch.autograd.grad(expected.sum(), (label, blank), allow_unused=True)
    for uses, gradient in zip((label_uses, blank_uses), oracle, strict=True):
        missing = torch.zeros_like(uses) if gradient is None else -gradient
        torch.testing.assert_close(uses, missing, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("batch", "frames", "tokens"), [(7, 40, 12), (3, 9, 20), (1, 1, 1)])
def test_value_and_gradient_are_those_of_torchaudio(batch: int, frames: int, tokens: int) -> None:
    lattice, *lengths = drawn(batch, frames, tokens, seed=1)
    package = require_torchaudio("this test")
    loss, gradient = losses._loss_in_torchaudio(package, lattice, *lengths)
    ours, own_gradient = losses._loss_in_torch(lattice, *lengths)
    torch.testing.assert_close(ours, loss)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-4, atol=2e-5)


def test_every_frame_of_a_long_unlikely_utterance_is_left_by_one_blank() -> None:
    """What torchaudio's float32 sums miss; see findings/torchaudio_rnnt_loss_long_gradient.sh."""
    scores = torch.full((1, 600, 200), -12.0)
    _, label_uses, blank_uses = rnnt_loss_and_uses(
        scores, scores, torch.tensor([600]), torch.tensor([199])
    )
    torch.testing.assert_close(blank_uses.sum(2), torch.ones(1, 600, dtype=torch.float64))
    torch.testing.assert_close(label_uses.sum(1)[0, :-1], torch.ones(199, dtype=torch.float64))
    assert float(label_uses[0, :, -1].sum()) == 0.0


@pytest.fixture
def no_torchaudio(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    find_torchaudio.cache_clear()
    yield
    find_torchaudio.cache_clear()


def test_a_transducer_trains_without_torchaudio_and_says_so_once(
    no_torchaudio: None, tiny_config, tmp_path: Path
) -> None:
    config = tiny_config("transducer", max_steps=5)
    lines: list[str] = []
    alone = train(config, out=tmp_path / "alone", on_stage=lines.append)
    (line,) = [line for line in lines if "torchaudio" in line]
    assert line.startswith("torchaudio is not installed: the transducer loss is omnisparse's own")
    assert alone.steps == 5
    find_torchaudio.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torchaudio")
        lines.clear()
        beside = train(config, out=tmp_path / "beside", on_stage=lines.append)
    assert not [line for line in lines if "torchaudio" in line]
    for name, value in beside.metrics.items():
        if name.startswith("loss/"):
            assert alone.metrics[name] == pytest.approx(value, rel=1e-4), name


def test_an_emformer_without_torchaudio_is_one_line(
    no_torchaudio: None, tiny_config, tmp_path: Path
) -> None:
    line = r"^an Emformer encoder needs torchaudio: .*not inst"
    with pytest.raises(OmnisparseError, match=line):
        TransducerModel(input_dim=8, vocab_size=9, encoder="emformer", encoder_dim=16)
    config = tiny_config("transducer")
    config = replace(config, model=replace(config.model, encoder="emformer"))
    with pytest.raises(OmnisparseError, match=line):
        train(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # before the corpus is prepared, which may take hours


def test_a_torchaudio_of_another_torch_is_told_with_the_pairs_that_load(
    no_torchaudio: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torchaudio.py").write_text(
        "raise OSError('Could not load this library: lib/_torchaudio.abi3.so')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchaudio")
    package, reason = find_torchaudio()
    assert package is None
    assert reason.startswith("torchaudio 2.")
    assert "does not load (Could not load this library: lib/_torchaudio.abi3.so)" in reason
    assert "torch==2.11.0 torchaudio==2.11.0 or torch==2.14.1" in reason
    assert "\n" not in reason


def test_a_bfloat16_step_on_a_cpu_takes_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, tokens = torch.tensor([4, 3]), torch.tensor([2, 1])
    lattice = torch.randn(2, 4, 3, 3).log_softmax(-1).requires_grad_()
    expected, occupancy = transducer_loss(lattice, frames, tokens)
    (grad,) = torch.autograd.grad(expected, lattice)
    with monkeypatch.context() as patched, torch.autocast("cpu", torch.bfloat16):
        patched.setattr(losses, "_loss_in_torchaudio", None)  # not called
        found, also = transducer_loss(lattice, frames, tokens)
        (other,) = torch.autograd.grad(found, lattice)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(also, occupancy)
    torch.testing.assert_close(other, grad)
