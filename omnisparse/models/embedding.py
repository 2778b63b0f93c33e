"""Embeddings of tokens."""

from __future__ import annotations

import torch
from torch import nn


def make_embedding(vocab_size: int, dim: int) -> nn.Embedding:
    """Vectors of tokens, ``[vocab_size, dim]``, with torch's own first values.

    On the meta device, where a net is built around weights that are there, no values are drawn:
    torch imports 900 modules for that, more than a second wherever a net is loaded.
    """
    weight = torch.empty(vocab_size, dim)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(vocab_size, dim, _weight=weight)
