"""torchaudio's Emformer RNN-T in our net: the same outputs, the same text, and what is refused."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_net import (
    TEXTS,
    Change,
    Touch,
    another_net,
    assert_encodes_alike,
    drawn,
    encoded_in_chunks,
    into_ours,
    refuses,
    train_pieces,
    with_nan_in,
    without,
)
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram
from torchaudio_net import SMALL_MODEL, make_small, trained, write

from omnisparse.data.features import FeatureExtractor
from omnisparse.data.foreign_pieces import reordered
from omnisparse.deploy.streaming import StreamingFeatures
from omnisparse.errors import OmnisparseError
from omnisparse.models import TransducerModel, build_model
from omnisparse.models.lattice import join_lattice
from omnisparse.runs.foreign import ForeignNet, load_foreign

refused = partial(refuses, "torchaudio")
MAX_SYMBOLS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchaudio")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> nn.Module:
    return make_small(folder)


@pytest.fixture(scope="module")
def net(theirs: nn.Module, folder: Path) -> ForeignNet:
    return load_foreign(f"torchaudio:{folder}")


@pytest.fixture(scope="module")
def ours(net: ForeignNet) -> TransducerModel:
    return into_ours(net, SMALL_MODEL)


def their_ids(tokens: list[int], vocab_size: int) -> list[int]:
    """Our ids as ids there: blank last, ``<unk>`` 0, ``<s>`` 1."""
    first = {0: vocab_size - 1, 1: 1, 2: 0}
    return [first.get(token, token - 1) for token in tokens]


def their_encoding(theirs: nn.Module, features: Tensor) -> Tensor:
    """Offline, with the right padding of torchaudio's bundle, whose length counts it."""
    padded = nn.functional.pad(features, (0, 0, 0, 4))
    return theirs.transcribe(padded[None], torch.tensor([len(padded)]))[0]


def their_streaming(theirs: nn.Module, features: Tensor) -> Tensor:
    parts, state = [], None
    padded = nn.functional.pad(features, (0, 0, 0, 20))
    for start in range(0, len(features), 16):
        chunk = padded[None, start : start + 20]
        part, _, state = theirs.transcribe_streaming(chunk, torch.tensor([20]), state)
        parts.append(part)
    return torch.cat(parts, dim=1)


def their_greedy(theirs: nn.Module, encoded: Tensor, blank: int) -> list[int]:
    """Frame by frame with their predictor and joiner, at most MAX_SYMBOLS tokens a frame."""
    one = torch.tensor([1])
    predicted, _, state = theirs.predict(torch.tensor([[blank]]), one, None)
    found: list[int] = []
    for frame in encoded[0]:
        for _ in range(MAX_SYMBOLS):
            logits, _, _ = theirs.join(frame[None, None], one, predicted, one)
            token = int(logits.argmax())
            if token == blank:
                break
            found.append(token)
            predicted, _, state = theirs.predict(torch.tensor([[token]]), one, state)
    return found


def projected(model: TransducerModel, encoded: Tensor) -> Tensor:
    return model.joiner.encoder_projection(encoded)


@torch.no_grad()
@pytest.mark.parametrize("frames", [64, 57, 62, 16, 4, 83])
def test_the_encoder_gives_their_outputs(theirs, ours, frames: int) -> None:
    features = drawn(frames, 20, frames)
    found, lengths = ours.encode(features[None], torch.tensor([frames]))
    expected = their_encoding(theirs, features)
    assert lengths.tolist() == [frames // 4] == [expected.size(1)]
    torch.testing.assert_close(projected(ours, found), expected, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [64, 48, 16])
def test_streams_give_their_outputs(theirs, ours, frames: int) -> None:
    features = drawn(frames, 20, 1)
    found = projected(ours, encoded_in_chunks(ours, features, 7))
    torch.testing.assert_close(found, their_streaming(theirs, features), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 3, 5, 17, 18, 31, 63, 66, 67])
def test_a_stream_and_a_batch_give_what_an_utterance_alone_gives(ours, frames: int) -> None:
    assert_encodes_alike(ours, frames)


