"""NeMo's LSTM transducer in our net: the same outputs and tokens, and what is refused."""

from __future__ import annotations

import io
import tarfile
from functools import partial
from pathlib import Path

import nemo_net
import pytest
import torch
import yaml
from foreign_net import (
    TEXTS,
    Touch,
    another_net,
    assert_encodes_alike,
    drawn,
    into_ours,
    refuses,
    with_nan_in,
    without,
)
from nemo_net import MODEL, StandIn, changed, make_small, members, write

from omnisparse.data.foreign_pieces import reordered
from omnisparse.errors import OmnisparseError
from omnisparse.models import TransducerModel
from omnisparse.runs.foreign import ForeignNet, identity_of, load_foreign

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

refused = partial(refuses, "nemo")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nemo") / "small.nemo"


@pytest.fixture(scope="module")
def theirs(archive: Path) -> StandIn:
    return make_small(archive)


@pytest.fixture(scope="module")
def net(theirs: StandIn, archive: Path) -> ForeignNet:
    return load_foreign(f"nemo:{archive}")


@pytest.fixture(scope="module")
def ours(net: ForeignNet) -> TransducerModel:
    return into_ours(net, MODEL)


def their_ids(tokens: list[int]) -> list[int]:
    """Our ids as ids there: blank last, no sentence mark, ``<unk>`` 0."""
    first = {0: nemo_net.VOCABULARY, 1: -1, 2: 0}
    return [first.get(token, token - 2) for token in tokens]


@torch.no_grad()
@pytest.mark.parametrize("frames", [64, 57, 4, 83])
def test_the_encoder_gives_their_outputs(theirs, ours, frames: int) -> None:
    features = drawn(frames, nemo_net.BINS, frames)
    found, lengths = ours.encode(features[None], torch.tensor([frames]))
    assert lengths.tolist() == [frames // 4] == [found.size(1)]
    torch.testing.assert_close(found[0], theirs.encode(features), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 4, 7, 17, 66])
