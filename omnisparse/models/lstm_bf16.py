"""An LSTM layer in bfloat16 on a CPU: matrix products in bfloat16, gates and cells in float32.

On a CPU, ``nn.LSTM`` in bfloat16 also keeps its cells in bfloat16. There, a cell that changes
slowly stops changing (`findings/torch_cpu_bf16_lstm_cell.sh`). So the layer is written here. On a
processor with AVX512_BF16 one call of a compiled kernel computes all frames, recurrent products
included, each thread some of the utterances. It computes in the same way for any number of frames
and utterances, while oneDNN generates code for each (`findings/torch_cpu_bf16_new_shapes.sh`).

Elsewhere, for an LSTMP or an odd number of cells, and for many utterances where the processor has
tiles (AMX): oneDNN's matrix products, with weights packed once per call, and between them a
compiled kernel for the gates of a frame. Small layers are computed in another way there. For few
utterances and cells oneDNN's float32 LSTM is quicker, with inputs and weights that were rounded to
bfloat16; for short sequences it is oneDNN's bfloat16 LSTM, which keeps cells in float32 if the
first cell is float32. Where no kernel was built, oneDNN's LSTM does all the work; it has no LSTMP,
which is computed in float32 then.

The backward pass stores inputs, outputs and gate sums in bfloat16 and cells in float32, and makes
the weights' gradients of all frames in one product. Which way is taken depends only on shapes and
the machine, so a resumed run repeats it.

Legend: T frames, B batch, I input width, H cells, P output width (H without a projection).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from omnisparse.models.bf16_kernels import MAX_THREADS, has_pairs, has_tiles, kernels
from omnisparse.models.products_bf16 import rounded_rows, with_rounded_rows

_PLAIN = 4
"""Number of weights of an LSTM; an LSTMP has one more."""

_TILE = 64
"""Cells come in multiples of this where a kernel computes all frames."""

_FEW_FOR_TILES = 1 << 21
"""Multiplications of a frame's recurrent product from which oneDNN's tiles (AMX) are quicker than
that kernel (measured with 1 to 32 utterances and 128 to 512 cells), which also is quicker for..."""

_FEW_UTTERANCES = 4
"""...so many utterances: a tile has 16 rows."""

_LSTM_MODE = 2
"""oneDNN's number for an LSTM."""

_SMALL = 1 << 20
"""Multiplications of a frame's recurrent product below which float32 is quicker (measured with 1 to
25 utterances and 128 to 1400 cells). An LSTMP in float32 has no kernel, and is never quicker."""

_MEDIUM = 1 << 23
"""Multiplications below which oneDNN's LSTM is quicker for short sequences..."""

_FEW_FRAMES = 32
"""...of fewer frames than this: the kernel packs its weights in each call."""


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


def _places(tensor: Tensor) -> range:
    """Addresses of the parts along the first dimension of a contiguous tensor."""
    step = tensor.stride(0) * tensor.element_size()
    return range(tensor.data_ptr(), tensor.data_ptr() + step * tensor.size(0), step)


