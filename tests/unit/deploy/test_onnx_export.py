"""Exported ONNX files compute what PyTorch does, whatever the layout, and say it in valid files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_exports import CONFIGS, make_source, recognizer

from omnisparse.artifact.precision import restore_values, round_values, row_scales
from omnisparse.deploy import onnx_check, onnx_graph
from omnisparse.deploy.onnx_export import Exported, Source, export_onnx, is_export, weight_store
from omnisparse.deploy.onnx_graph import GraphBuilder
from omnisparse.deploy.onnx_weights import WeightStore, _gaps, _pack
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.models.factored import rank_unit

OTHERS = ("per_gate", "joint")
SCHEMES = (("reduced", "int8"), ("lstmp", "fp32"), ("las", "fp32"), ("las-lstmp", "int8"))
"""Nets and precisions in which products of other schemes are tried."""

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


def _models(exported: Exported) -> dict[str, Any]:
    return {
        name: onnx.load_from_string(data)
        for name, data in exported.files.items()
        if name.endswith(".onnx")
    }


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("layout", ["dense", "packed", "sparse"])
def test_files_are_valid_and_equal_to_pytorch(kind: str, layout: Any, folder: Path) -> None:
    source = make_source(kind, folder, sparsity=0.9)
    before = copy.deepcopy(source.model.state_dict())
    exported = export_onnx(source, layout=layout)
    assert exported.max_abs_difference < 1e-5
    for model in _models(exported).values():
        # onnx cannot infer shapes where a weight is sparse (1.23.2), so its values are not checked.
        onnx.checker.check_model(model, full_check=layout != "sparse")
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert export_onnx(source, layout=layout).files == exported.files


@pytest.mark.parametrize(
    ("kind", "precision", "scheme"),
    [
        *((kind, precision, "stacked") for kind in CONFIGS for precision in ("fp32", "int8")),
        *((kind, precision, scheme) for kind, precision in SCHEMES for scheme in OTHERS),
    ],
)
def test_factors_stay_factors(kind: str, precision: Any, scheme: Any, folder: Path) -> None:
    """Of every matrix; the files have no product of two, and compute what PyTorch does."""
    whole = make_source(kind, folder).model
    shapes = {fqn: tuple(weight.shape) for fqn, weight in whole.named_parameters()}
    ranks = {fqn: max(1, min(shape) // 3) for fqn, shape in shapes.items() if len(shape) == 2}
    for fqn in list(ranks):
        if fqn not in ranks:
            continue  # it shares the factor of another
        unit = rank_unit(fqn, shapes, scheme)
        ranks.pop(unit.reader or "", None)
        ranks[fqn] = max(1, min(shapes[fqn][0] // unit.gates, ranks[fqn]) // unit.gates)
    source = make_source(kind, folder, sparsity=0.0, ranks=ranks, rank_scheme=scheme)
    with torch.no_grad():  # else rounding grows in saturated gates
        for name, parameter in source.model.named_parameters():
            if ".parametrizations." in name:
                parameter.mul_(0.5)
    exported = export_onnx(source, precision=precision)
    assert exported.max_abs_difference < 1e-5
    stored = 0
    for model in _models(exported).values():
        onnx.checker.check_model(model, full_check=True)
        stored += sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    parameters = sum(parameter.numel() for parameter in source.model.parameters())
    assert stored < 1.2 * parameters < sum(parameter.numel() for parameter in whole.parameters())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("layout", ["dense", "packed", "sparse"])
def test_precisions_round_as_the_artifact_does(precision: Any, layout: Any, folder: Path) -> None:
    source = make_source("stateless", folder, sparsity=0.9)
    store = weight_store(source.model, layout=layout, precision=precision)
    restored = store.restored()["encoder.layers.0.weight_ih_l0"]
    weight = source.model.get_parameter("encoder.layers.0.weight_ih_l0").detach().numpy()
    scales = row_scales(weight)[:, None] if precision == "int8" else None
    stored = round_values(weight, precision, scales)
    expected = restore_values(stored, {"fp16": "F16", "int8": "I8"}[precision])
    np.testing.assert_array_equal(restored, expected * (1 if scales is None else scales))
    exported = export_onnx(source, layout=layout, precision=precision)
    assert exported.max_abs_difference < 1e-5
    assert (
        0
        < exported.rounding
        == np.abs(  # of the whole net
            [np.abs(value - store.state[name]).max() for name, value in store.restored().items()]
        ).max()
    )


def test_packed_is_smaller_than_a_bit_mask(folder: Path) -> None:
    source = make_source("stateless", folder, sparsity=0.85, encoder_dim=256)
    sizes = {
        (layout, precision): sum(map(len, export_onnx(
            source, layout=layout, precision=precision).files.values()))
        for layout, precision in (("dense", "fp32"), ("packed", "fp16"), ("packed", "int8"))
    }  # fmt: skip
    matrices = [p for p in source.model.parameters() if p.dim() == 2]
    bits = sum(p.numel() for p in matrices) / 8
    kept = sum(int(p.count_nonzero()) for p in matrices)
    nodes = 50_000  # and vectors, scales, tokens
    assert sizes["packed", "fp16"] < bits + 2 * kept + nodes
    assert sizes["packed", "int8"] < bits + kept + nodes
    assert sizes["packed", "fp16"] < 0.15 * sizes["dense", "fp32"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("density", [0.9, 0.3, 0.1, 0.02, 0.001])
def test_gaps_restore_every_place(bits: int, density: float) -> None:
    random = np.random.default_rng(0)
    for size in (1, 2, 15, 16, 17, 3001):
        flat = np.where(random.random(size) < density, random.standard_normal(size), 0.0)
        flat[random.integers(size)] = 1.0
        gaps, kept = _gaps(flat, bits)
        assert gaps.max() < 1 << bits
        assert gaps.size == kept.size
        restored = np.zeros(size)
        restored[np.cumsum(gaps.astype(np.int64))] = kept
        np.testing.assert_array_equal(restored, flat)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_onnxruntime_unpacks_once_while_it_loads(
    precision: Any,
    staged: bool,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some operators (``NonZero``, ``Compress``) are never folded, and would run at each call."""
    if staged:
        monkeypatch.setattr(onnx_graph, "STAGED_BYTES", 0)
    source = make_source("stateless", folder, sparsity=0.85, encoder_dim=96)
    kinds = []
    for layout in ("dense", "packed"):
        files = export_onnx(source, layout=layout, precision=precision).files  # type: ignore[arg-type]
        kinds.append(
            [
                sorted(_folded(files[f"{part}.onnx"], tmp_path))
                for part in ("encoder", "decoder", "joiner")
            ]
        )
    assert kinds[0] == kinds[1]
    packed = {node.op_type for node in onnx.load_from_string(files["encoder.onnx"]).graph.node}
    assert "MaxUnpool" in packed
    assert ("If" in packed) == staged


