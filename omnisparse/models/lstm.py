"""LSTM layers and the unidirectional LSTM encoder with time reduction.

Time is the first dimension inside this file: that is the layout of the fused LSTM kernels.

Legend: B batch, T frames, F features, D model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from omnisparse.models.dropout import Dropout
from omnisparse.models.encoder import Encoder
from omnisparse.models.lstm_bf16 import lstm_bf16
from omnisparse.models.made_again import between_layers, made_again, pair
from omnisparse.models.operations import count_product

LstmState = tuple[Tensor, Tensor]
"""Output ``[B, P]`` and cell ``[B, H]`` of one layer (P = projection, or H without one)."""

_NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def make_lstm(input_dim: int, dim: int, projection: int | None = None) -> nn.LSTM:
    """A single-layer unidirectional LSTM over ``[T, B, input_dim]``, optionally an LSTMP.

    Args:
        input_dim: Width of the input.
        dim: Number of cells H.
        projection: Width of the output and recurrence, below ``dim``; None for a plain LSTM.

    Returns:
        The layer, uniform in +-1/sqrt(H), with forget-gate bias 1 and the other biases 0.

    Source: Pang et al. 2018, eqs. 6-11 (``weight_hr_l0`` is W_mc of eq. 11). ``bias_hh_l0`` is
    redundant beside ``bias_ih_l0``; it stays because the fused kernels need it.
    """
    layer = nn.LSTM(input_dim, dim, proj_size=projection or 0)
    with torch.no_grad():
        input_bias, hidden_bias = tensors(layer, "bias_ih_l0", "bias_hh_l0")
        input_bias.zero_()
        hidden_bias.zero_()
        # A forget gate that starts open lets gradients pass over many steps from the beginning.
        input_bias[dim : 2 * dim].fill_(1.0)
    return layer


def tensors(layer: nn.LSTM, *names: str) -> list[Tensor]:
    """The named parameters of a layer, or their replacements inside a ``functional_call``."""
    return [cast(Tensor, getattr(layer, name)) for name in names]


def run_lstm(
    layer: nn.LSTM, inputs: Tensor, state: LstmState | None = None
) -> tuple[Tensor, LstmState]:
    """Run a layer over a sequence.

    Args:
        layer: From :func:`make_lstm`.
        inputs: ``[T, B, input_dim]``.
        state: State before the first frame; None for zeros.

    Returns:
        ``[T, B, P]`` outputs and the state after the last frame, in the dtype of the inputs. Under
        autocast, outputs have autocast's dtype, and on a CPU the cell is float32.
    """
    device = inputs.device.type
    weights = tensors(layer, *_NAMES, *(("weight_hr_l0",) if layer.proj_size else ()))
    _count(inputs, weights)
    dtype = autocast_dtype(device)
    if dtype is not None:
        # Cast here, because torch's autocast casts cuDNN's LSTM to fp16 even when another dtype
        # is set, and fp16 overflows without scaled losses.
        inputs, weights = inputs.to(dtype), _cast(weights, dtype)
    with torch.autocast(device, enabled=False) if dtype is not None else nullcontext():
        if dtype is torch.bfloat16 and device == "cpu":
            return lstm_bf16(inputs, weights, state)
        batch = inputs.size(1)
        if state is None:
            hidden = inputs.new_zeros(1, batch, layer.proj_size or layer.hidden_size)
            cell = inputs.new_zeros(1, batch, layer.hidden_size)
        else:
            hidden, cell = (part.to(inputs.dtype).unsqueeze(0) for part in state)
        with warnings.catch_warnings():
            # Both warnings are about speed and cannot be fixed here: oneDNN has no LSTMP, and the
            # masked float32 weights of a subnet are never one chunk of memory.
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported")
            warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
            outputs, hidden, cell = torch.lstm(
                inputs, (hidden, cell), weights, True, 1, 0.0, layer.training, False, False
            )
    return outputs, (hidden.squeeze(0), cell.squeeze(0))


def _count(inputs: Tensor, weights: Sequence[Tensor]) -> None:
    """Count the products of ``[..., input_dim]`` inputs; outputs need a gradient if weights do."""
    rows = inputs.numel() // inputs.size(-1)
    weight_ih, *others = [weight for weight in weights if weight.dim() == 2]
    count_product(rows * weight_ih.numel(), inputs, weight_ih)
    for weight in others:
        count_product(rows * weight.numel(), weight_ih, weight)


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype of autocast on a device; None if autocast is off."""
    if device not in ("cuda", "cpu") or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