class _WholeLayer(torch.autograd.Function):
    """See :func:`lstm_bf16`; all frames in one call of a compiled kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
        inputs: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor,
        hidden: Tensor,
        cell: Tensor,
    ) -> tuple[Tensor, Tensor]:
        length, batch, _ = inputs.shape
        cells = weight_hh.size(1)
        rows = with_rounded_rows(inputs.reshape(length * batch, -1))
        sums = F.linear(rows, weight_ih, bias)  # of these it becomes the sums of all gates
        outputs = inputs.new_empty(length + 1, batch, cells)
        levels = torch.empty(length + 1, batch, cells)
        outputs[0], levels[0] = hidden, cell
        weight_hh = weight_hh.contiguous()
        packed = torch.empty_like(weight_hh)
        library.omni_lstm_pack(cells, weight_hh.data_ptr(), packed.data_ptr())
        places = [one.data_ptr() for one in (packed, sums, levels, outputs)]
        mode = library.omni_float_mode()
        _by_rows(
            batch,
            lambda first, last: library.omni_lstm_layer_forward(
                length, batch, first, last, cells, mode, *places
            ),
        )
        ctx.save_for_backward(inputs, weight_ih, weight_hh, outputs, levels, sums)
        ctx.library = library
        end = levels[-1].clone()
        ctx.mark_non_differentiable(end)
        return outputs[1:], end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight_ih, weight_hh, outputs, levels, sums = ctx.saved_tensors
        length, batch, _ = inputs.shape
        cells = weight_hh.size(1)
        packed = torch.empty_like(weight_hh)
        ctx.library.omni_lstm_pack_back(cells, weight_hh.data_ptr(), packed.data_ptr())
        flat = inputs.new_empty(rounded_rows(length * batch), 4 * cells)
        flat[length * batch :] = 0
        grad, cell_grad = grad.contiguous(), torch.zeros(batch, cells)
        places = [one.data_ptr() for one in (packed, sums, levels, grad, cell_grad, flat)]
        mode = ctx.library.omni_float_mode()
        _by_rows(
            batch,
            lambda first, last: ctx.library.omni_lstm_layer_backward(
                length, batch, first, last, cells, mode, *places
            ),
        )
        return (None, *_product_grads(ctx, inputs, weight_ih, weight_hh, outputs, flat), cell_grad)


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="lstm")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_workers.cache_clear)


def _by_rows(rows: int, compute: Callable[[int, int], object]) -> None:
    """Compute rows in as many parts as torch has threads; no row depends on another."""
    parts = min(torch.get_num_threads(), rows)
    ends = [rows * part // parts for part in range(parts + 1)]
    others = [_workers().submit(compute, *part) for part in pairwise(ends[1:])]
    compute(0, ends[1])
    for other in others:
        other.result()


def _product_grads(
    ctx: Any, inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, outputs: Tensor, flat: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of inputs, weights, bias and first output, from ``flat``, those of the sums."""
    length, batch, _ = inputs.shape
    real = length * batch
    columns = flat.t()
    return (
        (flat @ weight_ih)[:real].view(inputs.shape) if ctx.needs_input_grad[1] else None,
        columns @ with_rounded_rows(inputs.reshape(real, -1)),
        columns @ with_rounded_rows(outputs[:-1].reshape(real, -1)),
        flat[:real].sum(0),
        flat[:batch] @ weight_hh if ctx.needs_input_grad[-2] else None,
    )