def test_a_stream_and_a_batch_give_what_an_utterance_alone_gives(ours, frames: int) -> None:
    _, lengths = ours.encode(drawn(frames, nemo_net.BINS)[None], torch.tensor([frames]))
    assert lengths.tolist() == [max(1, frames // 4)]
    assert_encodes_alike(ours, frames)


@torch.no_grad()
def test_predictor_and_joiner_give_their_outputs(theirs, ours) -> None:
    tokens = torch.tensor([[5, 9, 2, 33]])
    outputs = ours.predictor(tokens)[0]
    (predicted, state), expected = theirs.predict(None, None), []
    for token in [*their_ids(tokens[0].tolist()), None]:
        expected.append(predicted)
        if token is not None:
            predicted, state = theirs.predict(token, state)
    torch.testing.assert_close(outputs, torch.stack(expected), rtol=0, atol=1e-5)
    encoded = torch.randn(nemo_net.WIDTH)
    total = ours.joiner.encoder_projection(encoded) + ours.joiner.predictor_projection(outputs)
    logits = ours.joiner.score(total.clone())
    known = [token for token in range(logits.size(1)) if token != 1]
    wanted = theirs.join(encoded, torch.stack(expected))[:, their_ids(known)]
    torch.testing.assert_close(logits[:, known], wanted, rtol=0, atol=1e-4)
    assert bool((logits.softmax(-1)[:, 1] == 0).all())


@torch.no_grad()
@pytest.mark.parametrize("frames", [64, 58, 200])
def test_greedy_tokens_are_theirs(theirs, ours, frames: int) -> None:
    features = drawn(frames, nemo_net.BINS, 4)
    (found,) = ours.greedy(features[None], torch.tensor([frames]))
    expected = theirs.greedy(features)
    assert their_ids(found) == expected
    assert len(expected) > 5


def test_texts_are_cut_into_the_same_pieces(net: ForeignNet) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(nemo_net.their_pieces())
    for text in (*TEXTS, "the 7 unknown"):
        assert their_ids(net.tokenizer.encode(text)) == pieces.encode(text)
    for text in TEXTS:
        assert net.tokenizer.decode(net.tokenizer.encode(text)) == text
    assert net.tokenizer.vocab_size == net.vocab_size == nemo_net.VOCABULARY + 2
    with pytest.raises(OmnisparseError, match="have no <s> or no <unk>"):
        reordered(nemo_net.their_pieces())


def test_features_are_those_of_its_configuration(net: ForeignNet, tmp_path: Path) -> None:
    assert (net.extractor.kind, net.extractor.num_bins) == ("nemo", nemo_net.BINS)
    assert net.extractor.normalisation == "none"
    make_small(tmp_path / "other.nemo", preprocessor__normalize="per_feature")
    other = load_foreign(f"nemo:{tmp_path / 'other.nemo'}").extractor
    assert other.normalisation == "utterance"


def test_packed_unpacked_and_without_names_that_are_not_needed(
    theirs: StandIn, net: ForeignNet, tmp_path: Path
) -> None:
    files = members(theirs.state_dict())
    packed = write(tmp_path / "packed.nemo", files, "w:gz")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    state = theirs.state_dict()
    state["decoder.prediction.embed.weight"] = state["decoder.prediction.embed.weight"][:-1]
    short = write(tmp_path / "short.nemo", members(state))
    for place in (packed, folder, short):
        found = load_foreign(f"nemo:{place}").state
        assert set(found) == set(net.state)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, net.state[name], rtol=0, atol=0)
    assert identity_of(f"nemo:{packed}").startswith("nemo/")


# What is refused, in one line each.


def test_an_archive_with_code_in_it_is_not_run(theirs: StandIn, tmp_path: Path) -> None:
    made = tmp_path / "made-by-code"
    state = {**theirs.state_dict(), "more": Touch(made)}
    refused(
        write(tmp_path / "a.nemo", members(state)), r"model_weights.ckpt: holds more than tensors"
    )
    files = members(theirs.state_dict())
    files["./model_config.yaml"] = f"!!python/object/apply:os.mkdir ['{made}']".encode()
    refused(write(tmp_path / "b.nemo", files), r"model_config.yaml is not YAML")
    assert not made.exists()


def conformer(state: dict) -> None:
    state["encoder.layers.0.self_attn.linear_q.weight"] = torch.ones(3, 3)


def backwards(state: dict) -> None:
    state["encoder.layers.0.weight_ih_l0_reverse"] = torch.ones(3, 3)


def fewer_symbols(state: dict) -> None:
    for name in ("joint.joint_net.2.weight", "joint.joint_net.2.bias"):
        state[name] = state[name][:-4]


def in_another_shape(name: str, *shape: int):
    def change(state: dict) -> None:
        state[name] = torch.ones(shape)

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without("joint.joint_net.2.weight"), r"no joiner.output.weight"),
        (in_another_shape("joint.joint_net.2.bias"), r"symbols without rows"),
        (in_another_shape("decoder.prediction.embed.weight"), r"symbols without rows"),
        (in_another_shape("joint.pred.bias", 5), r"biases of joint.enc and joint.pred differ"),
        (without("joint.enc"), r"not the weights of an LSTM transducer: no joiner.encoder_proj"),
        (conformer, r"self_attn.linear_q.weight is unknown"),
        (backwards, r"weight_ih_l0_reverse is unknown"),
        (another_net, r"weight_ih_l0 is unknown"),
        (with_nan_in("joint.enc.bias"), r"joint.enc.bias holds NaN or infinite"),
        (fewer_symbols, r"has 45 symbols \(joint.joint_net\), but its word pieces are 48 and"),
    ],
)
def test_other_weights(theirs: StandIn, tmp_path: Path, change, line: str) -> None:
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    change(state)
    refused(write(tmp_path / "other.nemo", members(state)), line)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"encoder___target_": "a.ConformerEncoder"}, "encoder is ConformerEncoder; legal here: R"),
        ({"decoder___target_": "a.StatelessTransducerDecoder"}, "decoder is StatelessTransducerD"),
        ({"encoder__bidirectional": True}, "encoder.bidirectional is True; legal here: False"),
        ({"encoder__rnn_type": "gru"}, "encoder.rnn_type is 'gru'; legal here: 'lstm'"),
        ({"encoder__subsampling": "stacking_norm"}, "encoder.subsampling is 'stacking_norm'"),
        ({"joint__jointnet__activation": "tanh"}, "joint.jointnet.activation is 'tanh'; legal"),
        ({"decoder__normalization_mode": "layer"}, "decoder.normalization_mode is 'layer'"),
        ({"tokenizer__type": "wpe"}, "tokenizer.type is 'wpe'; legal here: 'bpe'"),
        ({"preprocessor__window_size": 0.02}, "preprocessor.window_size is 0.02; legal here: 0.02"),
        ({"preprocessor__preemph": None}, "preprocessor.preemph is None; legal here: 0.97"),
        ({"preprocessor__n_fft": 1024}, "n_fft 1024, highfreq None; legal here"),
        ({"preprocessor__normalize": "all_features"}, "preprocessor.normalize is 'all_features'"),
        ({"preprocessor__features": 3}, "model_config.yaml: num_bins"),
        ({"preprocessor": "none"}, "preprocessor is nothing; legal here: AudioToMel"),
    ],
)
def test_other_configurations(theirs: StandIn, tmp_path: Path, changes, line: str) -> None:
    files = members(theirs.state_dict())
    files["./model_config.yaml"] = yaml.safe_dump(changed(**changes)).encode()
    refused(write(tmp_path / "other.nemo", files), line)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02t.",  # a tuple without a mark
        b"\x80\x02J\x01.",  # a number of which three bytes are missing
    ],
)
def test_damaged_weights(theirs: StandIn, tmp_path: Path, content: bytes) -> None:
    files = members(theirs.state_dict())
    files["./model_weights.ckpt"] = content
    refused(write(tmp_path / "damaged.nemo", files), r"model_weights.ckpt: cannot be read as a .pt")


