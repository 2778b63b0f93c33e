"""A factored net from a trained dense one: LSTM layers become LSTMP layers by truncated SVD.

The model's configuration (``encoder_projection``, ``decoder_projection``) gives LSTMP layers that
are trained from scratch (Pang et al. 2018, eq. 11). This file starts from a trained dense net with
the same cells and no projection: it is factorised layer by layer and then fine-tuned. This file
knows which matrix reads which layer; the decomposition is in ``sparsity/lowrank.py``.

Source: Prabhavalkar et al. 2016, arXiv:1603.08042, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from omnisparse.models import LasModel, SpeechModel, TransducerModel
from omnisparse.models.lstm import LstmEncoder
from omnisparse.sparsity.lowrank import Reader, RecurrentLayer, factorize_layers


def factorize(dense: SpeechModel, factored: SpeechModel) -> dict[str, Tensor]:
    """State dict for ``factored`` that comes as close to ``dense`` as its ranks allow.

    Args:
        dense: A net with plain LSTM layers of the same cells where ``factored`` has LSTMP layers.
        factored: The net to train; only its shape is read.

    Raises:
        ValueError: If the two nets do not correspond; names the first difference.
    """
    layers = [
        layer for layer in projected_layers(factored) if not _lstm(dense, layer.name).proj_size
    ]
    _check_relatives(dense, factored, layers)
    state = factorize_layers(dense.state_dict(), layers)
    wanted = factored.state_dict()
    for name in [*wanted, *state]:
        found, needed = state.get(name), wanted.get(name)
        if found is None or needed is None or found.shape != needed.shape:
            raise ValueError(
                f"{name} becomes {_shape(found)} when factorised, and {_shape(needed)} is needed"
            )
    return state


def projected_layers(model: SpeechModel) -> list[RecurrentLayer]:
    """The LSTMP layers of ``model`` and the matrices that read each.

    Raises:
        ValueError: If the kind of the model is not supported here.
    """
    if not isinstance(model, LasModel | TransducerModel):
        raise ValueError(f"a {model.kind} cannot be factorised; legal: las, transducer")
    found = []
    encoder = model.encoder
    if not isinstance(encoder, LstmEncoder):
        raise ValueError("an encoder without LSTM layers cannot be factorised; legal: lstm")
    if isinstance(model, LasModel):
        ends = [Reader(weight="attention.key.weight"), Reader(weight="attention.value.weight")]
    else:
        ends = [Reader(weight="joiner.encoder_projection.weight")]
    if model.ctc_output is not None:
        ends.append(Reader(weight="ctc_output.weight"))
    for index in range(len(encoder.layers)):
        copies = 2 if index < encoder.num_reductions else 1
        following = Reader(weight=f"encoder.layers.{index + 1}.weight_ih_l0", copies=copies)
        is_normalised = isinstance(encoder.norms[index], nn.LayerNorm)
        found.append(
            RecurrentLayer(
                name=f"encoder.layers.{index}",
                rank=_lstm(model, f"encoder.layers.{index}").proj_size,
                readers=tuple(ends) if index + 1 == len(encoder.layers) else (following,),
                norm=f"encoder.norms.{index}" if is_normalised else None,
            )
        )
    if isinstance(model, LasModel):
        found += _decoder_layers(model)
    return [layer for layer in found if layer.rank]


def _decoder_layers(model: LasModel) -> list[RecurrentLayer]:
    count = len(model.decoder.layers)
    found = []
    for index in range(count):
        last = index + 1 == count
        following = "output.weight" if last else f"decoder.layers.{index + 1}.weight_ih_l0"
        # One layer also makes the query; in its readers, columns of the context come last.
        makes_query = last if model.decoder.feeds_context else index == 0
        asks = [Reader(weight="attention.query.weight")] if makes_query else []
        found.append(
            RecurrentLayer(
                name=f"decoder.layers.{index}",
                rank=_lstm(model, f"decoder.layers.{index}").proj_size,
                readers=(*asks, Reader(weight=following)),
            )
        )
    return found


def _check_relatives(
    dense: SpeechModel, factored: SpeechModel, layers: list[RecurrentLayer]
) -> None:
    for layer in layers:
        cells, wanted = (_lstm(net, layer.name).hidden_size for net in (dense, factored))
        if cells != wanted:
            raise ValueError(
                f"{layer.name} has {cells} cells, and {wanted} are needed: an SVD narrows the "
                "output of a layer, not its cells"
            )


def _lstm(model: SpeechModel, name: str) -> nn.LSTM:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"there is no layer {name}") from error
    assert isinstance(module, nn.LSTM)
    return module


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else " x ".join(map(str, tensor.shape))