def _folded(data: bytes, tmp_path: Path) -> list[str]:
    """Kinds of the nodes that are left after onnxruntime has loaded a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node]


def test_weights_unpack_in_as_many_rounds_as_stages(tmp_path: Path) -> None:
    """Each round frees what it needed; all in one would need three times the dense weights."""
    graph = GraphBuilder("stages")
    value = graph.input("x", np.float32, ["N", 512])
    random = np.random.default_rng(0)
    names = [f"weight{index}" for index in range(40)]
    state = {name: random.standard_normal((512, 512)).astype(np.float32) for name in names}
    for weight in state.values():
        weight[random.random(weight.shape) < 0.9] = 0.0
    store = WeightStore(state, "packed")
    for name in names:
        value = graph.op("MatMul", value, store.matrix(graph, name, np.transpose))
    graph.output("y", value, np.float32, ["N", 512])
    data = graph.model({})
    assert _folded(data, tmp_path) == ["MatMul"] * 40
    code = (
        "import onnxruntime, sys; options = onnxruntime.SessionOptions(); "
        "options.log_severity_level = 0; onnxruntime.InferenceSession(sys.argv[1], options)"
    )
    (tmp_path / "stages.onnx").write_bytes(data)
    command = [sys.executable, "-c", code, str(tmp_path / "stages.onnx")]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    rounds = log.count("GraphTransformer ConstantFolding modified: 1")
    assert rounds == onnx_graph.STAGES


@pytest.mark.parametrize("shape", [(1, 96, 40), (40, 7), (33, 2), (1, 900), (9, 1, 61)])
def test_packed_arrays_of_any_shape(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.79):
        value = random.standard_normal(shape).astype(np.float32)
        value[random.random(shape) > share] = 0.0
        value.reshape(-1)[-1] = 1.0
        packed = _pack(value)
        assert packed is not None
        graph = GraphBuilder("packed")
        graph.input("unused", np.int64, ["N"])
        graph.output("y", packed.write(graph, "value", shape), np.float32, shape)
        session = onnx_check.run_session(graph.model({}))
        (found,) = session.run(None, {"unused": np.zeros(1, np.int64)})
        np.testing.assert_array_equal(found, value)


def test_a_projection_is_not_lost(folder: Path) -> None:
    """torch's own exporter (2.11, dynamo) drops it without a word."""
    exported = export_onnx(make_source("lstmp", folder))
    states = [value.name for value in _models(exported)["encoder.onnx"].graph.input]
    shapes = {
        value.name: [item.dim_param or item.dim_value for item in value.type.tensor_type.shape.dim]
        for value in _models(exported)["encoder.onnx"].graph.input
    }
    assert states == ["x", "x_lens", "h", "c"]
    assert shapes["h"] == [2, "N", 10]
    assert shapes["c"] == [2, "N", 24]


