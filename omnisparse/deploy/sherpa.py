"""Writes a transducer as files that an unmodified sherpa-onnx loads.

With a stateless predictor the layout is icefall's: ``encoder.onnx``, ``decoder.onnx``,
``joiner.onnx``, ``tokens.txt``, and ``bpe.vocab`` for hotwords. With an LSTM predictor it is NeMo's
(:mod:`omnisparse.deploy.onnx_nemo`), for which sherpa-onnx computes NeMo's features. It ends the
whole process where a file does not keep its contract, so that is checked before anything is
written.

Source: sherpa-onnx 2.0.1, ``csrc/online-{lstm,conformer}-transducer-model.cc`` and
``csrc/online-transducer-nemo-model.cc`` for keys, order and shapes; measured with that version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from omnisparse.artifact.precision import Precision
from omnisparse.deploy.onnx_export import (
    Exported,
    Source,
    frames_of,
    largest_rounding,
    require_runtime,
    rounded_model,
    weight_store,
)
from omnisparse.deploy.sherpa_card import render_sherpa_card
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.models.lstm import LstmEncoder
from omnisparse.models.predictor import CONTEXT_SIZE, StatelessPredictor
from omnisparse.models.transducer import TransducerModel
from omnisparse.version import __version__

if TYPE_CHECKING:
    from omnisparse.deploy.onnx_check import Comparison
    from omnisparse.deploy.onnx_models import TransducerGraphs
    from omnisparse.deploy.onnx_weights import Layout

CHUNK_MS = 320
"""Audio that an LSTM encoder reads at once, where the user does not say."""

SUBSAMPLING = 4
"""Feature frames per encoder frame that sherpa-onnx reckons timestamps and pauses with."""

RECIPE = "recipes/configs/transducer_sherpa.yaml"

ENCODER_KEYS: Mapping[str, tuple[str, ...]] = {
    "lstm": ("num_encoder_layers", "T", "decode_chunk_len", "rnn_hidden_size", "d_model"),
    "conformer": (
        "num_encoder_layers", "T", "decode_chunk_len", "left_context", "encoder_dim", "pad_length",
        "cnn_module_kernel",
    ),
}  # fmt: skip
"""Numbers that sherpa-onnx reads from the encoder's metadata, by ``model_type``."""

DECODER_KEYS = ("vocab_size", "context_size")
"""Numbers that it reads from the decoder's metadata."""


NEMO_KEYS = (
    "vocab_size", "window_size", "chunk_shift", "subsampling_factor", "pred_rnn_layers",
    "pred_hidden", "cache_last_channel_dim1", "cache_last_channel_dim2", "cache_last_channel_dim3",
    "cache_last_time_dim1", "cache_last_time_dim2", "cache_last_time_dim3",
)  # fmt: skip
"""Numbers that it reads from the encoder's metadata in NeMo's layout."""

NEMO_SYMBOLS = 10
"""Tokens that it may emit in one frame in NeMo's layout."""

NEMO_LEAD = 0.005
"""Seconds of silence before a recording: sherpa-onnx's frames are around 5, 15, ... ms, NeMo's
around 0, 10, ... ms."""


