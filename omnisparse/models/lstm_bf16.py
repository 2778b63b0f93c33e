"""An LSTM layer in bfloat16 on a CPU: matrix products in bfloat16, gates and cells in float32.

On a CPU, ``nn.LSTM`` in bfloat16 also keeps its cells in bfloat16. There, a cell that changes
slowly stops changing (`findings/torch_cpu_bf16_lstm_cell.sh`). The kernel behind it keeps cells in
float32 if the first cell is float32, so it is called directly. It does not support LSTMP. That is
written here: oneDNN's matrix products, with weights packed once per call, and float32 between them.
The backward pass stores inputs, outputs and gate sums in bfloat16 and cells in float32.

Legend: T frames, B batch, I input width, H cells, P output width (H without a projection).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_PLAIN = 4
"""Number of weights of an LSTM; an LSTMP has one more."""

_LSTM_MODE = 2
"""oneDNN's number for an LSTM."""

_FEW_ROWS = 8
"""Utterances up to which float32 products of the same bfloat16 numbers are quicker: what costs time
there is moving the weights and their gradients through memory, not the products."""

_CHUNK_VALUES = 1 << 15
"""Cells whose factors the backward pass computes at a time: they fit a core's cache."""


class _Product:
    """``x @ weight.T + other`` for one weight and many x; the weight's layout is chosen once."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight = weight
        self.packed: Tensor | None = None
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            self.plus = torch.ops.mkldnn._linear_pointwise.binary
            self.alone = torch.ops.mkldnn._linear_pointwise.default

    def __call__(self, rows: Tensor, other: Tensor | None = None) -> Tensor:
        product: Tensor
        if self.packed is None:
            product = F.linear(rows, self.weight)
            return product if other is None else product + other
        if other is None:
            product = self.alone(rows, self.packed, None, "none", [], "")
        else:
            product = self.plus(rows, other, self.packed, None, "add")
        return product


class _Layer(torch.autograd.Function):
    """See :func:`lstm_bf16`.

    Two exact changes of scale save passes over the data. Because tanh(x) is 2 sigmoid(2 x) - 1, the
    rows of the weights for the candidate gate are doubled, and twice the cell is stored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor,
        weight_hr: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
    ) -> tuple[Tensor, Tensor]:
        length, batch, _ = inputs.shape
        cells = weight_hh.size(0) // 4
        from_inputs = F.linear(inputs, weight_ih, bias).unbind(0)
        recur = _Product(weight_hh, batch)
        project = None if weight_hr is None else _Product(weight_hr, batch)
        outputs = inputs.new_empty(length + 1, batch, weight_hh.size(1))
        outputs[0] = hidden
        doubled = torch.empty(length + 1, batch, cells)
        torch.mul(cell, 2, out=doubled[0])
        gates = torch.empty(batch, 4 * cells)
        admit, forget, candidate, emit = gates.chunk(4, dim=1)
        level = torch.empty(batch, cells)
        emitted = inputs.new_empty(batch, cells)
        sums: list[Tensor] = []
        output_at, cell_at = outputs.unbind(0), doubled.unbind(0)
        for step, from_input in enumerate(from_inputs):
            total = recur(output_at[step], from_input)
            sums.append(total)
            gates.copy_(total)
            gates.sigmoid_()
            candidate.sub_(0.5)
            now = cell_at[step + 1]
            torch.mul(forget, cell_at[step], out=now)
            now.addcmul_(admit, candidate, value=4)
            torch.sigmoid(now, out=level)
            level.sub_(0.5).mul_(emit)
            if project is None:
                torch.mul(level, 2, out=output_at[step + 1])
            else:
                torch.mul(level, 2, out=emitted)
                output_at[step + 1].copy_(project(emitted))
        ctx.save_for_backward(inputs, weight_ih, weight_hh, weight_hr, outputs, doubled, *sums)
        last = doubled[-1] / 2
        ctx.mark_non_differentiable(last)
        return outputs[1:], last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight_ih, weight_hh, weight_hr, outputs, doubled, *sums = ctx.saved_tensors
        length, batch, _ = inputs.shape
        cells = weight_hh.size(0) // 4
        recur = _Product(weight_hh.t().contiguous(), batch)
        project = None if weight_hr is None else _Product(weight_hr.t().contiguous(), batch)
        sums_grad = inputs.new_empty(length, batch, 4 * cells)
        output_grads: list[Tensor] = []
        emitted: list[Tensor] = []
        # Of a frame: gradients of its cell (three times, for three gates) and of its emission.
        reached = torch.zeros(batch, 4, cells)
        cell_grad, thrice, emit_grad = torch.zeros(batch, cells), reached[:, :3], reached[:, 3]
        once = cell_grad[:, None]
        grad_at, sum_at = grad.contiguous().unbind(0), sums_grad.unbind(0)
        stride = max(1, _CHUNK_VALUES // max(1, batch * cells))
        for end in range(length, 0, -stride):
            start = max(0, end - stride)
            factors, forget, through, level = _factors(sums[start:end], doubled[start : end + 1])
            if project is not None:
                emitted.append(level)
            forget_at, through_at = forget.unbind(0), through.unbind(0)
            factor_at = factors.unbind(0)
            for step in range(end - 1, start - 1, -1):
                here = step - start
                arrived = grad_at[step]
                if step + 1 < length:
                    arrived = recur(sum_at[step + 1].view(batch, -1), arrived)
                if project is not None:
                    output_grads.append(arrived)
                    arrived = project(arrived)
                emit_grad.copy_(arrived)
                cell_grad.addcmul_(emit_grad, through_at[here])
                thrice.copy_(once)
                torch.mul(reached, factor_at[here], out=sum_at[step].view(batch, 4, cells))
                cell_grad.mul_(forget_at[here])
        flat = sums_grad.flatten(0, 1)
        columns = flat.t()
        hr_grad = None
        if weight_hr is not None:
            arrived = torch.stack(output_grads[::-1]).flatten(0, 1)
            hr_grad = arrived.t() @ torch.cat(emitted[::-1]).flatten(0, 1)
        return (
            (flat @ weight_ih).view_as(inputs) if ctx.needs_input_grad[0] else None,
            columns @ inputs.reshape(len(flat), -1),
            columns @ outputs[:-1].reshape(len(flat), -1),
            flat.sum(0),
            hr_grad,
            sums_grad[0] @ weight_hh if ctx.needs_input_grad[5] else None,
            cell_grad * 2 if ctx.needs_input_grad[6] else None,
        )


def _factors(sums: Sequence[Tensor], doubled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of some frames, and their emissions.

    Args:
        sums: ``[B, 4 H]`` bfloat16 of each frame, before the gates' sigmoid.
        doubled: ``[n + 1, B, H]`` float32, twice the cells before the first frame and after each.

    Returns:
        ``[n, B, 4, H]``: of doubled cell (three times) and emission by the sums; ``[n, B, H]``
        each: of a doubled cell by the one before, of the emission by the doubled cell; and the
        emission itself, bfloat16. All float32 otherwise.
    """
    batch, cells = doubled.shape[1:]
    gates = torch.stack(list(sums)).float().sigmoid_().view(-1, batch, 4, cells)
    admit, forget, candidate, emit = gates.unbind(2)
    candidate.sub_(0.5)
    level = torch.sigmoid(doubled[1:]).sub_(0.5)
    factors = torch.addcmul(gates, gates, gates, value=-1)  # sigmoid' = s - s^2
    factors[:, :, 0].mul_(candidate).mul_(4)
    factors[:, :, 1].mul_(doubled[:-1])
    torch.mul(candidate, candidate, out=factors[:, :, 2]).mul_(-4).add_(1).mul_(admit)
    factors[:, :, 3].mul_(level).mul_(2)
    through = torch.mul(level, level).mul_(-2).add_(0.5).mul_(emit)
    emission = level.mul_(emit).mul_(2).to(sums[0].dtype)
    return factors, forget, through, emission


def lstm_bf16(
    inputs: Tensor, weights: Sequence[Tensor], state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one unidirectional LSTM layer with products in bfloat16 and cells in float32.

    Args:
        inputs: ``[T, B, I]`` bfloat16 on a CPU, T >= 1.
        weights: Weights of ``nn.LSTM``, bfloat16: ``weight_ih``, ``weight_hh``, ``bias_ih``,
            ``bias_hh``, and ``weight_hr`` of an LSTMP.
        state: ``[B, P]`` output and ``[B, H]`` cell before the first frame; None for zeros.

    Returns:
        ``[T, B, P]`` bfloat16 outputs, and the state after the last frame: bfloat16 output and
        float32 cell. The cell of an LSTMP has no gradient.
    """
    weight_hh = weights[1]
    cells = weight_hh.size(0) // 4
    batch = inputs.size(1)
    if state is None:
        hidden = inputs.new_zeros(batch, weight_hh.size(1))
        cell = inputs.new_zeros(batch, cells, dtype=torch.float32)
    else:
        hidden, cell = state[0].to(inputs.dtype), state[1].float()
    if len(weights) != _PLAIN or not hasattr(torch.ops.aten, "mkldnn_rnn_layer"):
        outputs, last = stepwise_lstm(inputs, weights, hidden, cell)
    elif batch <= _FEW_ROWS:
        wide = [weight.float() for weight in weights]
        first = (hidden.float()[None], cell[None])
        training = torch.is_grad_enabled()
        outputs, _, last = torch.lstm(
            inputs.float(), first, wide, True, 1, 0.0, training, False, False
        )
        outputs, last = outputs.to(inputs.dtype), last[0]
    else:
        outputs, _, last, _ = torch.ops.aten.mkldnn_rnn_layer(
            inputs,
            *weights,
            hidden,
            cell,
            False,  # not reversed
            [],
            _LSTM_MODE,
            cells,
            1,
            True,
            False,
            False,
            torch.is_grad_enabled(),
        )
    return outputs, (outputs[-1], last)


def stepwise_lstm(
    inputs: Tensor, weights: Sequence[Tensor], hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`lstm_bf16` step by step, for LSTM and LSTMP: outputs and the last cell."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights[:_PLAIN]
    weight_hr = weights[_PLAIN] if len(weights) > _PLAIN else None
    scale = weight_ih.new_ones(4, 1)
    scale[2] = 2.0
    result: tuple[Tensor, Tensor] = _Layer.apply(  # type: ignore[no-untyped-call]
        inputs,
        (weight_ih.view(4, -1) * scale).view_as(weight_ih),
        (weight_hh.view(4, -1) * scale).view_as(weight_hh),
        ((bias_ih + bias_hh).view(4, -1) * scale).flatten(),
        weight_hr,
        hidden,
        cell,
    )
    return result