@torch.no_grad()
def test_predictor_and_joiner_give_their_outputs(theirs, ours, net: ForeignNet) -> None:
    tokens = torch.randint(2, net.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
    ids = [their_ids([0, *row], net.vocab_size) for row in tokens.tolist()]
    expected, _, _ = theirs.predict(torch.tensor(ids), torch.tensor([10] * 3), None)
    found = ours.joiner.predictor_projection(ours.predictor(tokens))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    state, steps = ours.predictor.initial_state(3), []
    for token in [torch.zeros(3, dtype=torch.int64), *tokens.t()]:
        output, state = ours.predictor.step(token, state)
        steps.append(ours.joiner.predictor_projection(output))
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=0, atol=1e-4)
    encoded = drawn(6, 24)[None].expand(3, -1, -1)
    sizes = torch.tensor([6] * 3), torch.tensor([10] * 3)
    logits, _, _ = theirs.join(encoded, sizes[0], expected, sizes[1])
    total = (encoded[:, :, None] + found[:, None]).clone()
    order = their_ids(list(range(net.vocab_size)), net.vocab_size)
    torch.testing.assert_close(ours.joiner.score(total), logits[..., order], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [64, 57])
def test_greedy_tokens_are_theirs(theirs, ours, net: ForeignNet, frames: int) -> None:
    features = drawn(frames, 20, 4)
    expected = their_greedy(theirs, their_encoding(theirs, features), net.vocab_size - 1)
    (found,) = ours.greedy(features[None], torch.tensor([frames]))
    assert their_ids(found, net.vocab_size) == expected
    assert len(expected) > 5
    if frames % 16 == 0:
        streamed = their_greedy(theirs, their_streaming(theirs, features), net.vocab_size - 1)
        assert streamed == expected


@pytest.mark.slow
@torch.no_grad()
def test_the_published_shape_of_76_7_million(tmp_path: Path) -> None:
    from torchaudio.models import emformer_rnnt_base

    from omnisparse.config import load_config

    torch.manual_seed(0)
    pieces = train_pieces(60)
    theirs = trained(emformer_rnnt_base(num_symbols=61), start=1)
    write(tmp_path, theirs, pieces, 80)
    recipe = Path(__file__).parents[3] / "recipes" / "configs" / "emformer_76m_finetune.yaml"
    config = load_config(recipe).model
    net = load_foreign(f"torchaudio:{tmp_path}")
    ours = build_model(config, input_dim=80, vocab_size=61).eval()
    ours.load_state_dict(dict(net.state))
    whole = sum(one.numel() for one in ours.parameters()) + (4097 - 61) * (512 + 1024 + 1)
    assert whole == sum(one.numel() for one in emformer_rnnt_base(num_symbols=4097).parameters())
    assert round(whole / 1e6, 1) == 76.7
    features = drawn(91, 80, 3)
    encoded, _ = ours.encode(features[None], torch.tensor([91]))
    expected = their_encoding(theirs, features)
    torch.testing.assert_close(ours.joiner.encoder_projection(encoded), expected, rtol=0, atol=1e-4)
    (found,) = ours.greedy(features[None], torch.tensor([91]))
    assert their_ids(found, 61) == their_greedy(theirs, expected, 60)