def export_sherpa(
    source: Source,
    *,
    layout: Layout = "dense",
    precision: Precision | None = None,
    chunk_ms: int | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Exported:
    """A transducer as files for sherpa-onnx.

    Args:
        source: The net.
        layout: ``dense`` or ``packed``; see :mod:`omnisparse.deploy.onnx_weights`.
        precision: ``fp32``, ``fp16`` or ``int8``; None for fp16 where packed, else fp32.
        chunk_ms: Audio read at once by an LSTM encoder, a multiple of its frame; None for 320 or
            the next multiple. Emformer and Conformer have their segment.
        warn: Told in one line what will work, but differ.

    Returns:
        The files; see :meth:`Exported.write`.

    Raises:
        OmnisparseError: If sherpa-onnx cannot run such a net; the line says what to train.
        UsageError: If ``chunk_ms`` or ``precision`` is not legal.
        ValueError: If the net cannot be written in ONNX.
    """
    require_runtime()
    model = _runnable(source)
    from omnisparse.deploy.onnx_check import Comparison, check_transducer
    from omnisparse.deploy.onnx_models import TransducerGraphs

    store = weight_store(model, layout=layout, precision=precision)
    twin = rounded_model(model, store)
    assert isinstance(twin, TransducerModel)
    graphs = TransducerGraphs(twin, store, frames_of(source.extractor))
    chunk = _chunk_frames(graphs, chunk_ms)
    is_nemo = not isinstance(model.predictor, StatelessPredictor)
    _warn_of_differences(model, graphs, warn, is_nemo=is_nemo)
    comparison = Comparison(source.extractor)
    common = {"version": "1", "model_author": "omnisparse", "comment": source.name}
    if is_nemo:
        assert chunk is not None
        size = shift = chunk
        files = _nemo_files(source, graphs, twin, comparison, chunk, common)
    else:
        encoder = {**_encoder_metadata(graphs, chunk), **common}
        size, shift = int(encoder["T"]), int(encoder["decode_chunk_len"])
        decoder = {"vocab_size": str(model.vocab_size), "context_size": str(CONTEXT_SIZE)}
        width = str(model.joiner.output.in_features)
        files = {
            "encoder.onnx": graphs.encoder(encoder, chunk=chunk),
            "decoder.onnx": graphs.decoder({**decoder, **common}),
            "joiner.onnx": graphs.joiner({"joiner_dim": width, **common}),
        }
        check_contract(files)
        check_transducer(graphs, twin, files, comparison, chunk=chunk)
        files["tokens.txt"] = source.tokenizer.tokens_txt().encode()
        files["bpe.vocab"] = source.tokenizer.scores_txt().encode()
    tail = (size + SUBSAMPLING) / 100
    lead = NEMO_LEAD if is_nemo else 0.0
    card = render_sherpa_card(
        source, files, layout=layout, precision=store.precision, tail=tail, lead=lead
    )
    return Exported(
        files={**files, "README.md": card.encode()},
        max_abs_difference=comparison.largest,
        rounding=largest_rounding(model, store),
        description={
            "format": "sherpa", "kind": model.kind, "layout": layout, "precision": store.precision,
            "version": __version__, "features": source.extractor.to_dict(),
            "chunk_frames": shift, "read_frames": size, "lead_seconds": lead, "tail_seconds": tail,
        },
    )  # fmt: skip


def _nemo_files(
    source: Source, graphs: TransducerGraphs, twin: TransducerModel, comparison: Comparison,
    chunk: int, common: Mapping[str, str],
) -> dict[str, bytes]:  # fmt: skip
    """A net with an LSTM predictor, in NeMo's layout."""
    from omnisparse.deploy.onnx_nemo import NemoGraphs, check_nemo, nemo_tokens

    nemo = NemoGraphs(graphs, chunk)
    files = {
        "encoder.onnx": nemo.encoder({**nemo.metadata(), **common}),
        "decoder.onnx": nemo.decoder(common),
        "joiner.onnx": nemo.joiner(common),
        "tokens.txt": nemo_tokens(source.tokenizer.tokens_txt()).encode(),
    }
    check_nemo_contract(files)
    check_nemo(nemo, twin, files, comparison)
    return files


def _runnable(source: Source) -> TransducerModel:
    """The net, if sherpa-onnx can run one like it."""
    model = source.model
    if not isinstance(model, TransducerModel):
        raise OmnisparseError(
            f"{source.name} is a {model.kind}, which sherpa-onnx has no place for; train a "
            f"transducer ({RECIPE}), or use --format onnx"
        )
    if isinstance(model.predictor, StatelessPredictor):
        if source.extractor.kind != "kaldi":
            raise OmnisparseError(
                f"{source.name} reads features that are not Kaldi's (data.features), which "
                f"sherpa-onnx would compute for it; train with Kaldi's ({RECIPE})"
            )
        return model
    if source.extractor.kind != "nemo":
        raise OmnisparseError(
            f"{source.name} has an LSTM predictor, which sherpa-onnx runs with NeMo's features "
            "only; train with data.features.kind=nemo, or with model.predictor_layers=0 "
            f"({RECIPE}), or use --format onnx"
        )
    if source.extractor.per_utterance:
        raise OmnisparseError(
            f"{source.name} normalises each utterance, which needs its end; train with "
            "data.features.normalize=corpus or none"
        )
    if not isinstance(model.encoder, LstmEncoder):
        raise OmnisparseError(
            f"{source.name} has no LSTM encoder; with an LSTM predictor, train with "
            f"model.encoder=lstm, or with model.predictor_layers=0 ({RECIPE})"
        )
    return model


def _chunk_frames(graphs: TransducerGraphs, chunk_ms: int | None) -> int | None:
    """Feature frames of a chunk; None where the encoder's segment says it."""
    from omnisparse.deploy.onnx_segments import SegmentGraph

    step = graphs.frames_per_step
    if isinstance(graphs.encoder_graph, SegmentGraph):
        if chunk_ms is not None:
            raise UsageError("--chunk is for LSTM encoders; this one has a segment of its own")
        return None
    if chunk_ms is None:
        return -(-CHUNK_MS // (10 * step)) * step
    if chunk_ms < 1 or chunk_ms % (10 * step):
        raise UsageError(f"--chunk is {chunk_ms} ms; this net reads multiples of {10 * step} ms")
    return chunk_ms // 10


def _warn_of_differences(
    model: TransducerModel, graphs: TransducerGraphs, warn: Callable[[str], None], *, is_nemo: bool
) -> None:
    emits = NEMO_SYMBOLS if is_nemo else 1
    if model.max_symbols_per_frame != emits:
        warn(
            f"this net may emit {model.max_symbols_per_frame} tokens a frame, sherpa-onnx emits "
            f"{emits}: texts may differ (train with model.max_symbols_per_frame={emits})"
        )
    if not is_nemo and graphs.frames_per_step != SUBSAMPLING:
        warn(
            f"encoder frames are {10 * graphs.frames_per_step} ms, sherpa-onnx reckons with "
            f"{10 * SUBSAMPLING} ms: its timestamps and pauses will be off by that factor"
        )


def _encoder_metadata(graphs: TransducerGraphs, chunk: int | None) -> dict[str, str]:
    from omnisparse.deploy.onnx_segments import SegmentGraph

    writer = graphs.encoder_graph
    if isinstance(writer, SegmentGraph):
        step = graphs.frames_per_step
        numbers = {
            "num_encoder_layers": writer.num_layers,
            "T": (writer.segment + writer.right_context) * step,
            "decode_chunk_len": writer.segment * step,
            "left_context": writer.left_context,
            "encoder_dim": 2 * writer.dim,
            "pad_length": writer.right_context * step,
            "cnn_module_kernel": writer.rows + 1,
        }
        return {"model_type": "conformer", **{key: str(value) for key, value in numbers.items()}}
    assert chunk is not None
    numbers = {
        "num_encoder_layers": writer.num_layers,
        "T": chunk,
        "decode_chunk_len": chunk,
        "rnn_hidden_size": writer.cells,
        "d_model": writer.dim,
    }
    return {"model_type": "lstm", **{key: str(value) for key, value in numbers.items()}}


def check_contract(files: Mapping[str, bytes]) -> None:
    """Demand all that sherpa-onnx 2.0.1 reads, which would end the process without it.

    Args:
        files: Bytes of ``encoder.onnx``, ``decoder.onnx`` and ``joiner.onnx``.

    Raises:
        OmnisparseError: Naming the file and what it lacks.
    """
    import onnx

    models = {name: onnx.load_from_string(files[name]) for name in
              ("encoder.onnx", "decoder.onnx", "joiner.onnx")}  # fmt: skip
    encoder = _metadata(models["encoder.onnx"])
    kind = encoder.get("model_type", "")
    if kind not in ENCODER_KEYS:
        raise OmnisparseError(
            f"encoder.onnx: model_type is {kind!r}; sherpa-onnx would end the process (legal here: "
            f"{', '.join(ENCODER_KEYS)})"
        )
    _check_numbers("encoder.onnx", encoder, ENCODER_KEYS[kind])
    decoder = _metadata(models["decoder.onnx"])
    _check_numbers("decoder.onnx", decoder, DECODER_KEYS)
    number = {key: int(value) for key, value in encoder.items() if value.isdigit()}
    states: list[tuple[int | str, ...]]
    if kind == "lstm":
        states = [
            (number["num_encoder_layers"], "N", number["d_model"]),
            (number["num_encoder_layers"], "N", number["rnn_hidden_size"]),
        ]
    else:
        layers, width = number["num_encoder_layers"], number["encoder_dim"]
        states = [
            (layers, number["left_context"], "N", width),
            (layers, number["cnn_module_kernel"] - 1, "N", width),
            ("N",),
        ]
    inputs = [_shape(value) for value in models["encoder.onnx"].graph.input]
    if len(inputs) != 1 + len(states) or inputs[1:] != states:
        raise OmnisparseError(f"encoder.onnx: inputs {inputs} do not fit its metadata")
    if inputs[0][0] != "N" or inputs[0][1] != number["T"]:
        raise OmnisparseError(f"encoder.onnx: reads {inputs[0]}, not N, T = {number['T']}, bins")
    (tokens,) = (_shape(value) for value in models["decoder.onnx"].graph.input)
    if tokens != ("N", int(decoder["context_size"])):
        raise OmnisparseError(f"decoder.onnx: reads {tokens}, not N, context_size")
    if len(models["decoder.onnx"].graph.output) != 1:
        raise OmnisparseError(
            "decoder.onnx: with more than one output it would be taken for NeMo's"
        )
    logits = _shape(models["joiner.onnx"].graph.output[0])
    if logits != ("N", int(decoder["vocab_size"])):
        raise OmnisparseError(f"joiner.onnx: gives {logits}, not N, vocab_size")


def check_nemo_contract(files: Mapping[str, bytes]) -> None:
    """Demand what sherpa-onnx reads of NeMo's layout; see :func:`check_contract`.

    Args:
        files: Bytes of the three ONNX files and of ``tokens.txt``.

    Raises:
        OmnisparseError: Naming the file and what it lacks.
    """
    import onnx

    models = {name: onnx.load_from_string(files[name]) for name in
              ("encoder.onnx", "decoder.onnx", "joiner.onnx")}  # fmt: skip
    encoder = _metadata(models["encoder.onnx"])
    _check_numbers("encoder.onnx", encoder, NEMO_KEYS)
    if encoder.get("normalize_type") != "NA":
        raise OmnisparseError(
            f"encoder.onnx: metadata normalize_type is {encoder.get('normalize_type')!r}; here it "
            "must be NA"
        )
    number = {key: int(encoder[key]) for key in NEMO_KEYS}
    caches = [
        ("N", *(number[f"cache_last_{cache}_dim{place}"] for place in (1, 2, 3)))
        for cache in ("channel", "time")
    ]
    inputs = [_shape(value) for value in models["encoder.onnx"].graph.input]
    if inputs[1:] != [("N",), *caches, ("N",)]:
        raise OmnisparseError(f"encoder.onnx: inputs {inputs} do not fit its metadata")
    if inputs[0][0] != "N" or inputs[0][2] != number["window_size"]:
        raise OmnisparseError(f"encoder.onnx: reads {inputs[0]}, not N, bins, window_size")
    state = (number["pred_rnn_layers"], "N", number["pred_hidden"])
    inputs = [_shape(value) for value in models["decoder.onnx"].graph.input]
    if inputs != [("N", 1), ("N",), state, state]:
        raise OmnisparseError(f"decoder.onnx: inputs {inputs} do not fit the encoder's metadata")
    if len(models["decoder.onnx"].graph.output) != 4:
        raise OmnisparseError("decoder.onnx: must have an output, its length and two states")
    vocab_size = number["vocab_size"] + 1
    logits = _shape(models["joiner.onnx"].graph.output[0])
    if logits[-1] != vocab_size:
        raise OmnisparseError(f"joiner.onnx: gives {logits}, not vocab_size + 1 scores")
    tokens = files["tokens.txt"].decode().splitlines()
    if len(tokens) != vocab_size or tokens[-1] != f"<blk> {vocab_size - 1}":
        raise OmnisparseError("tokens.txt: must have vocab_size + 1 lines, <blk> in the last")


def _check_numbers(name: str, metadata: Mapping[str, str], keys: tuple[str, ...]) -> None:
    for key in keys:
        if not metadata.get(key, "").isdigit():
            raise OmnisparseError(
                f"{name}: metadata {key} is {metadata.get(key)!r}, not a number; sherpa-onnx would "
                "end the process"
            )


def _metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _shape(value: Any) -> tuple[int | str, ...]:
    return tuple(item.dim_param or item.dim_value for item in value.type.tensor_type.shape.dim)