def test_damaged_archives(theirs: StandIn, tmp_path: Path) -> None:
    files = members(theirs.state_dict())
    whole = write(tmp_path / "whole.nemo", files).read_bytes()
    damaged = tmp_path / "damaged.nemo"
    damaged.write_bytes(whole[: len(whole) // 3])
    refused(damaged, r"damaged.nemo")
    damaged.write_bytes(b"no archive at all")
    refused(damaged, r"damaged or no .nemo archive")
    packed = write(tmp_path / "packed.nemo", files, "w:gz").read_bytes()
    damaged.write_bytes(packed[:200] + b"\x00" * 20 + packed[220:])
    refused(damaged, r"damaged.nemo")
    refused(tmp_path / "nowhere.nemo", r"no such file; nemo:PATH is a .nemo file, or a folder")
    del files["./0a1b_tokenizer.model"]
    refused(write(tmp_path / "less.nemo", files), r"there is no 0a1b_tokenizer.model in")


def test_other_vocabulary(theirs: StandIn, tmp_path: Path) -> None:
    files = members(theirs.state_dict())
    files["./0a1b_tokenizer.model"] = nemo_net.their_pieces(44)
    refused(write(tmp_path / "a.nemo", files), r"has 49 symbols .*its word pieces are 44 and a bl")


def test_members_that_are_no_files(theirs: StandIn, tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("target: x")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        path = tmp_path / "link.nemo"
        with tarfile.open(path, "w") as archive:
            member = tarfile.TarInfo("./model_config.yaml")
            member.type, member.linkname = kind, str(secret)
            archive.addfile(member)
        refused(path, r"model_config.yaml in the archive is no plain file")
    with tarfile.open(path, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("model_config.yaml"), io.BytesIO())
    refused(path, r"there is 2 files model_config.yaml")