class _OneChunk(torch.autograd.Function):
    """Casts of some tensors in one chunk of memory, so that cuDNN need not copy them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [weight.dtype for weight in weights]
        chunk = weights[0].new_empty(sum(weight.numel() for weight in weights), dtype=dtype)
        # cuDNN's order: all matrices, then all biases.
        order = sorted(range(len(weights)), key=lambda index: weights[index].ndim == 1)
        parts = torch.split(chunk, [weights[index].numel() for index in order])
        views = {index: part for index, part in zip(order, parts, strict=True)}
        return tuple(
            views[index].view_as(weight).copy_(weight) for index, weight in enumerate(weights)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)))


def _cast(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights in ``dtype``; those of a subnet may have it already."""
    if all(weight.dtype == dtype for weight in weights):
        return weights
    if weights[0].is_cuda:
        return list(_OneChunk.apply(dtype, *weights))  # type: ignore[no-untyped-call]
    return [weight.to(dtype) for weight in weights]


def lstm_step(layer: nn.LSTM, inputs: Tensor, state: LstmState) -> tuple[Tensor, LstmState]:
    """Run a layer for one step; quicker than :func:`run_lstm` with T = 1.

    Args:
        layer: From :func:`make_lstm`.
        inputs: ``[B, input_dim]``.
        state: State before the step.

    Returns:
        ``[B, P]`` output and the state after the step.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = tensors(layer, *_NAMES)
    _count(
        inputs, (weight_ih, weight_hh, *tensors(layer, *("weight_hr_l0",) * bool(layer.proj_size)))
    )
    if not layer.proj_size and autocast_dtype(inputs.device.type) is None:
        hidden, cell = torch.lstm_cell(inputs, state, weight_ih, weight_hh, bias_ih, bias_hh)
        return hidden, (hidden, cell)
    # torch has no LSTMP cell, and none whose cell stays float32 under autocast.
    gates = F.linear(inputs, weight_ih, bias_ih) + F.linear(state[0], weight_hh, bias_hh)
    admit, forget, candidate, emit = gates.to(state[1].dtype).chunk(4, dim=-1)
    cell = forget.sigmoid() * state[1] + admit.sigmoid() * candidate.tanh()
    hidden = emit.sigmoid() * cell.tanh()
    if layer.proj_size:
        (weight_hr,) = tensors(layer, "weight_hr_l0")
        hidden = F.linear(hidden, weight_hr)
    return hidden, (hidden, cell)


def zero_state(layer: nn.LSTM, batch: int) -> LstmState:
    """The state before the first step, for ``batch`` sequences."""
    (weight,) = tensors(layer, "weight_ih_l0")
    return (
        weight.new_zeros(batch, layer.proj_size or layer.hidden_size),
        weight.new_zeros(batch, layer.hidden_size),
    )


class _Memory(NamedTuple):
    """State of the encoder between two chunks."""

    layers: tuple[LstmState, ...]
    """One state per layer."""

    pending: tuple[Tensor | None, ...]
    """Per time reduction ``[1, B, D]``: a frame that waits for the second of its pair. With
    ``stacked`` one entry ``[n, B, F]``: frames that wait for the rest of their stack."""

    has_begun: bool = False
    """Whether a stack was encoded; for ``stacked``."""


class LstmEncoder(Encoder):
    """Stacked unidirectional LSTM layers; the first ones may each halve the frame rate.

    Args:
        input_dim: Width F of the features.
        num_layers: LSTM layers.
        dim: Cells per layer.
        projection: LSTMP width, None for plain LSTM layers.
        time_reduction: Input frames per output frame, a power of two: one halving (two frames
            concatenated) after each of the first log2(time_reduction) layers.
        dropout: Probability, on the output of every layer.
        layer_norm: Normalise the output of every layer.
        stacked: Join ``time_reduction`` input frames, any number, and project them to the width of
            the layers, instead of halving. Frames at the end that fill no stack are left out.

    Source: NeMo 3.0, ``RNNEncoder`` with ``subsampling: stacking``, for ``stacked``. Deviation:
    NeMo counts one more stack where an utterance is padded to a longer one of its batch.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        num_layers: int,
        dim: int,
        projection: int | None = None,
        time_reduction: int = 1,
        dropout: float = 0.0,
        layer_norm: bool = True,
        stacked: bool = False,
    ) -> None:
        super().__init__()
        self.num_reductions = 0 if stacked else num_reductions(time_reduction, num_layers)
        self.stack = time_reduction if stacked else 1
        self.output_dim = projection or dim
        self.input_projection: nn.Linear | None = None
        if stacked:
            self.input_projection = nn.Linear(time_reduction * input_dim, self.output_dim)
            input_dim = self.output_dim
        widths = [input_dim] + [
            self.output_dim * (2 if index < self.num_reductions else 1)
            for index in range(num_layers - 1)
        ]
        self.layers = nn.ModuleList(make_lstm(width, dim, projection) for width in widths)
        self.norms = nn.ModuleList(
            nn.LayerNorm(self.output_dim) if layer_norm else nn.Identity() for _ in widths
        )
        self.dropout = Dropout(dropout)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Output frames for ``[B]`` input lengths: halved and rounded up, at least 1.

        With ``stacked``, whole stacks, and at least 1.
        """
        if self.input_projection is not None:
            lengths = lengths // self.stack
        for _ in range(self.num_reductions):
            lengths = (lengths + 1) // 2
        return lengths.clamp(min=1)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch; padding never influences a valid frame.

        Args:
            features: ``[B, T, F]`` float32.
            lengths: ``[B]`` int64.

        Returns:
            ``[B, T', D]`` encodings and ``[B]`` int64 lengths.
        """
        # No packing needed: the layers look only back, so padding does not reach a valid frame.
        frames = features.transpose(0, 1).contiguous()
        if self.input_projection is not None:
            valid = torch.arange(frames.size(0), device=frames.device)[:, None] < lengths
            frames = self._stacked(frames * valid[:, :, None].to(frames.dtype))
            lengths = lengths // self.stack
        make = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.LSTM)
            with made_again(frames, make):
                outputs, _ = run_lstm(layer, frames)
            real: Tensor | None = None
            if index < self.num_reductions:
                real = torch.arange(outputs.size(0), device=outputs.device)[:, None] < lengths
                lengths = (lengths + 1) // 2
            frames, make = between_layers(outputs, self.norms[index], self.dropout, real)
        return frames.transpose(0, 1), lengths.clamp(min=1)

    def initial_memory(self, batch: int) -> _Memory:
        """Zeros, and no frame waiting."""
        states = tuple(zero_state(layer, batch) for layer in self.layers)  # type: ignore[arg-type]
        waits = self.num_reductions if self.input_projection is None else 1
        return _Memory(layers=states, pending=(None,) * waits)

    def advance(self, features: Tensor, memory: Any, *, final: bool) -> tuple[Tensor, _Memory]:
        """Run the layers from their present state; see :meth:`Encoder.forward_chunk`."""
        assert isinstance(memory, _Memory)
        frames = features.transpose(0, 1)
        states, pending = list(memory.layers), list(memory.pending)
        has_begun = memory.has_begun
        if self.input_projection is not None:
            if pending[0] is not None:
                frames = torch.cat([pending[0], frames])
            whole = frames.size(0) // self.stack * self.stack
            if final and not has_begun:
                whole = max(whole, min(self.stack, frames.size(0)))
            pending[0] = frames[whole:].clone()
            has_begun = has_begun or whole > 0
            frames = self._stacked(frames[:whole])
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.LSTM)
            if frames.size(0) == 0:
                frames = frames.new_zeros(0, frames.size(1), self.output_dim)
            else:
                frames, states[index] = run_lstm(layer, frames, states[index])
                frames = self.dropout(self.norms[index](frames))
            if index < self.num_reductions:
                waiting = pending[index]
                if waiting is not None:
                    frames = torch.cat([waiting, frames])
                paired = frames.size(0) if final else frames.size(0) // 2 * 2
                # A clone, so that a long chunk does not stay in memory with its last frame.
                pending[index] = frames[paired:].clone() if paired < frames.size(0) else None
                frames = pair(frames[:paired])
        return frames.transpose(0, 1), _Memory(tuple(states), tuple(pending), has_begun)

    def _stacked(self, frames: Tensor) -> Tensor:
        """Projected whole stacks of ``[T, B, F]``; fewer frames than one are filled with zeros."""
        assert self.input_projection is not None
        if 0 < frames.size(0) < self.stack:
            frames = F.pad(frames, (0, 0, 0, 0, 0, self.stack - frames.size(0)))
        whole = frames[: frames.size(0) // self.stack * self.stack]
        joined = rearrange(
            whole, "(time stack) batch dim -> time batch (stack dim)", stack=self.stack
        )
        projected: Tensor = self.input_projection(joined)
        return projected


def num_reductions(time_reduction: int, num_layers: int) -> int:
    """Halvings of the frame rate in an encoder.

    Args:
        time_reduction: Input frames per output frame.
        num_layers: Layers of the encoder.

    Returns:
        log2 of ``time_reduction``.

    Raises:
        ValueError: If ``time_reduction`` is no power of two, or needs more layers than there are.
    """
    halvings = time_reduction.bit_length() - 1
    if time_reduction < 1 or time_reduction != 1 << halvings or halvings >= num_layers:
        raise ValueError(
            f"time_reduction is {time_reduction}; with {num_layers} encoder layers it must be a "
            f"power of two from 1 to {1 << (num_layers - 1)}"
        )
    return halvings
