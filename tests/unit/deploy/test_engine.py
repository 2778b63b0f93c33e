"""Nets on packed weights say what the masked dense net says, word for word, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnisparse.artifact import write_artifact
from omnisparse.artifact.packed import PackedModel, dense_tensor, read_packed_artifact
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.deploy import encoder, greedy, layers, native, packing, sparse_kernels
from omnisparse.deploy.engine import build_engine, needs_torch
from omnisparse.deploy.factored import factors_of
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.deploy.streaming import EndpointRules
from omnisparse.deploy.torch_engine import TorchEngine
from omnisparse.deploy.transducer import Transducer
from omnisparse.errors import FormatError, OmnisparseError, UsageError
from omnisparse.methods.handover import hand_over
from omnisparse.models import LasConfig, TransducerConfig, build_model
from omnisparse.models.factored import factor_names, rank_unit
from omnisparse.sparsity.prunable import find_prunable

VOCAB, BINS, STACK = 23, 16, 2

SMALL: dict[str, Any] = {"encoder_layers": 3, "encoder_dim": 40, "embedding_dim": 12}
NETS: dict[str, Any] = {
    "lstm": TransducerConfig(**SMALL, predictor_dim=32, joiner_dim=32),
    "lstmp": TransducerConfig(
        **SMALL, encoder_projection=24, predictor_dim=32, joiner_dim=32, time_reduction=4
    ),
    "stateless": TransducerConfig(
        **SMALL, predictor_layers=0, predictor_dim=32, joiner_dim=32, layer_norm=False,
        time_reduction=1, ctc_weight=0.3,
    ),
    "two": TransducerConfig(**SMALL, predictor_layers=2, predictor_dim=32, joiner_dim=32),
    "las": LasConfig(**SMALL, attention_dim=24, attention_heads=3, decoder_dim=36),
    "lasp": LasConfig(
        **SMALL, encoder_projection=24, attention_dim=16, attention_heads=2, decoder_layers=3,
        decoder_dim=36, decoder_projection=20, ctc_weight=0.2,
    ),
    "las1": LasConfig(**SMALL, attention_dim=16, attention_heads=2, decoder_layers=1),
    "laspaper": LasConfig(
        **SMALL, attention_dim=24, attention_heads=3, decoder_dim=36, attention="additive",
        context_input="first_layer",
    ),
}  # fmt: skip

TEXT = "one two three four five six seven"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.train([TEXT], VOCAB, tmp_path_factory.mktemp("tokens"))


def extractor() -> FeatureExtractor:
    return FeatureExtractor(num_bins=BINS, stack=STACK, mean=[-8.0] * BINS, std=[3.0] * BINS)


def speech(seconds: float) -> np.ndarray:
    """A new tone every 80 ms, in a little noise."""
    rng = np.random.default_rng(1)
    count = int(seconds * 16000)
    pitches = rng.uniform(100, 6000, 1 + count // 1280)
    phase = np.cumsum(2 * np.pi * np.repeat(pitches, 1280)[:count] / 16000)
    return (0.3 * np.sin(phase) + 0.01 * rng.standard_normal(count)).astype(np.float32)


def make_net(name: str, block: tuple[int, int] = (1, 1), density: float = 0.4) -> Any:
    """A thinned net that says several words."""
    torch.manual_seed(3)
    net = build_model(NETS[name], input_dim=BINS * STACK, vocab_size=VOCAB).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for fqn in find_prunable(net):
            weight = net.get_parameter(fqn)
            rows, columns = weight.shape
            kept = rng.random((-(-rows // block[0]), -(-columns // block[1]))) < density
            mask = np.repeat(np.repeat(kept, block[0], 0), block[1], 1)[:rows, :columns]
            weight.mul_(torch.from_numpy(mask.astype(np.float32) * 2.5))
        features = torch.from_numpy(extractor()(speech(1.5)))[None]
        if net.kind == "transducer":
            average = net.encode(features, torch.tensor([features.size(1)]))[0].mean(dim=(0, 1))
            projection = net.joiner.encoder_projection
            projection.weight.mul_(4.0)
            projection.bias.copy_(-projection.weight @ average)
            net.joiner.output.weight.mul_(6.0)
        else:
            net.output.weight.mul_(6.0)
            net.output.bias[1] -= 2.0  # not at an end yet
    return net


def write(
    net: Any,
    name: str,
    out: Path,
    tokenizer: Tokenizer,
    block: tuple[int, int],
    precision: str,
    single: list[str] | None = None,
) -> Path:
    sizes = {"input_dim": BINS * STACK, "vocab_size": VOCAB}
    write_artifact(
        out,
        state=net.state_dict(),
        model={**asdict(NETS[name]), **sizes},
        tokenizer=tokenizer.to_bytes(),
        tokens_txt=tokenizer.tokens_txt(),
        features=extractor().to_dict(),
        spec=None,
        precision=precision,
        block=block,
        dense_parameters=sum(parameter.numel() for parameter in net.parameters()),
        prunable=list(find_prunable(net)),
        source={},
        single=single or [],
    )
    return out


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize(
    ("block", "precision"),
    [((1, 1), "fp32"), ((8, 1), "fp16"), ((16, 1), "int8"), ((4, 4), "bf16")],
)
def test_texts_are_those_of_the_masked_dense_net(
    name: str, block: tuple[int, int], precision: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write(make_net(name, block), name, tmp_path / "a", tokenizer, block, precision)
    ours = Recognizer.from_path(path, runtime="sparse")
    theirs = Recognizer.from_path(path, runtime="torch")
    assert isinstance(theirs.engine, TorchEngine)
    texts = set()
    for seconds, sign in ((0.02, 1.0), (1.5, 1.0), (0.83, -0.5)):
        samples = sign * speech(seconds)
        for beam in (1, 4):
            found = ours.transcribe(samples, beam=beam)
            assert found.text == theirs.transcribe(samples, beam=beam).text
            texts.add(found.text)
            assert found.words is not None
            spoken = " ".join(word.text for word in found.words)
            assert spoken.split() == found.text.split()
            for word, later in zip(found.words, found.words[1:], strict=False):
                assert 0 <= word.start <= word.end <= later.start
            assert all(0 <= word.confidence <= 1 for word in found.words)
            if "las" in name:
                continue
            stream = ours.stream(beam=beam)
            for at in range(0, len(samples), 1777):
                stream.accept(samples[at : at + 1777])
            streamed = stream.finish()
            assert streamed.text == found.text
            assert [w.start for w in streamed.words or ()] == [w.start for w in found.words]
    assert max(len(text) for text in texts) > 5


@pytest.mark.parametrize("part", ["nothing", "weight_ih"])
@pytest.mark.parametrize("name", ["lstm", "lstmp", "las", "lasp", "laspaper"])
def test_scores_are_close(name: str, part: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The stated tolerance: 1e-4 of encoder frames of the size of one."""
    net = make_net(name, density=0.1)
    single = [fqn for fqn in find_prunable(net) if part not in fqn]
    blocks = make_net(name, (8, 1), density=0.1)
    with torch.no_grad():
        for fqn in set(find_prunable(net)) - set(single):
            net.get_parameter(fqn).copy_(blocks.get_parameter(fqn))
    block = (8, 1) if part == "weight_ih" else (1, 1)
    path = write(net, name, tmp_path / "a", tokenizer, block, "fp32", single * (block != (1, 1)))
    packed = read_packed_artifact(path)
    packings = {packed.read(fqn).packing for fqn in packed.names}
    assert ("block" in packings) == (block == (8, 1))
    assert "bitmask" in packings
    engine = build_engine(read_packed_artifact(path))
    features = extractor()(speech(1.5))
    with torch.no_grad():
        lengths = torch.tensor([len(features)])
        expected = net.encode(torch.from_numpy(features)[None], lengths)[0][0].numpy()
    found, _ = engine.encoder.advance(features, engine.encoder.initial_memory(), final=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    dense = sum(parameter.numel() for parameter in net.parameters()) * 4
    if native.kernels()[0] is not None:  # numpy multiplies dense matrices of this size faster
        assert engine.num_bytes < 0.8 * dense


def make_factored(
    name: str, scheme: Any = "stacked", whole_one: str = "encoder.layers.1.weight_hh_l0"
) -> tuple[Any, dict[str, int]]:
    """A net all of whose matrices but one are products; it says several words."""
    whole = make_net(name, density=1.0)
    shapes = {fqn: tuple(weight.shape) for fqn, weight in whole.named_parameters()}
    ranks = {
        fqn: max(1, min(shape) * 3 // 4)
        for fqn, shape in shapes.items()
        if len(shape) == 2 and fqn != whole_one
    }
    for fqn in list(ranks):
        unit = rank_unit(fqn, shapes, scheme)
        ranks.pop(unit.reader or "", None)
        if unit.gates > 1:
            ranks[fqn] = max(1, min(shapes[fqn][0] // unit.gates, shapes[fqn][1]) * 3 // 4)
    config = replace(NETS[name], ranks=ranks, rank_scheme=scheme)
    net = build_model(config, input_dim=BINS * STACK, vocab_size=VOCAB).eval()
    for fqn in ranks:
        assert factors_of(fqn) == tuple(factor_names(fqn))
    net.load_state_dict(hand_over(whole, net))
    return net, ranks


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *((name, "stacked") for name in ("lstmp", "stateless", "las", "lasp", "laspaper")),
        *((name, scheme) for name in ("two", "las", "lasp") for scheme in ("per_gate", "joint")),
    ],
)
def test_a_factored_net_needs_no_torch(
    name: str, scheme: str, precision: str, with_kernels: bool, tmp_path: Path,
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Texts and streams of one dense product after the other."""
    if not with_kernels:
        for module in (layers, encoder, greedy, packing, sparse_kernels):
            monkeypatch.setattr(module, "kernels", lambda: (None, 0))
    net, ranks = make_factored(name, scheme)
    sizes = {"input_dim": BINS * STACK, "vocab_size": VOCAB}
    path = tmp_path / "a"
    write_artifact(
        path,
        state=net.state_dict(),
        model={**asdict(NETS[name]), **sizes, "ranks": ranks, "rank_scheme": scheme},
        tokenizer=tokenizer.to_bytes(),
        tokens_txt=tokenizer.tokens_txt(),
        features=extractor().to_dict(),
        spec=None,
        precision=precision,
        block=(1, 1),
        dense_parameters=sum(parameter.numel() for parameter in net.parameters()),
        prunable=[],
        source={},
    )
    assert needs_torch(read_packed_artifact(path).model) is None
    ours = Recognizer.from_path(path)
    assert not isinstance(ours.engine, TorchEngine)
    theirs = Recognizer.from_path(path, runtime="torch")
    texts = set()
    for seconds in (0.02, 0.83, 1.5):
        samples = speech(seconds)
        for beam in (1, 4):
            found = ours.transcribe(samples, beam=beam).text
            assert found == theirs.transcribe(samples, beam=beam).text
            texts.add(found)
        if "las" not in name:
            stream = ours.stream(beam=1)
            for at in range(0, len(samples), 1777):
                stream.accept(samples[at : at + 1777])
            assert stream.finish().text == ours.transcribe(samples, beam=1).text
    assert max(map(len, texts)) > 5


@pytest.mark.parametrize("rank", [0, 33, 1.5, "2", True])
def test_ranks_that_no_kernel_takes(rank: Any) -> None:
    net, ranks = make_factored("lstm")
    model = {**asdict(NETS["lstm"]), "input_dim": BINS * STACK, "vocab_size": VOCAB}
    model["ranks"] = {**ranks, "encoder.layers.0.weight_ih_l0": rank}
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    with pytest.raises(FormatError, match="weight_ih_l0 is .*from 1 to 32"):
        build_engine(packed(model, state))


@pytest.mark.skipif(native.kernels()[0] is None, reason="the kernels were not built")
@pytest.mark.parametrize("rank", [1, 7, 1500])
def test_two_products_in_the_kernels(rank: int) -> None:
    """A rank for which a tile has no room, too."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(shape) for shape in ((1600, rank), (rank, 1550)))
    both = [
        packing.pack(dense_tensor(side, (values / rank**0.5).astype(np.float32)))
        for side, values in (("left", left), ("right", right))
    ]
    matrix = sparse_kernels.FactoredMatrix(*both)
    library, _ = native.kernels()
    assert library is not None
    for count in (1, 3, 21):
        vectors = random.standard_normal((count, 1550)).astype(np.float32)
        expected = matrix.products(vectors)
        np.testing.assert_allclose(
            expected, vectors @ (left @ right / rank).T, rtol=1e-4, atol=1e-3
        )
        found = np.zeros((count, 1600), np.float32)
        work = np.empty(sparse_kernels.LANES * (1600 + 1550), np.float32)
        library.omni_products(
            matrix.pointer, count, vectors.ctypes.data, found.ctypes.data, work.ctypes.data
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_shared_factor_is_no_wider_than_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that joins frames multiplies by it twice: each rank alone would fit."""
    library, _ = native.kernels()
    assert library is None or library.omni_most_rank() == layers.MAX_RANK
    net, ranks = make_factored("lstm", "joint")
    rank = ranks["encoder.layers.0.weight_hh_l0"]
    model = {**asdict(NETS["lstm"]), "input_dim": BINS * STACK, "vocab_size": VOCAB}
    files = packed(
        {**model, "ranks": ranks, "rank_scheme": "joint"},
        {name: value.numpy() for name, value in net.state_dict().items()},
    )
    build_engine(files)
    monkeypatch.setattr(layers, "MAX_RANK", max(ranks.values()))
    with pytest.raises(FormatError, match=f"a left factor of {2 * rank} columns; up to"):
        build_engine(files)


@pytest.mark.skipif(native.kernels()[0] is None, reason="the kernels were not built")
@pytest.mark.parametrize("name", ["lstm", "lstmp", "stateless", "two"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("is_relu", [False, True])
def test_the_compiled_greedy_search_finds_what_that_of_numpy_finds(
    name: str, precision: str, is_relu: bool, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Frames and probabilities too, also where a frame gives all it may."""
    path = write(make_net(name), name, tmp_path / "a", tokenizer, (1, 1), precision)
    files = read_packed_artifact(path)
    net = build_engine(files)
    assert isinstance(net, Transducer)
    net._is_relu = is_relu  # as of NeMo's joiners
    for most, bias in ((5, 0.0), (1, -2.0), (3, -1e4)):  # the last never says blank
        assert net._output.bias is not None
        net._output.bias[0] += bias
        net.max_symbols = most
        compiled = greedy.CompiledTransducer.of(
            net._predictor, net._from_predictor, net._output, is_relu=is_relu, max_symbols=most
        )
        assert compiled is not None
        encoded, _ = net.encoder.advance(
            extractor()(speech(1.5)), net.encoder.initial_memory(), final=True
        )
        frames = net.project(encoded)
        one, other = greedy.Greedy(net), greedy.CompiledGreedy(compiled, *net.start())
        for first in range(0, len(frames), 7):
            one.advance(frames[first : first + 7], first)
            other.advance(frames[first : first + 7], first)
        assert len(one.found) > 5
        assert [token[:2] for token in other.found] == [token[:2] for token in one.found]
        np.testing.assert_allclose(
            [token.log_probability for token in other.found],
            [token.log_probability for token in one.found], atol=2e-4,
        )  # fmt: skip
    assert len(one.found) == 3 * len(frames)
    net._output.bias[:] = np.inf
    for search in (one, other):
        with pytest.raises(OmnisparseError, match="no numbers"):
            search.advance(frames, 0)


@pytest.mark.skipif(native.kernels()[0] is None, reason="the kernels were not built")
@pytest.mark.parametrize("name", ["lstmp", "stateless", "two"])
def test_the_compiled_greedy_search_of_factored_matrices(name: str) -> None:
    net, ranks = make_factored(name, whole_one="predictor.embedding.weight")
    model = {**asdict(NETS[name]), "input_dim": BINS * STACK, "vocab_size": VOCAB, "ranks": ranks}
    engine = build_engine(packed(model, {k: v.numpy() for k, v in net.state_dict().items()}))
    assert isinstance(engine, Transducer)
    assert engine._compiled is not None
    features = extractor()(speech(1.5))
    encoded, _ = engine.encoder.advance(features, engine.encoder.initial_memory(), final=True)
    search = greedy.Greedy(engine)
    search.advance(engine.project(encoded), 0)
    found = engine.recognise(features, beam=1)
    assert len(found) > 5
    assert [token[:2] for token in found] == [token[:2] for token in search.found]


def test_a_beam_of_one_is_greedy(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("lstm", "las"):
        path = write(make_net(name), name, tmp_path / name, tokenizer, (1, 1), "fp32")
        ours = Recognizer.from_path(path)
        assert ours.engine.tells_times
        one = [t.token for t in ours.engine.recognise(extractor()(speech(1.0)), beam=1)]
        assert one
        assert ours.tokenizer.decode(one) == ours.transcribe(speech(1.0), beam=1).text


def packed(model: dict[str, Any], tensors: dict[str, np.ndarray]) -> PackedModel:
    return PackedModel(
        model, {}, b"", tuple(tensors), lambda name: dense_tensor(name, tensors[name]), "here"
    )


def test_what_does_not_fit_is_named() -> None:
    net = make_net("lstm")
    model = {**asdict(NETS["lstm"]), "input_dim": BINS * STACK, "vocab_size": VOCAB}
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    build_engine(packed(model, state))
    first = "encoder.layers.0.weight_ih_l0"
    cases: list[tuple[dict[str, Any], dict[str, np.ndarray], str]] = [
        (model, {**state, "extra.weight": np.zeros((2, 2), np.float32)}, "extra.weight"),
        (model, {**state, first: state[first][:-1]}, first),
        (model, {name: array for name, array in state.items() if name != first}, f"no {first}"),
        ({**model, "encoder_layers": 10**9}, state, "encoder_layers is 1000000000"),
        ({**model, "time_reduction": 3}, state, "time_reduction is 3"),
        ({**model, "max_symbols_per_frame": 0}, state, "max_symbols_per_frame is 0"),
        ({**model, "max_symbols_per_frame": 2**63}, state, "max_symbols_per_frame is 92"),
        ({**model, "encoder_dim": "wide"}, state, "wide"),
        ({**model, "kind": "ctc"}, state, "ctc"),
        (model, {**state, first: np.full_like(state[first], np.nan)}, "not finite"),
    ]
    for configuration, tensors, message in cases:
        with pytest.raises(FormatError, match=message) as caught:
            build_engine(packed(configuration, tensors))
        assert "\n" not in str(caught.value)
    assert needs_torch({"kind": "transducer", "encoder": "emformer"})
    assert needs_torch(model) is None


def test_scores_that_are_no_numbers_are_told() -> None:
    for name in ("lstm", "las"):
        net = make_net(name)
        model = {**asdict(NETS[name]), "input_dim": BINS * STACK, "vocab_size": VOCAB}
        state = {fqn: tensor.numpy().copy() for fqn, tensor in net.state_dict().items()}
        engine = build_engine(packed(model, state))
        assert engine._output.bias is not None
        engine._output.bias[:] = np.nan
        for beam in (1, 3):
            with pytest.raises(OmnisparseError, match="scores are no numbers"):
                engine.recognise(extractor()(speech(0.5)), beam=beam)


def test_endpoints(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(make_net("lstm"), "lstm", tmp_path / "a", tokenizer, (1, 1), "fp32")
    recognizer = Recognizer.from_path(path)
    rules = EndpointRules(silence=100.0, silence_after_words=100.0, longest=0.8)
    stream, utterances = recognizer.stream(), []
    samples = speech(2.4)
    for at in range(0, len(samples), 1600):
        stream.accept(samples[at : at + 1600])
        if stream.is_endpoint(rules):
            utterances.append(stream.next_utterance())
    stream.finish()
    utterances.append(stream.next_utterance())
    assert 3 <= len(utterances) <= 4
    assert "".join("".join(utterances).split()) == "".join(stream.text.split())
    rules = EndpointRules()
    assert not rules.ends(seconds=5.0, silence=1.1, has_words=True)
    assert rules.ends(seconds=5.0, silence=1.2, has_words=True)
    assert not rules.ends(seconds=5.0, silence=2.3, has_words=False)
    assert rules.ends(seconds=2.4, silence=2.4, has_words=False)
    assert rules.ends(seconds=20.0, silence=0.0, has_words=True)
    with pytest.raises(UsageError, match="longest: expected seconds above 0, got 0"):
        EndpointRules(longest=0)


WITHOUT_TORCH = textwrap.dedent(
    """
    import json, sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in BLOCKED:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    BLOCKED = set(sys.argv[2].split(","))
    sys.meta_path.insert(0, Blocked())
    from click.testing import CliRunner
    from omnisparse.cli.main import verbs
    for arguments in json.loads(sys.argv[1]):
        result = CliRunner().invoke(verbs, arguments)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        print(json.dumps([result.exit_code, result.stdout, result.stderr]))
    assert not BLOCKED & set(sys.modules)
    """
)

HEAVY = (
    "torch,torchaudio,lhotse,accelerate,wandb,optuna,matplotlib,jiwer,espeakng_loader,onnx,numba,"
    "onnxruntime,sherpa_onnx,psutil,rapidfuzz"
)
"""What a device does not install."""


def run_without(commands: list[list[str]], blocked: str = HEAVY) -> list[tuple[int, str, str]]:
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands), blocked],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return [tuple(json.loads(line)) for line in found.stdout.splitlines()]


@pytest.mark.parametrize("name", ["lstm", "las"])
def test_recognising_needs_no_torch(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    import soundfile

    path = write(make_net(name), name, tmp_path / "a", tokenizer, (1, 1), "fp16")
    soundfile.write(tmp_path / "a.wav", speech(1.2), 16000)
    soundfile.write(tmp_path / "b.flac", speech(1.2)[::2], 8000)
    files = [str(tmp_path / "a.wav"), str(tmp_path / "b.flac")]
    commands = [
        ["transcribe", str(path), *files, "--json"],
        ["transcribe", str(path), *files, "--beam", "3", "--json"],
        ["inspect", str(path)],
    ]
    if name == "lstm":
        commands.append(["transcribe", str(path), *files, "--streaming", "--json"])
    results = run_without(commands)
    assert [code for code, _, _ in results] == [0] * len(commands), results
    with_torch = Recognizer.from_path(path, runtime="torch")
    for (_, out, _), beam in zip([*results[:2], *results[3:]], (1, 3, 1), strict=False):
        found = json.loads(out)["results"]
        assert [item["text"] for item in found] == [
            with_torch.transcribe(file, beam=beam).text for file in files
        ]
        assert set(found[0]["words"][0]) == {"text", "start", "end", "confidence"}


def test_what_needs_torch_says_how_to_install_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = TransducerConfig(
        encoder="emformer", encoder_layers=1, encoder_dim=24, encoder_feed_forward=24,
        time_reduction=1, predictor_dim=16, joiner_dim=24,
    )  # fmt: skip
    NETS["emformer"] = config
    try:
        net = build_model(config, input_dim=BINS * STACK, vocab_size=VOCAB)
        path = write(net, "emformer", tmp_path / "a", tokenizer, (1, 1), "fp32")
    finally:
        del NETS["emformer"]
    with pytest.raises(OmnisparseError, match="an emformer encoder has no sparse kernels"):
        Recognizer.from_path(path, runtime="sparse")
    commands = [
        ["transcribe", str(path), "a.wav"],
        ["evaluate", str(path), "--manifest", "a.jsonl"],
        ["demo", "--out", str(tmp_path / "demo")],
        ["compare", "a"],
        ["search", "--run", "a", "--sizes", "1M"],
        ["prepare", "synthetic", "--out", str(tmp_path / "corpus")],
    ]
    for command, (code, out, err) in zip(commands, run_without(commands), strict=True):
        assert code == 1, (command, code, err)
        assert out == ""
        line = err.strip().splitlines()[-1]
        assert "pip install 'omnisparse[train]'" in line, (command, err)
        assert "Traceback" not in err
    assert not (tmp_path / "demo").exists()


def test_a_device_cuts_and_measures_models_without_torch(tmp_path: Path) -> None:
    from speaking_run import make_speaking_run

    run, nested, model = make_speaking_run(tmp_path / "run"), tmp_path / "n", tmp_path / "a"
    commands = [
        ["extract", "--nested", "--run", str(run), "--out", str(nested)],
        ["extract", "--from", str(nested), "--size", "40%", "--out", str(model)],
        ["extract", "--from", str(nested), "--size", "20%", "--prefix", str(tmp_path / "p")],
        ["grow", str(tmp_path / "p"), "--from", str(nested), "--size", "60%"],
        ["extract", "--run", str(run), "--size", "50%", "--out", str(tmp_path / "b")],
        ["inspect", str(nested)],
        ["bench", str(model), "--rounds", "1", "--json"],
    ]
    results = run_without(commands)
    assert [code for code, _, _ in results] == [0] * len(commands), results
    assert json.loads(results[-1][1])["rows"][0]["rtf"] > 0


def test_the_page_is_served_without_torch(tmp_path: Path, tokenizer: Tokenizer) -> None:
    import soundfile

    path = write(make_net("lstm"), "lstm", tmp_path / "a", tokenizer, (8, 1), "fp32")
    recording = tmp_path / "a.wav"
    soundfile.write(recording, speech(1.2), 16000)
    program = WITHOUT_TORCH.partition("from click.testing")[0] + (
        "from omnisparse.cli.main import verbs\nverbs(json.loads(sys.argv[1]))\n"
    )
    command = ["serve", str(path), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(command), HEAVY],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "http://" in line)
            address = line.split("http://")[1].split("/")[0]
            request = urllib.request.Request(
                f"http://{address}/file", data=recording.read_bytes(), method="POST"
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                last = json.loads(answer.read().splitlines()[-1])
        finally:
            server.kill()
    expected = Recognizer.from_path(path, runtime="torch").transcribe(recording).text
    assert last["final"]
    assert [found["text"] for found in last["found"]] == [expected]
    assert expected
