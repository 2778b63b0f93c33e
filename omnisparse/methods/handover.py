"""What a smaller net takes over from a trained larger one: some layers, some units, low ranks.

The nets are of one kind. The smaller one may have fewer layers, narrower ones, and matrices that
are products of two factors; everything that fits is copied, so that training goes on from there.

Choice: which layers and units are kept is not published for progressive distillation. Here the
first layer stays (and those behind it whose input has another width, as after a time reduction),
and the others are spread evenly, the last among them. Of a feed-forward part the units with the
largest product of their norms stay; of all other widths the first units of every head, gate or
stacked frame, because parameters that share a width must keep the same units. Factors come from
truncated singular value decompositions (Eckart & Young 1936) of what is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from omnisparse.models import LasModel, SpeechModel
from omnisparse.models.conformer import CausalConvolution, SegmentAttention
from omnisparse.models.emformer import EmformerEncoder
from omnisparse.models.encoder import SegmentEncoder
from omnisparse.models.factored import (
    factor_names,
    factor_tensors,
    factored_units,
    joined,
    multiplied_out,
)
from omnisparse.models.lstm import LstmEncoder
from omnisparse.sparsity.decomposition import Decomposition

Parts = tuple[int, ...]
"""Sizes of the parts that an axis of a tensor consists of, such as heads or gates."""

_LAYER = re.compile(r"(encoder(?:\.emformer)?|decoder|predictor)\.(\w*layers|norms)\.(\d+)\.")
_FEED_FORWARD = re.compile(
    r"(.*(?:feed_forward\.|pos_ff\.))(?:expand|contract|1|4)\.(?:weight|bias)$"
)


def hand_over(source: SpeechModel, student: SpeechModel) -> dict[str, Tensor]:
    """State dict for ``student`` from a trained net that is at least as large.

    Args:
        source: The trained net; factored matrices count as their products.
        student: A net of the same kind with at most as many layers and units.

    Raises:
        ValueError: If a tensor of the student has no counterpart, or a larger one than there is;
            names the tensor and both shapes.
    """
    larger, smaller = multiplied_out(source), multiplied_out(student)
    theirs, ours = larger.state_dict(), smaller.state_dict()
    their_parts, our_parts = _axes(larger), _axes(smaller)
    kept = {name: _kept_layers(name, larger, smaller) for name in _layer_lists(smaller)}
    units = _feed_forward_units(theirs)
    state = {}
    for name, wanted in ours.items():
        origin = _renamed(name, kept)
        if origin not in theirs:
            raise ValueError(f"{name} is {list(wanted.shape)} here and absent there")
        given = theirs[origin]
        if given.ndim != wanted.ndim:
            raise ValueError(f"{name} is {list(given.shape)} there and {list(wanted.shape)} here")
        for axis in range(wanted.ndim):
            before = their_parts.get((origin, axis), (int(theirs[origin].shape[axis]),))
            after = our_parts.get((name, axis), (int(wanted.shape[axis]),))
            if len(before) != len(after) or any(a > b for a, b in zip(after, before, strict=True)):
                raise ValueError(
                    f"{name} is {list(theirs[origin].shape)} there and {list(wanted.shape)} here; "
                    "a net with at least as many layers and units is needed there"
                )
            if before != after:
                order = units.get((origin, axis))
                chosen = _first(before, after) if order is None else order[: after[0]].sort()[0]
                given = given.index_select(axis, chosen)
        state[name] = given.detach().clone()
    return _factored(state, student)


def _factored(state: dict[str, Tensor], student: SpeechModel) -> dict[str, Tensor]:
    """The same with a product for every matrix that the student has as one."""
    own = student.state_dict()
    found = dict(state)
    for name, unit in factored_units(own).items():
        whole = Decomposition.of(joined(state, name, unit), unit.gates)
        factors = whole.factors(int(own[factor_names(name).left].shape[1]))
        for factor, value in factor_tensors(state, name, unit, *factors).items():
            found[factor] = value.to(state[name].dtype).contiguous()
    return {name: found[name] for name in own}


def _first(before: Parts, after: Parts) -> Tensor:
    """Places of the first units of every part."""
    starts = [sum(before[:index]) for index in range(len(before))]
    return torch.cat(
        [torch.arange(start, start + size) for start, size in zip(starts, after, strict=True)]
    )


def _feed_forward_units(state: dict[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """For each axis of hidden units of a feed-forward part: the units, most important first."""
    prefixes = {match[1] for name in state if (match := _FEED_FORWARD.match(name))}
    found: dict[tuple[str, int], Tensor] = {}
    for prefix in prefixes:
        first, last = ("1", "4") if prefix.endswith("pos_ff.") else ("expand", "contract")
        expand, contract = f"{prefix}{first}", f"{prefix}{last}"
        norms = state[f"{expand}.weight"].norm(dim=1) * state[f"{contract}.weight"].norm(dim=0)
        order = norms.argsort(descending=True, stable=True)
        found |= {
            (f"{expand}.weight", 0): order,
            (f"{expand}.bias", 0): order,
            (f"{contract}.weight", 1): order,
        }
    return found


# -- layers -----------------------------------------------------------------------------------


def _layer_lists(model: SpeechModel) -> dict[str, list[nn.Module]]:
    """The layers of each part of a net, by its name as in parameters."""
    places = {
        "encoder": "encoder.layers",
        "encoder.emformer": "encoder.emformer.emformer_layers",
        "decoder": "decoder.layers",
        "predictor": "predictor.layers",
    }
    known = dict(model.named_modules())
    return {
        part: list(layers)
        for part, place in places.items()
        if isinstance(layers := known.get(place), nn.ModuleList)
    }


def _kept_layers(part: str, larger: SpeechModel, smaller: SpeechModel) -> list[int]:
    """Which layer of the larger net each layer of the smaller one comes from."""
    layers = _layer_lists(larger).get(part, [])
    return spread_layers(
        len(layers), len(_layer_lists(smaller)[part]), leading=_num_leading(layers)
    )


def spread_layers(there: int, here: int, *, leading: int = 1) -> list[int]:
    """The layers to keep of ``there``, to get ``here`` of them.

    Args:
        there: Layers of the larger net.
        here: Layers of the smaller one; more than there are give the missing ones' own numbers.
        leading: Layers at the beginning that stay where they are.
    """
    if here >= there:
        return list(range(here))
    first = min(here, max(1, leading))
    rest, wanted = there - first, here - first
    return [*range(first), *(first + ((k + 1) * rest) // wanted - 1 for k in range(wanted))]


def _num_leading(layers: Sequence[nn.Module]) -> int:
    """Layers up to the last one that has other shapes than the last of all."""
    shapes = [[tuple(p.shape) for p in layer.parameters()] for layer in layers]
    return max((i + 1 for i, shape in enumerate(shapes) if shape != shapes[-1]), default=0)


def _renamed(name: str, kept: dict[str, list[int]]) -> str:
    """The name that a tensor of the smaller net has in the larger one."""
    match = _LAYER.match(name)
    if match is None or match[1] not in kept:
        return name
    place = kept[match[1]][int(match[3])]
    return f"{match[1]}.{match[2]}.{place}.{name[match.end() :]}"


# -- parts of axes ----------------------------------------------------------------------------


def _axes(model: SpeechModel) -> dict[tuple[str, int], Parts]:
    """Parts of the axes that are more than one width, by tensor and axis."""
    return {(name, axis): parts for name, axis, parts in _listed(model)}


def _listed(model: SpeechModel) -> Iterator[tuple[str, int, Parts]]:
    encoder = model.encoder
    if isinstance(encoder, SegmentEncoder):
        stream = (encoder.output_dim // encoder.time_reduction,) * encoder.time_reduction
        yield from _segment_encoder(encoder, stream)
        for reader in ("joiner.encoder_projection.weight", "ctc_output.weight"):
            yield reader, 1, stream
    for name, parameter in model.named_parameters():
        if re.search(r"\.(?:weight|bias)_(?:ih|hh)_l0$", name):
            yield name, 0, (parameter.shape[0] // 4,) * 4
    if isinstance(encoder, LstmEncoder):
        for index in range(encoder.num_reductions):
            yield f"encoder.layers.{index + 1}.weight_ih_l0", 1, (encoder.output_dim,) * 2
    if isinstance(model, LasModel):
        attention = model.attention
        heads = (attention.dim // attention.heads,) * attention.heads
        for tensor in ("query.weight", "query.bias", "key.weight", "value.weight", "value.bias"):
            yield f"attention.{tensor}", 0, heads
        for reader in ("decoder.layers.1.weight_ih_l0", "output.weight"):
            yield reader, 1, (model.decoder.output_dim, *heads)


def _segment_encoder(encoder: SegmentEncoder, stream: Parts) -> Iterator[tuple[str, int, Parts]]:
    """Axes of the encoder: neighbouring frames are stacked in its input, and so everywhere."""
    width, heads = encoder.output_dim, encoder.heads
    head = (width // heads,)
    for name, tensor in encoder.named_parameters():
        parent = encoder.get_submodule(name.rpartition(".")[0])
        fqn = f"encoder.{name}"
        owner = encoder.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
        last = name.rpartition(".")[0].rpartition(".")[2]
        if parent is encoder.input_projection:
            continue
        rows, columns = tensor.shape[0], tensor.shape[1] if tensor.ndim == 2 else None
        attends = isinstance(owner, SegmentAttention) or (
            isinstance(encoder, EmformerEncoder) and ".attention." in name
        )
        is_output = last in ("output", "out_proj")
        is_norm = last == "norm"
        if attends and not is_output and not is_norm:
            yield fqn, 0, head * (rows // head[0])
        elif isinstance(owner, CausalConvolution) and last == "expand":
            yield fqn, 0, stream * 2
        elif not _is_hidden(name, 0):
            yield fqn, 0, stream
        if columns is not None and not _is_hidden(name, 1):
            yield fqn, 1, head * heads if attends and is_output else stream


def _is_hidden(name: str, axis: int) -> bool:
    """Whether an axis is that of a feed-forward part's hidden units."""
    if not _FEED_FORWARD.match(name):
        return False
    expands = re.search(r"(?:expand|pos_ff\.1)\.\w+$", name) is not None
    return axis == 0 if expands else axis == 1
