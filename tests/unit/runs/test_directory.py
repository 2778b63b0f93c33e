"""Artifacts and nested files whose checksums hold and whose claims do not: one line, no work."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from omnisparse.artifact import write_artifact
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.errors import FormatError, OmnisparseError
from omnisparse.models import SpeechModel, TransducerConfig, build_model
from omnisparse.nested import write_nested
from omnisparse.pipeline.nested import extract_nested
from omnisparse.runs import directory as runs
from omnisparse.sparsity.prunable import find_prunable

EXTRACTOR = FeatureExtractor(num_bins=8, stack=2, mean=[0.0] * 8, std=[1.0] * 8)
TEXTS = ["the cat sat on the mat", "turn on the light", "a dog ran far"] * 3
SMALL = {"encoder_dim": 16, "predictor_dim": 8, "embedding_dim": 8, "joiner_dim": 16}
CONFORMER = {"encoder": "conformer", "encoder_heads": 2, "encoder_feed_forward": 16}


def small_model(tokenizer: Tokenizer, **options: Any) -> tuple[TransducerConfig, SpeechModel]:
    config = TransducerConfig(**{"encoder_layers": 2, "time_reduction": 2, **SMALL, **options})
    vocab_size = tokenizer.vocab_size
    return config, build_model(config, input_dim=EXTRACTOR.input_dim, vocab_size=vocab_size)


def write(out: Path, made: dict[str, Any]) -> None:
    write_artifact(out, dense_parameters=sum(t.numel() for t in made["state"].values()), **made)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.train(TEXTS, 30, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def contents(tokenizer: Tokenizer) -> Callable[..., dict[str, Any]]:
    """What the writers of both formats want, with claims in place of the truth."""

    def make(model: dict[str, Any], features: dict[str, Any], **options: Any) -> dict[str, Any]:
        config, net = small_model(tokenizer, **options)
        sizes = {"input_dim": EXTRACTOR.input_dim, "vocab_size": tokenizer.vocab_size}
        return {
            "state": net.state_dict(),
            "model": {**asdict(config), **sizes, **model},
            "features": {**EXTRACTOR.to_dict(), **features},
            "tokenizer": tokenizer.to_bytes(),
            "tokens_txt": "<blk> 0\n",
            "prunable": find_prunable(net),
            "source": {},
        }

    return make


@pytest.mark.parametrize(
    ("model", "features", "options", "message"),
    [
        ({}, {"stack": 4}, {}, "features have 32 values a frame, its model reads 16"),
        ({}, {"stack": 10**7}, {}, "features have 80000000 values a frame"),
        ({}, {"num_bins": 8.0}, {}, "num_bins is 8.0; it must be a whole number"),
        ({}, {"sampling_rate": 10**12}, {}, "from 8000 to 384000"),
        ({"encoder_layers": 200_000}, {}, {}, "encoder_layers is 200000 with 24 tensors"),
        ({"time_reduction": 2.0}, {}, {}, "time_reduction is 2.0; it must be a whole number"),
        ({"encoder_dim": True}, {}, {}, "encoder_dim is True; it must be a whole number"),
        ({"encoder_dim": 2**70}, {}, {}, "weights do not fit its model"),
        ({"segment": 10**9}, {}, CONFORMER, "segment is 1000000000; it must be from 1 to 10000"),
        ({"left_context": 10**10}, {}, CONFORMER, "left_context is 10000000000; it must be from"),
    ],
    ids=str,
)
def test_claims_that_the_bytes_do_not_bear_out(
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
    model: dict[str, Any],
    features: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    write(tmp_path / "a", contents(model, features, **options))
    with pytest.raises(FormatError, match=message) as caught:
        runs.load_model(tmp_path / "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.model", "tokens.txt", ""]
)
def test_a_recogniser_raises_what_it_documents(
    contents: Callable[..., dict[str, Any]], tmp_path: Path, file: str
) -> None:
    """Of a model that is not whole, in one line that names the folder."""
    for how in ("absent", "empty", "halved"):
        broken = tmp_path / how
        if file:
            write(broken, contents({}, {}))
            content = (broken / file).read_bytes()
            (broken / file).unlink()
            if how != "absent":
                (broken / file).write_bytes(
                    content[: len(content) // 2] if how == "halved" else b""
                )
        elif how == "empty":
            broken.mkdir()
        with pytest.raises(OmnisparseError, match=str(broken)) as caught:
            Recognizer.from_path(broken)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_of_fewer_tokens(
    contents: Callable[..., dict[str, Any]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    made = contents({"vocab_size": 60}, {})
    config, _ = small_model(tokenizer)
    made["state"] = build_model(config, input_dim=16, vocab_size=60).state_dict()
    write(tmp_path / "a", made)
    with pytest.raises(FormatError, match="its tokenizer has 30 tokens, its model 60"):
        runs.load_model(tmp_path / "a")


def test_weights_that_overflow_are_told_by_the_beam(tokenizer: Tokenizer) -> None:
    _, net = small_model(tokenizer)
    with torch.no_grad():
        net.get_parameter("joiner.output.weight")[:] = 3e38
        net.get_parameter("joiner.output.weight")[::2] = -3e38
    with pytest.raises(OmnisparseError, match="scores are NaN"):
        net.eval().decode(torch.randn(2, 20, 16), torch.tensor([20, 12]), beam=3)


def test_a_nested_header_that_claims_gigabytes_allocates_none(
    contents: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    place = tmp_path / "net.nested"
    write_nested(place, **contents({}, {}))
    data = place.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    header = json.loads(data[48 : 48 + length])
    header["tokens_bytes"] += 2**33
    header["sections"][0][1] += 2**33
    text = json.dumps(header, separators=(",", ":")).encode()
    numbers = data[:12] + len(text).to_bytes(4, "little")
    place.write_bytes(numbers + hashlib.sha256(text).digest() + text + data[48 + length :])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="this size needs 8589"):
        extract_nested(str(place), size="60%", sparsity=None, out=tmp_path / "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000  # KiB
    assert not (tmp_path / "a").exists()
