"""Embeddings: torch's first values, and nothing imported for a net without values."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from omnisparse.models.embedding import make_embedding


def test_first_values_are_those_of_torch() -> None:
    torch.manual_seed(3)
    expected, after = nn.Embedding(7, 5), torch.rand(1)
    torch.manual_seed(3)
    found = make_embedding(7, 5)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(torch.rand(1), after)
    assert found.weight.requires_grad
    assert found.padding_idx is None


def test_building_a_net_around_its_weights_imports_next_to_nothing() -> None:
    """Where torch draws first values on the meta device it imports some 900 modules."""
    code = """
import sys
import torch
from omnisparse.models import LasConfig, TransducerConfig, build_model
build_model(LasConfig(), input_dim=80, vocab_size=9)  # what a net needs in any case
for encoder in ("lstm", "conformer"):
    build_model(TransducerConfig(encoder=encoder), input_dim=80, vocab_size=9)
before = len(sys.modules)
for config in (LasConfig(), TransducerConfig(), TransducerConfig(encoder="conformer")):
    with torch.device("meta"):
        build_model(config, input_dim=80, vocab_size=9)
print(len(sys.modules) - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 20
