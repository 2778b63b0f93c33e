"""An unmodified sherpa-onnx loads our files and finds the words that we find."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_exports import NUM_BINS, make_source

from omnisparse.data.features import FeatureExtractor
from omnisparse.data.nemo_mel import ZERO_GUARD
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.deploy.onnx_export import Exported, Source, export_onnx
from omnisparse.deploy.sherpa import check_contract, check_nemo_contract, export_sherpa
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.models.transducer import TransducerModel
from omnisparse.models.transducer_decoding import transducer_greedy_search
from omnisparse.synthetic.text import ASSISTANT_EASY, vocabulary

onnx = pytest.importorskip("onnx")
sherpa_onnx = pytest.importorskip("sherpa_onnx")

RATE = 16000
UNKNOWN = 2
"""Our token, which the two searches write differently."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def recordings(speech: Path) -> list[np.ndarray]:
    lines = (speech / "test.jsonl").read_text().splitlines()[:3]
    files = [speech / json.loads(line)["audio_filepath"] for line in lines]
    return [soundfile.read(file, dtype="float32")[0] for file in files]


def load(out: Path, **options: Any) -> Any:
    parts = {part: str(out / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(out / "tokens.txt"), feature_dim=NUM_BINS, num_threads=1, **parts, **options
    )


def texts(
    client: Any, recordings: list[np.ndarray], *, tail: float, lead: float = 0.0
) -> list[str]:
    """What sherpa-onnx finds, all streams in one batch."""
    streams = [client.create_stream() for _ in recordings]
    for stream, samples in zip(streams, recordings, strict=True):
        stream.accept_waveform(RATE, np.zeros(int(lead * RATE), np.float32))
        stream.accept_waveform(RATE, samples)
        stream.accept_waveform(RATE, np.zeros(int(tail * RATE), np.float32))
        stream.input_finished()
    while ready := [stream for stream in streams if client.is_ready(stream)]:
        client.decode_streams(ready)
    return [client.get_result(stream).strip() for stream in streams]


def _with_tail(samples: np.ndarray, tail: float) -> np.ndarray:
    return np.concatenate([samples, np.zeros(int(tail * RATE), np.float32)])


def _floored(frames: np.ndarray) -> np.ndarray:
    """NeMo's log energies without those that sherpa-onnx's features lose: below 2^-23."""
    energies = np.exp(frames.astype(np.float64)) - ZERO_GUARD
    return np.log(np.where(energies > 2.0**-23, energies, 0.0) + ZERO_GUARD).astype(np.float32)


@torch.inference_mode()
def our_text(source: Source, samples: np.ndarray, description: Mapping[str, Any]) -> str:
    """What we find in the frames that sherpa-onnx hands over: it leaves the last ones out."""
    model = source.model
    assert isinstance(model, TransducerModel)
    frames = source.extractor.fbank(_with_tail(samples, description["tail_seconds"]))
    if source.extractor.kind == "nemo":
        frames = _floored(frames)
    size, shift = description["read_frames"], description["chunk_frames"]
    chunks = max(0, -(-(len(frames) - size) // shift))
    read = frames[: (chunks - 1) * shift + size]
    stacked = torch.from_numpy(source.extractor.stack_frames(source.extractor.normalise(read)))
    encoded, _ = model.encode_chunk(stacked[None], model.initial_state(1))
    (tokens,), _ = transducer_greedy_search(model, encoded, torch.tensor([encoded.size(1)]))
    return source.tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("stateless", "dense"),
        ("stateless", "packed"),
        ("conformer", "dense"),
        ("emformer", "packed"),
    ],
)
def test_texts_are_ours(
    kind: str, layout: Any, folder: Path, recordings: list[np.ndarray], tmp_path: Path
) -> None:
    source = make_source(kind, folder)
    exported = export_sherpa(source, layout=layout, precision="fp32")
    exported.write(tmp_path / "net")
    ours = [our_text(source, samples, exported.description) for samples in recordings]
    tail = exported.description["tail_seconds"]
    found = texts(load(tmp_path / "net"), recordings, tail=tail)
    assert found == [text.strip() for text in ours]
    assert len(set(ours)) > 1


def nemo_source(folder: Path, **features: Any) -> Source:
    """A net with an LSTM predictor that hears NeMo's features."""
    source = make_source("reduced", folder, time_reduction=2, max_symbols_per_frame=10)
    statistics = {"mean": [-9.0] * NUM_BINS, "std": [4.0] * NUM_BINS}
    extractor = FeatureExtractor(
        num_bins=NUM_BINS, stack=4, kind="nemo", **{**statistics, **features}
    )
    with torch.no_grad():
        source.model.joiner.output.bias[UNKNOWN] -= 1e9  # type: ignore[union-attr, operator]
    return dataclasses.replace(source, extractor=extractor, name="nemo")


@pytest.mark.parametrize("layout", ["dense", "packed"])
def test_texts_of_an_lstm_predictor_are_ours_in_nemos_layout(
    layout: Any, folder: Path, recordings: list[np.ndarray], tmp_path: Path
) -> None:
    source = nemo_source(folder)
    warned: list[str] = []
    exported = export_sherpa(source, layout=layout, precision="fp32", warn=warned.append)
    exported.write(tmp_path / "net")
    description = exported.description
    assert not warned
    assert "bpe.vocab" not in exported.files
    assert "Put 5 ms of silence before" in exported.files["README.md"].decode()
    ours = [our_text(source, samples, description) for samples in recordings]
    found = texts(
        load(tmp_path / "net"), recordings,
        tail=description["tail_seconds"], lead=description["lead_seconds"],
    )  # fmt: skip
    assert found == [text.strip() for text in ours]
    assert len(set(ours)) > 1


def test_a_breach_of_nemos_contract_is_found_by_us(folder: Path) -> None:
    files = dict(export_sherpa(nemo_source(folder)).files)
    check_nemo_contract(files)
    keys = {e.key for e in onnx.load_from_string(files["encoder.onnx"]).metadata_props}
    for key in keys - {"version", "model_author", "comment"}:
        with pytest.raises(OmnisparseError, match=f"encoder.onnx: .*{key} is"):
            check_nemo_contract({**files, "encoder.onnx": _without(files["encoder.onnx"], key)})
    with pytest.raises(OmnisparseError, match="tokens.txt: "):
        check_nemo_contract({**files, "tokens.txt": b"<blk> 0\n"})


def test_nets_that_nemos_layout_has_no_place_for_are_refused(folder: Path) -> None:
    emformer = make_source("emformer", folder, predictor_layers=1)
    hears_kaldi = nemo_source(folder)
    extractor = FeatureExtractor(num_bins=NUM_BINS, stack=4)
    for source, message in (
        (nemo_source(folder, mean=None, std=None, per_utterance=True), "normalize=corpus or none"),
        (dataclasses.replace(hears_kaldi, extractor=extractor), "data.features.kind=nemo"),
        (dataclasses.replace(emformer, extractor=hears_kaldi.extractor), "has no LSTM encoder"),
    ):
        with pytest.raises(OmnisparseError, match=message) as caught:
            export_sherpa(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(OmnisparseError, match="nemo features cannot be written"):
        export_onnx(nemo_source(folder))


def test_int8_and_a_beam_and_hotwords(
    folder: Path, recordings: list[np.ndarray], tmp_path: Path
) -> None:
    exported = export_sherpa(make_source("stateless", folder), layout="packed", precision="int8")
    exported.write(tmp_path / "net")
    (tmp_path / "hotwords.txt").write_text("play some music\n")
    client = load(
        tmp_path / "net", decoding_method="modified_beam_search", modeling_unit="bpe",
        bpe_vocab=str(tmp_path / "net" / "bpe.vocab"), hotwords_score=8.0,
        hotwords_file=str(tmp_path / "hotwords.txt"),
    )  # fmt: skip
    plain = load(tmp_path / "net", decoding_method="modified_beam_search")
    assert texts(client, recordings, tail=0.5) != texts(plain, recordings, tail=0.5)


def test_hotwords_are_spelled_as_the_net_spells_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """sherpa-onnx shows how it spells a word when one of its letters is in no piece."""
    words = sorted(vocabulary(ASSISTANT_EASY))
    tokenizer = Tokenizer.train(words, 128, tmp_path / "tokenizer")
    source = make_source("stateless", tmp_path / "small")
    exported = export_sherpa(source)
    exported.write(tmp_path / "net")
    (tmp_path / "net" / "bpe.vocab").write_text(tokenizer.scores_txt())
    (tmp_path / "net" / "tokens.txt").write_text(tokenizer.tokens_txt().replace("<unk>", "<none>"))
    (tmp_path / "hotwords.txt").write_text("".join(f"{word}\u2603\n" for word in words))
    load(
        tmp_path / "net", decoding_method="modified_beam_search", modeling_unit="bpe",
        bpe_vocab=str(tmp_path / "net" / "bpe.vocab"),
        hotwords_file=str(tmp_path / "hotwords.txt"),
    )  # fmt: skip
    found = re.findall(r"at line: (.*?) <unk>", capfd.readouterr().err)
    symbols = [line.split(" ")[0] for line in tokenizer.tokens_txt().splitlines()]
    ours = [" ".join(symbols[token] for token in tokenizer.encode(word)) for word in words]
    assert list(dict.fromkeys(found)) == ours


def test_a_complete_last_chunk_needs_the_tail(folder: Path, tmp_path: Path) -> None:
    """sherpa-onnx 2.0.1 waits for more frames than a chunk; the card says how many to append."""
    exported = export_sherpa(make_source("stateless", folder), chunk_ms=160)
    exported.write(tmp_path / "net")
    client = load(tmp_path / "net")
    # Of 0.16 s: none of one chunk; with the tail all of it, and the tail's own 0.16 s of 0.2.
    for tail, expected in ((0.0, 0), (exported.description["tail_seconds"], 2)):
        stream = client.create_stream()
        stream.accept_waveform(RATE, _with_tail(np.zeros(2560, np.float32), tail))
        stream.input_finished()
        chunks = 0
        while client.is_ready(stream):
            client.decode_stream(stream)
            chunks += 1
        assert chunks == expected
    card = exported.files["README.md"].decode()
    assert f"Append {exported.description['tail_seconds']:g} s of silence" in card
    assert "OnlineRecognizer.from_transducer(" in card


def _without(data: bytes, key: str) -> bytes:
    model = onnx.load_from_string(data)
    kept = [entry for entry in model.metadata_props if entry.key != key]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    text: bytes = model.SerializeToString()
    return text


@pytest.mark.parametrize("kind", ["stateless", "conformer"])
def test_a_missing_key_is_found_by_us(kind: str, folder: Path) -> None:
    """sherpa-onnx would end the whole process: exit code 255, no exception."""
    files = dict(export_sherpa(make_source(kind, folder)).files)
    check_contract(files)
    conventional = {"version", "model_author", "comment", "joiner_dim"}
    for name in ("encoder.onnx", "decoder.onnx"):
        keys = {entry.key for entry in onnx.load_from_string(files[name]).metadata_props}
        for key in keys - conventional:
            with pytest.raises(OmnisparseError, match=f"{name}: .*{key} is"):
                check_contract({**files, name: _without(files[name], key)})


def _changed(exported: Exported, part: str, change: Callable[[Any], None]) -> dict[str, bytes]:
    model = onnx.load_from_string(exported.files[part])
    change(model)
    return {**exported.files, part: model.SerializeToString()}


def test_other_breaches_are_found(folder: Path) -> None:
    exported = export_sherpa(make_source("stateless", folder))

    def swap_states(model: Any) -> None:
        first, second = model.graph.input[1], model.graph.input[2]
        first.type.tensor_type.shape.dim[2].dim_value = 7
        second.type.tensor_type.shape.dim[2].dim_value = 7

    def fix_batch(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    def add_output(model: Any) -> None:
        model.graph.output.append(model.graph.output[0])

    for part, change, message in (
        ("encoder.onnx", swap_states, "do not fit its metadata"),
        ("encoder.onnx", fix_batch, "not N, T = 32"),
        ("decoder.onnx", add_output, "taken for NeMo's"),
    ):
        with pytest.raises(OmnisparseError, match=message):
            check_contract(_changed(exported, part, change))


def test_what_sherpa_cannot_run_is_refused_in_one_line(folder: Path) -> None:
    for kind, message in (
        ("las", "is a las, which sherpa-onnx has no place for; train a transducer"),
        ("lstmp", "LSTM predictor, which sherpa-onnx runs with NeMo's features"),
    ):
        with pytest.raises(OmnisparseError, match=message) as caught:
            export_sherpa(make_source(kind, folder))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="multiples of 40 ms"):
        export_sherpa(make_source("stateless", folder), chunk_ms=50)
    with pytest.raises(UsageError, match="segment of its own"):
        export_sherpa(make_source("conformer", folder), chunk_ms=80)


def test_what_differs_is_said(folder: Path) -> None:
    said: list[str] = []
    source = make_source(
        "stateless", folder, encoder_layers=3, time_reduction=2, max_symbols_per_frame=5
    )
    exported = export_sherpa(source, warn=said.append)
    assert any("may emit 5 tokens a frame" in line for line in said)
    assert any("frames are 80 ms, sherpa-onnx reckons with 40 ms" in line for line in said)
    assert exported.description["chunk_frames"] == 32