class _Layer(torch.autograd.Function):
    """See :func:`lstm_bf16`."""

    @staticmethod
    def forward(
        ctx: Any,
        library: ctypes.CDLL,
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
        rows = with_rounded_rows(inputs.reshape(length * batch, -1))
        from_inputs = torch.split(F.linear(rows, weight_ih, bias)[: length * batch], batch)
        recur = _Product(weight_hh, batch)
        project = None if weight_hr is None else _Product(weight_hr, batch)
        outputs = inputs.new_empty(length + 1, batch, weight_hh.size(1))
        levels = torch.empty(length + 1, batch, cells)
        outputs[0], levels[0] = hidden, cell
        emitted = outputs if project is None else inputs.new_empty(length + 1, batch, cells)
        output_at, level_at, emitted_at = outputs.unbind(0), _places(levels), _places(emitted)
        sums: list[Tensor] = []
        for step, from_input in enumerate(from_inputs):
            total = recur(output_at[step], from_input)
            sums.append(total)
            library.omni_lstm_forward(
                batch, cells, total.data_ptr(), level_at[step], level_at[step + 1],
                emitted_at[step + 1],
            )  # fmt: skip
            if project is not None:
                output_at[step + 1].copy_(project(emitted[step + 1]))
        ctx.save_for_backward(inputs, weight_ih, weight_hh, weight_hr, outputs, levels, *sums)
        ctx.library = library
        last = levels[-1].clone()
        ctx.mark_non_differentiable(last)
        return outputs[1:], last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight_ih, weight_hh, weight_hr, outputs, levels, *sums = ctx.saved_tensors
        length, batch, _ = inputs.shape
        cells = weight_hh.size(0) // 4
        recur = _Product(weight_hh.t().contiguous(), batch)
        project = None if weight_hr is None else _Product(weight_hr.t().contiguous(), batch)
        flat = inputs.new_empty(rounded_rows(length * batch), 4 * cells)
        flat[length * batch :] = 0
        sums_grad = flat[: length * batch].view(length, batch, -1)
        # Without a projection the emissions are the outputs, which are there already.
        emitted = inputs.new_empty(1 if project is None else length, batch, cells)
        emitted_at = _places(emitted)
        output_grads: list[Tensor] = []
        cell_grad = torch.zeros(batch, cells)
        grad_at, sum_at = grad.contiguous().unbind(0), sums_grad.unbind(0)
        level_at, place_at = _places(levels), _places(sums_grad)
        for step in range(length - 1, -1, -1):
            arrived = grad_at[step]
            if step + 1 < length:
                arrived = recur(sum_at[step + 1], arrived)
            if project is not None:
                output_grads.append(arrived)
                arrived = project(arrived)
            ctx.library.omni_lstm_backward(
                batch, cells, sums[step].data_ptr(), level_at[step], level_at[step + 1],
                arrived.data_ptr(), cell_grad.data_ptr(), place_at[step],
                emitted_at[0 if project is None else step],
            )  # fmt: skip
        hr_grad = None
        if weight_hr is not None:
            arrivals = with_rounded_rows(torch.cat(output_grads[::-1]))
            hr_grad = arrivals.t() @ with_rounded_rows(emitted.flatten(0, 1))
        *grads, first = _product_grads(ctx, inputs, weight_ih, weight_hh, outputs, flat)
        return (None, *grads, hr_grad, first, cell_grad if ctx.needs_input_grad[7] else None)


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
        float32 cell. Only oneDNN's LSTM gives the cell a gradient.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights[:_PLAIN]
    cells = weight_hh.size(0) // 4
    batch = inputs.size(1)
    if state is None:
        hidden = inputs.new_zeros(batch, weight_hh.size(1))
        cell = inputs.new_zeros(batch, cells, dtype=torch.float32)
    else:
        hidden, cell = state[0].to(inputs.dtype), state[1].float()
    library = kernels()
    plain, per_frame = len(weights) == _PLAIN, batch * weight_hh.numel()
    fused = plain and per_frame >= _SMALL and hasattr(torch.ops.aten, "mkldnn_rnn_layer")
    short = fused and per_frame < _MEDIUM and inputs.size(0) < _FEW_FRAMES
    few = batch <= _FEW_UTTERANCES or per_frame < _FEW_FOR_TILES
    whole = plain and cells % _TILE == 0 and has_pairs() and (few or not has_tiles())
    if library is not None and whole:
        outputs, last = _WholeLayer.apply(  # type: ignore[no-untyped-call]
            library, inputs, weight_ih, weight_hh, bias_ih + bias_hh, hidden, cell
        )
    elif library is not None and not short and not (plain and per_frame < _SMALL):
        weight_hr = weights[_PLAIN] if len(weights) > _PLAIN else None
        outputs, last = _Layer.apply(  # type: ignore[no-untyped-call]
            library, inputs, weight_ih, weight_hh, bias_ih + bias_hh, weight_hr, hidden, cell
        )
    elif fused:
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
    else:
        wide = [weight.float() for weight in weights]
        first = (hidden.float()[None], cell[None])
        training = torch.is_grad_enabled()
        outputs, _, last = torch.lstm(
            inputs.float(), first, wide, True, 1, 0.0, training, False, False
        )
        outputs, last = outputs.to(inputs.dtype), last[0]
    return outputs, (outputs[-1], last)