def test_the_lattice_with_relu_is_differentiated_as_written_out() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 5, 6), (2, 4, 6), (9, 6), (9,))
    inputs = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    tokens = torch.tensor([[2, 5, 3], [7, 4, 8]])
    lengths = {"frame_lengths": torch.tensor([5, 5]), "token_lengths": torch.tensor([3, 3])}
    weights = torch.randn(2, 5, 4, generator=generator)
    found = join_lattice(*inputs, tokens=tokens, **lengths, activation="relu")
    encoded, predicted, weight, bias = inputs
    logits = (encoded[:, :, None] + predicted[:, None]).relu() @ weight.t() + bias
    blank = logits.log_softmax(-1)[..., 0]
    torch.testing.assert_close(found[..., 1], blank)
    gradients = torch.autograd.grad((found[..., 1] * weights).sum(), inputs)
    oracle = torch.autograd.grad((blank * weights).sum(), inputs)
    for one, other in zip(gradients, oracle, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# Features and word pieces.


def their_features(samples: np.ndarray, extractor: FeatureExtractor) -> Tensor:
    """As in torchaudio.pipelines.rnnt_pipeline, written out from its parts."""
    transform = MelSpectrogram(
        sample_rate=16000, n_fft=400, n_mels=extractor.num_bins, hop_length=160
    )
    frames = transform(torch.from_numpy(samples)).t() * 10 ** (0.05 * 2 * 20 * np.log10(32767))
    frames = torch.where(frames > np.e, frames.clamp(min=1).log(), frames / np.e)
    return (frames - torch.from_numpy(extractor.mean)) / torch.from_numpy(extractor.std)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank has all zero")
@pytest.mark.parametrize("count", [401, 1000, 16000, 16123, 160_000])
def test_features_are_theirs(net: ForeignNet, count: int) -> None:
    samples = 0.1 * np.random.default_rng(count).standard_normal(count).astype(np.float32)
    samples[count // 2 :] *= 1e-4  # the linear part of their logarithm
    found = net.extractor(samples)
    assert len(found) == count // 160 + 1 == net.extractor.num_frames(count)
    expected = their_features(samples, net.extractor).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_the_filters_are_theirs() -> None:
    from omnisparse.data.log_mel import _tables

    expected = melscale_fbanks(201, 0.0, 8000.0, 80, 16000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(_tables(16000, 80)[1], expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("step", [37, 160, 1601, 9000])
def test_streamed_features_are_those_of_the_whole(net: ForeignNet, step: int) -> None:
    samples = 0.1 * np.random.default_rng(1).standard_normal(9_511).astype(np.float32)
    stream, parts = StreamingFeatures(net.extractor), []
    for start in range(0, len(samples), step):
        final = start + step >= len(samples)
        parts.append(stream.accept(samples[start : start + step], final=final))
    np.testing.assert_allclose(np.concatenate(parts), net.extractor(samples), rtol=0, atol=1e-5)


def test_an_extractor_is_described_and_made_again(net: ForeignNet) -> None:
    again = FeatureExtractor.from_dict(net.extractor.to_dict())
    assert again.to_dict() == net.extractor.to_dict()
    assert again.kind == "torchaudio"


def test_texts_are_cut_into_the_same_pieces(net: ForeignNet, folder: Path) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm_bpe.model"))
    for text in (*TEXTS, "the 7 unknown"):
        assert their_ids(net.tokenizer.encode(text), net.vocab_size) == pieces.encode(text)
    for text in TEXTS:
        assert net.tokenizer.decode(net.tokenizer.encode(text)) == text
    assert net.tokenizer.vocab_size == net.vocab_size == 49


def test_pieces_without_a_start_are_refused() -> None:
    from omnisparse.data.tokenizer import Tokenizer

    with pytest.raises(OmnisparseError, match="have no <s> or no <unk>"):
        reordered(Tokenizer.train(TEXTS, 48, Path("pieces")).to_bytes())
    with pytest.raises(OmnisparseError, match="not a sentencepiece model"):
        reordered(b"\xff" * 30)


# What is refused, in one line each.


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    made = tmp_path / "made-by-code"
    make_small(tmp_path / "net")
    weights = tmp_path / "net" / "emformer_rnnt.pt"
    torch.save({"joiner.linear.weight": torch.ones(2), "more": Touch(made)}, weights)
    refused(tmp_path / "net", r"emformer_rnnt.pt: holds more than tensors, so it is not read")
    weights.write_bytes(pickle.dumps({"more": Touch(made)}))
    refused(tmp_path / "net", r"emformer_rnnt.pt: (holds more than|cannot be read)")
    assert not made.exists()
    pickle.loads(pickle.dumps(Touch(made)))  # so it would have been
    assert made.exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without("joiner"), r"not the weights of torchaudio's emformer_rnnt: joiner.linear.\* is"),
        (another_net, r"not the weights of torchaudio's emformer_rnnt: transcriber.input_lin"),
        (with_nan_in("joiner.linear.bias"), "joiner.linear.bias holds NaN or infinite values"),
    ],
)
def test_wrong_weights_are_one_line(tmp_path: Path, change: Change, line: str) -> None:
    state = make_small(tmp_path).state_dict()
    change(state)
    torch.save(state, tmp_path / "emformer_rnnt.pt")
    refused(tmp_path, line)


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    make_small(tmp_path)
    statistics = (tmp_path / "global_stats.json").rename(tmp_path / "elsewhere.json")
    refused(tmp_path, r"its statistics of the features \(\*stats\*.json\) are not beside it")
    statistics.rename(tmp_path / "global_stats.json")
    (tmp_path / "other.model").write_bytes(b"")
    refused(tmp_path, r"one file \*.model .* is expected, found: other.model, spm_bpe.model")
    (tmp_path / "other.model").unlink()
    (tmp_path / "spm_bpe.model").write_bytes(train_pieces(44))
    refused(tmp_path, r"has 49 symbols \(predictor.embedding.weight\), but its word pieces")


def test_a_checkpoint_of_their_recipe_is_read(tmp_path: Path, net: ForeignNet) -> None:
    theirs = make_small(tmp_path)
    state = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "emformer_rnnt.pt")
    found = load_foreign(f"torchaudio:{tmp_path / 'emformer_rnnt.pt'}")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in net.state.items())


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", r"nothing: no such file; torchaudio:PATH is a .pt file or its")
    (tmp_path / "a.pt").write_bytes(b"no zip")
    refused(tmp_path, r"a.pt: (cannot be read as a .pt file|holds more than)")
