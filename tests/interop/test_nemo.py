"""NeMo's own modules beside ours; run by ``make test-nemo``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nemo_net
import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import omnisparse
from omnisparse.config import config_from_dict
from omnisparse.data.features import FeatureExtractor
from omnisparse.deploy.streaming import StreamingFeatures
from omnisparse.models import TransducerConfig, TransducerModel, build_model
from omnisparse.pipeline.train import train
from omnisparse.runs.foreign import load_foreign

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore"),  # those of NeMo's imports
]

PREPROCESSOR = {
    **{"sample_rate": 16000, "window_size": 0.025, "window_stride": 0.01, "window": "hann"},
    **{"features": 80, "n_fft": 512, "frame_splicing": 1, "dither": 1e-5, "pad_to": 0},
}
"""As in NeMo's recipes."""


def speech_like(count: int) -> np.ndarray:
    generator = np.random.default_rng(count)
    samples = 0.1 * generator.standard_normal(count).astype(np.float32)
    samples[count // 2 :] *= 1e-3
    return samples


@pytest.mark.parametrize("normalize", ["per_feature", "NA"])
@pytest.mark.parametrize("count", [1600, 16000, 80_079, 160_123])
def test_features_are_nemos(normalize: str, count: int) -> None:
    modules = pytest.importorskip("nemo.collections.asr.modules")
    theirs = modules.AudioToMelSpectrogramPreprocessor(normalize=normalize, **PREPROCESSOR).eval()
    samples = speech_like(count)
    expected, lengths = theirs(
        input_signal=torch.from_numpy(samples)[None], length=torch.tensor([count])
    )
    ours = FeatureExtractor(stack=1, kind="nemo", per_utterance=normalize == "per_feature")
    found = ours(samples)
    assert len(found) == int(lengths[0])
    np.testing.assert_allclose(found, expected[0].t()[: len(found)].numpy(), rtol=0, atol=1e-4)
    if normalize == "NA":
        stream, parts = StreamingFeatures(ours), []
        for start in range(0, count, 1000):
            final = start + 1000 >= count
            parts.append(stream.accept(samples[start : start + 1000], final=final))
        np.testing.assert_allclose(np.concatenate(parts), found, rtol=0, atol=1e-5)


# A whole model of NeMo's own making, stored by NeMo.


def make_model(folder: Path, normalize: str) -> nn.Module:
    """An ``EncDecRNNTBPEModel`` with random weights, saved as ``model.nemo``."""
    models = pytest.importorskip("nemo.collections.asr.models")
    import sentencepiece
    from omegaconf import OmegaConf

    (folder / "tokenizer.model").write_bytes(nemo_net.their_pieces())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    names = [pieces.IdToPiece(number) for number in range(1, pieces.GetPieceSize())]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n")
    config = nemo_net.changed(
        tokenizer={"dir": str(folder), "type": "bpe"},
        preprocessor__normalize=normalize,
        decoder__vocab_size=-1,
        joint__num_classes=-1,
        joint__vocabulary=[],
    )
    del config["target"]
    config |= {
        "model_defaults": {
            **{"enc_hidden": nemo_net.WIDTH, "pred_hidden": nemo_net.PREDICTED},
            "joint_hidden": nemo_net.JOINED,
        },
        "decoding": {
            "strategy": "greedy",
            "greedy": {"max_symbols": nemo_net.MODEL["max_symbols_per_frame"]},
        },
        "loss": {"loss_name": "pytorch"},
        "validation_ds": {
            **{"use_start_end_token": False, "shuffle": False, "sample_rate": 16000},
            **{"batch_size": 1, "manifest_filepath": None, "num_workers": 0},
        },
    }
    torch.manual_seed(0)
    model = models.EncDecRNNTBPEModel(OmegaConf.create(config))
    nemo_net.trained(model)
    model.save_to(str(folder / "model.nemo"))
    return model.eval()


@pytest.mark.parametrize("normalize", ["NA", "per_feature"])
@torch.no_grad()
def test_a_model_of_nemo_in_ours(normalize: str, tmp_path: Path, speech: Path) -> None:
    theirs: Any = make_model(tmp_path, normalize)
    init = f"nemo:{tmp_path / 'model.nemo'}"
    net = load_foreign(init)
    fields = {key: value for key, value in nemo_net.MODEL.items() if key != "kind"}
    ours = build_model(
        TransducerConfig(**fields), input_dim=net.extractor.input_dim, vocab_size=net.vocab_size
    ).eval()
    ours.load_state_dict(dict(net.state))
    assert isinstance(ours, TransducerModel)
    samples = speech_like(24_000)
    signal, length = torch.from_numpy(samples)[None], torch.tensor([len(samples)])
    encoded, lengths = theirs.forward(input_signal=signal, input_signal_length=length)
    features = torch.from_numpy(net.extractor(samples))[None]
    found, found_lengths = ours.encode(features, torch.tensor([features.size(1)]))
    assert found_lengths.tolist() == lengths.tolist() == [found.size(1)]
    expected = encoded.transpose(1, 2)[:, : found.size(1)]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    tokens = torch.tensor([[7, 11, 30, 2]])
    there = torch.where(tokens == 2, 0, tokens - 2)
    predicted, _, _ = theirs.decoder(targets=there, target_length=torch.tensor([4]))
    outputs = ours.predictor(tokens)
    torch.testing.assert_close(outputs, predicted.transpose(1, 2), rtol=0, atol=1e-4)
    theirs.joint.log_softmax = False
    joined = theirs.joint(encoder_outputs=encoded, decoder_outputs=predicted)[0]
    total = (
        ours.joiner.encoder_projection(found)[0, :, None]
        + ours.joiner.predictor_projection(outputs)[0, None]
    )
    known = [0, *range(2, net.vocab_size)]
    order = [nemo_net.VOCABULARY, 0, *range(1, nemo_net.VOCABULARY)]
    logits = ours.joiner.score(total)[..., known]
    torch.testing.assert_close(logits, joined[: len(logits)][..., order], rtol=0, atol=1e-4)

    wavs = sorted((speech / "audio").rglob("*.flac"))[:3] or sorted(speech.rglob("*.wav"))[:3]
    assert wavs
    told = theirs.transcribe([str(wav) for wav in wavs], batch_size=1, verbose=False)
    config = config_from_dict(
        {
            "init": init,
            "corpus": {
                **{"synthetic": None, "base": str(speech), "root": str(tmp_path)},
                **{"train": ["train.jsonl"], "dev": ["dev.jsonl"], "test": ["test.jsonl"]},
            },
            "data": {
                "features": {
                    **{"kind": "nemo", "stack": 1, "num_bins": nemo_net.BINS},
                    "normalize": "none" if normalize == "NA" else "utterance",
                }
            },
            "model": dict(nemo_net.MODEL),
            "method": {"kind": "dense"},
            "training": {"max_steps": 0},
        }
    )
    run = train(config, out=tmp_path / "run").run
    recogniser = omnisparse.Recognizer.from_path(run, cut_above=0)
    assert any(one.text for one in told)
    for wav, one in zip(wavs, told, strict=True):
        heard, _ = soundfile.read(wav, dtype="float32")
        assert recogniser.transcribe(heard).text == one.text
        if recogniser.streams:
            stream = recogniser.stream()
            for start in range(0, len(heard), 1234):
                stream.accept(heard[start : start + 1234])
            assert stream.finish().text == one.text
