from __future__ import annotations

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile(
    "sparsity", max_examples=40, deadline=None, database=None, derandomize=True
)
hypothesis.settings.load_profile("sparsity")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
