"""Multi-head attention of the LAS decoder over the encoder's frames.

Legend: B batch, T' encoder frames, U tokens, D model, A attention dimension, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from omnisparse.models.losses import length_mask
from omnisparse.models.operations import count_product
from omnisparse.models.products_bf16 import Linear, in_float32, is_bf16_on_cpu


class AttentionMemory(NamedTuple):
    """The projected encoder frames, computed once and used for every token."""

    keys: Tensor
    """``[B * H, A / H, T']``; for dot products already scaled by ``sqrt(H / A)``."""

    values: Tensor
    """``[B * H, T', A / H]``."""

    bias: Tensor
    """``[B * H, 1, T']``: 0 on frames, minus infinity on padding."""


class MultiHeadAttention(nn.Module):
    """Attention with several heads; contexts are concatenated.

    The score of a frame is a scaled dot product of query and key, or additive: ``v tanh(query +
    key)`` with a vector of weights for each head.

    Args:
        query_dim: Width of the decoder state that makes the query.
        memory_dim: Width of the encoder frames.
        dim: Width A of all heads together, a multiple of ``heads``.
        heads: Number of heads H.
        additive: Additive scores instead of scaled dot products.

    Source: Pang et al. 2018, section 4 (4 heads, from Chiu et al. 2018, arXiv:1712.01769); additive
    scores Bahdanau et al. 2015, arXiv:1409.0473, section A.1.2. Deviation: without ``additive`` the
    score is a scaled dot product, one matrix product for all tokens.
    """

    def __init__(
        self, *, query_dim: int, memory_dim: int, dim: int, heads: int, additive: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dim = dim
        self.query = Linear(query_dim, dim)
        self.key = Linear(memory_dim, dim, bias=False)
        self.value = Linear(memory_dim, dim)
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight)
        for biased in (self.query, self.value):
            nn.init.zeros_(biased.bias)
        self.score: nn.Parameter | None = None
        if additive:
            bound = (heads / dim) ** 0.5
            self.score = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    def memory(self, encoded: Tensor, lengths: Tensor) -> AttentionMemory:
        """Project the encoder frames once for all tokens.

        Args:
            encoded: ``[B, T', D]``.
            lengths: ``[B]`` int64, >= 1.

        Returns:
            The memory that :meth:`forward` attends to.
        """
        scale = 1.0 if self.score is not None else (self.heads / self.dim) ** 0.5
        keys = (self._split(self.key(encoded)) * scale).transpose(1, 2)
        values = self._split(self.value(encoded))
        if is_bf16_on_cpu(encoded):  # the products with them are small
            keys = keys.float() if self.score is None else keys
            values = values.float()
        padding = ~length_mask(lengths, encoded.size(1)).repeat_interleave(self.heads, dim=0)
        bias = torch.zeros_like(padding, dtype=values.dtype).masked_fill_(padding, float("-inf"))
        return AttentionMemory(keys=keys, values=values, bias=bias[:, None, :])

    def forward(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """Contexts of ``[B, U, D]`` decoder states: ``[B, U, A]``."""
        weights = torch.softmax(self.scores(queries, memory), dim=-1)
        with in_float32(weights):
            context = torch.bmm(weights.to(memory.values.dtype), memory.values)
        count_product(weights.size(1) * memory.values.numel(), weights, memory.values)
        return rearrange(context, "(b h) u d -> b u (h d)", h=self.heads)

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """``[B * H, U, T']`` logits of the attention weights, minus infinity on padding."""
        split = self._split(self.query(queries))
        count_product(split.size(1) * memory.keys.numel(), split, memory.keys)
        if self.score is None:
            with in_float32(split):
                return torch.baddbmm(memory.bias, split.to(memory.keys.dtype), memory.keys)
        weights = self.score.view(self.heads, -1).repeat(memory.keys.size(0) // self.heads, 1)
        # One token at a time: all of them at once are [B * H, U, A / H, T'] values.
        rows = [
            (torch.tanh(query[:, :, None] + memory.keys) * weights[:, :, None]).sum(1)
            for query in split.unbind(1)
        ]
        return torch.stack(rows, dim=1) + memory.bias

    def _split(self, projected: Tensor) -> Tensor:
        """``[B, N, A]`` to ``[B * H, N, A / H]``."""
        return rearrange(projected, "b n (h d) -> (b h) n d", h=self.heads)