def test_every_export_of_a_process_takes_any_length(folder: Path) -> None:
    """torch's own exporter (2.11) fixes the length in the second export of a process."""
    for _ in range(2):
        exported = export_onnx(make_source("reduced", folder))
        session = onnx_check.run_session(exported.files["encoder.onnx"])
        for batch, frames in ((1, 16), (3, 161)):
            states = {"h": (3, batch, 24), "c": (3, batch, 24)}
            encoded, lengths, *_ = session.run(
                None,
                {
                    "x": np.zeros((batch, frames, 80), np.float32),
                    "x_lens": np.full(batch, frames),
                    **{name: np.zeros(shape, np.float32) for name, shape in states.items()},
                },
            )
            assert encoded.shape[:2] == (batch, -(-frames // 16))
            assert lengths.tolist() == [-(-frames // 16)] * batch


def test_sparse_tensors_are_valid_where_onnxruntimes_own_are_not(
    folder: Path, tmp_path: Path
) -> None:
    """What onnxruntime saves of our file (32-bit indices) is refused by onnx's checker."""
    import onnxruntime

    source = make_source("stateless", folder, sparsity=0.95)
    data = export_onnx(source, layout="sparse").files["encoder.onnx"]
    onnx.checker.check_model(onnx.load_from_string(data))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    with pytest.raises(onnx.checker.ValidationError, match="must have INT64 type"):
        onnx.checker.check_model(str(tmp_path / "optimised.onnx"))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_shapes_of_sparse_weights_are_known(kind: str, precision: Any, folder: Path) -> None:
    """In the graph's own list of sparse tensors onnx would take them for numbers without shape."""
    source = make_source(kind, folder, sparsity=0.95)
    exported = export_onnx(source, layout="sparse", precision=precision)
    for part, data in exported.files.items():
        if not part.endswith(".onnx"):
            continue
        model = onnx.load_from_string(data)
        assert not model.graph.sparse_initializer
        onnx.checker.check_model(model, full_check=True)
        known = {info.name: info.type for info in onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True
        ).graph.value_info}  # fmt: skip
        sparse = [node for node in model.graph.node if node.op_type == "Constant"]
        assert sparse
        for node in sparse:
            shape = [dim.dim_value for dim in known[node.output[0]].tensor_type.shape.dim]
            assert shape == list(node.attribute[0].sparse_tensor.dims)


def _las_text(exported: Exported, source: Source, samples: np.ndarray) -> str:
    """Greedy search of a LAS with onnxruntime alone, as docs/export.md shows it."""
    encoder, decoder = (
        onnx_check.run_session(exported.files[f"{part}.onnx"]) for part in ("encoder", "decoder")
    )
    features = source.extractor.fbank(samples)[None]
    lengths = np.array([features.shape[1]])
    keys, values, frames = encoder.run(None, {"x": features, "x_lens": lengths})
    shapes = {item.name: item.shape for item in decoder.get_inputs()}
    state = {n: np.zeros((shapes[n][0], 1, shapes[n][2]), np.float32) for n in ("h", "c")}
    if "context" in shapes:  # the first layer reads where the attention looked last
        state["context"] = np.zeros((1, shapes["context"][1]), np.float32)
    found, token = [], 1
    for _ in range(int(frames[0]) + 8):
        scores, *news = decoder.run(
            None,
            {
                "y": np.array([token]), **state, "keys": keys, "values": values,
                "encoder_out_lens": frames,
            },
        )  # fmt: skip
        state = dict(zip(state, news, strict=True))
        token = int(scores[0].argmax())
        if token == 1:
            break
        found.append(token)
    return source.tokenizer.decode(found)


def _transducer_text(exported: Exported, source: Source, samples: np.ndarray) -> str:
    """Greedy search of a transducer with onnxruntime alone, chunk by chunk."""
    encoder, decoder, joiner = (
        onnx_check.run_session(exported.files[f"{part}.onnx"])
        for part in ("encoder", "decoder", "joiner")
    )
    features = source.extractor.fbank(samples)[None]
    chunk = 96
    shapes = {item.name: item.shape for item in encoder.get_inputs()}
    state = {n: np.zeros((shapes[n][0], 1, shapes[n][2]), np.float32) for n in ("h", "c")}
    limit = source.model.max_symbols_per_frame  # type: ignore[union-attr]
    found: list[int] = []
    (predicted,) = decoder.run(None, {"y": np.array([[0, 0]])})
    for start in range(0, features.shape[1], chunk):
        x = features[:, start : start + chunk]
        encoded, _, state["h"], state["c"] = encoder.run(
            None, {"x": x, "x_lens": np.array([x.shape[1]]), **state}
        )
        for frame in encoded[0]:
            for _ in range(limit):
                (logits,) = joiner.run(None, {"encoder_out": frame[None], "decoder_out": predicted})
                token = int(logits[0].argmax())
                if token == 0:
                    break
                found.append(token)
                (predicted,) = decoder.run(None, {"y": np.array([[0, 0, *found][-2:]])})
    return source.tokenizer.decode(found)


@pytest.mark.parametrize("kind", ["las", "las-paper", "stateless"])
def test_words_by_onnxruntime_alone(kind: str, folder: Path, speech: Path) -> None:
    source = make_source(kind, folder)
    exported = export_onnx(source, layout="packed", precision="fp32")
    search = _las_text if kind.startswith("las") else _transducer_text
    texts = []
    for line in (speech / "test.jsonl").read_text().splitlines()[:3]:
        samples, _ = soundfile.read(speech / json.loads(line)["audio_filepath"], dtype="float32")
        expected = recognizer(source).transcribe(samples).text
        assert search(exported, source, samples) == expected
        texts.append(expected)
    assert len(set(texts)) > 1


def test_a_wrong_graph_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnisparse.deploy import onnx_layers

    monkeypatch.setattr(onnx_layers, "_reordered", lambda rows: rows)  # torch's order of gates
    with pytest.raises(OmnisparseError, match="exported encoder differs by .* from PyTorch's"):
        export_onnx(make_source("stateless", folder))


def test_folders(folder: Path, tmp_path: Path) -> None:
    exported = export_onnx(make_source("stateless", folder))
    out = tmp_path / "net"
    written = exported.write(out)
    assert is_export(out)
    exported.write(out)  # an earlier export is replaced
    assert {f["path"].name for f in written["files"]} == set(exported.files)
    assert all(f["path"].stat().st_size == f["bytes"] for f in written["files"])
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    with pytest.raises(OmnisparseError, match="exists and is not an"):
        exported.write(taken)
    assert (taken / "thesis.tex").exists()


def test_bad_precision(folder: Path) -> None:
    with pytest.raises(UsageError, match="'bf16' is not one of fp32, fp16, int8"):
        export_onnx(make_source("stateless", folder), precision="bf16")


def test_left_context_of_nothing(folder: Path) -> None:
    with pytest.raises(ValueError, match="left_context 0 cannot be exported"):
        export_onnx(make_source("conformer", folder, left_context=0))
