"""A net with the tensors of NeMo's LSTM transducer, stored as NeMo stores it: a stand-in.

It is written from NeMo's documented structure; ``tests/interop/test_nemo.py`` uses NeMo's modules.
"""

from __future__ import annotations

import copy
import io
import tarfile
from pathlib import Path
from typing import Any

import torch
import yaml
from foreign_net import train_pieces
from torch import Tensor, nn

BINS, STACK, WIDTH, CELLS, LAYERS = 20, 4, 24, 32, 3
"""Of the encoder."""
PREDICTED, PREDICTOR_CELLS, JOINED, VOCABULARY = 16, 20, 28, 48

MODEL: dict[str, Any] = {
    "kind": "transducer",
    "encoder": "lstm",
    "family": "nemo",
    "encoder_layers": LAYERS,
    "encoder_dim": CELLS,
    "encoder_projection": WIDTH,
    "time_reduction": STACK,
    "predictor_layers": 2,
    "predictor_dim": PREDICTOR_CELLS,
    "predictor_projection": PREDICTED,
    "embedding_dim": PREDICTED,
    "joiner_dim": JOINED,
    "max_symbols_per_frame": 2,
}
"""The same shape in our configuration."""

_MODULES = "nemo.collections.asr.modules"

CONFIG: dict[str, Any] = {
    "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    "sample_rate": 16000,
    "tokenizer": {
        "dir": "/made/elsewhere",
        "type": "bpe",
        "model_path": "nemo:0a1b_tokenizer.model",
    },
    "preprocessor": {
        "_target_": f"{_MODULES}.AudioToMelSpectrogramPreprocessor",
        **{"sample_rate": 16000, "normalize": "NA", "window_size": 0.025, "window_stride": 0.01},
        **{"window": "hann", "features": BINS, "n_fft": 512, "frame_splicing": 1},
        **{"dither": 1e-5, "pad_to": 0},
    },
    "encoder": {
        "_target_": f"{_MODULES}.RNNEncoder",
        **{"feat_in": BINS, "n_layers": LAYERS, "d_model": CELLS, "proj_size": WIDTH},
        **{"rnn_type": "lstm", "bidirectional": False, "subsampling": "stacking"},
        **{"subsampling_factor": STACK, "subsampling_conv_channels": -1, "dropout": 0.2},
    },
    "decoder": {
        "_target_": f"{_MODULES}.RNNTDecoder",
        **{"normalization_mode": None, "random_state_sampling": False, "blank_as_pad": True},
        "prednet": {
            **{"pred_hidden": PREDICTED, "pred_rnn_layers": 2, "t_max": None, "dropout": 0.2},
            "rnn_hidden_size": PREDICTOR_CELLS,
        },
        "vocab_size": VOCABULARY,
    },
    "joint": {
        "_target_": f"{_MODULES}.RNNTJoint",
        **{"log_softmax": None, "preserve_memory": False, "fuse_loss_wer": False},
        "jointnet": {
            **{"joint_hidden": JOINED, "activation": "relu", "dropout": 0.2},
            **{"encoder_hidden": WIDTH, "pred_hidden": PREDICTED},
        },
        "num_classes": VOCABULARY,
    },
}


class StandIn(nn.Module):
    """Tensors by NeMo's names, and what is computed with them, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocessor = nn.Module()
        self.preprocessor.featurizer = nn.Module()
        self.preprocessor.featurizer.register_buffer("window", torch.zeros(400))
        self.preprocessor.featurizer.register_buffer("fb", torch.zeros(1, BINS, 257))
        self.encoder = nn.Module()
        self.encoder.pre_encode = nn.Module()
        self.encoder.pre_encode.proj_out = nn.Linear(STACK * BINS, WIDTH)
        self.encoder.layers = nn.ModuleList()
        for _ in range(LAYERS):
            lstm = nn.LSTM(WIDTH, CELLS, batch_first=True, proj_size=WIDTH)
            self.encoder.layers.extend([lstm, nn.LayerNorm(WIDTH), nn.Dropout(0.2)])
        self.decoder = nn.Module()
        recurrent = nn.Module()
        recurrent.lstm = nn.LSTM(PREDICTED, PREDICTOR_CELLS, num_layers=2, proj_size=PREDICTED)
        embed = nn.Embedding(VOCABULARY + 1, PREDICTED, padding_idx=VOCABULARY)
        self.decoder.prediction = nn.ModuleDict({"embed": embed, "dec_rnn": recurrent})
        self.joint = nn.Module()
        self.joint.pred = nn.Linear(PREDICTED, JOINED)
        self.joint.enc = nn.Linear(WIDTH, JOINED)
        self.joint.joint_net = nn.Sequential(
            nn.ReLU(), nn.Dropout(0.2), nn.Linear(JOINED, VOCABULARY + 1)
        )

    def encode(self, features: Tensor) -> Tensor:
        """``[T // STACK, WIDTH]`` of ``[T, BINS]``."""
        whole = features[: len(features) // STACK * STACK]
        frames = self.encoder.pre_encode.proj_out(whole.reshape(1, -1, STACK * BINS))
        for layer in self.encoder.layers:
            frames = layer(frames)
            frames = frames[0] if isinstance(frames, tuple) else frames
        return frames[0]

    def predict(self, token: int | None, state: Any) -> tuple[Tensor, Any]:
        """``[PREDICTED]`` after a token, or at the start, and the state."""
        embed = self.decoder.prediction["embed"]
        inputs = torch.zeros(PREDICTED) if token is None else embed(torch.tensor(token))
        outputs, state = self.decoder.prediction["dec_rnn"].lstm(inputs[None, None], state)
        return outputs[0, 0], state

    def join(self, encoded: Tensor, predicted: Tensor) -> Tensor:
        """``[..., VOCABULARY + 1]`` logits."""
        return self.joint.joint_net(self.joint.enc(encoded) + self.joint.pred(predicted))

    def greedy(self, features: Tensor) -> list[int]:
        """Their ids."""
        most = MODEL["max_symbols_per_frame"]
        found: list[int] = []
        predicted, state = self.predict(None, None)
        for frame in self.encode(features):
            for _ in range(most):
                token = int(self.join(frame, predicted).argmax())
                if token == VOCABULARY:
                    break
                found.append(token)
                predicted, state = self.predict(token, state)
        return found


def their_pieces(vocab_size: int = VOCABULARY) -> bytes:
    """A sentencepiece model with ``<unk>`` only, as NeMo's script trains it."""
    return train_pieces(vocab_size, bos_id=-1, eos_id=-1)


def trained(net: nn.Module) -> nn.Module:
    """Random weights that emit tokens now and then, as after a training."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "bias" in name or "layers" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        net.decoder.prediction["embed"].weight[VOCABULARY] = 0
        net.joint.enc.weight.mul_(4.0)
        net.joint.joint_net[2].weight.mul_(4.0)
        net.joint.joint_net[2].bias[-1] += 1.0
        net.joint.joint_net[2].bias[0] -= 5.0
    return net.eval()


def changed(**changes: Any) -> dict[str, Any]:
    """The configuration with other values, by names with two underscores for a dot."""
    config = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        *parents, last = name.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        section[last] = value
    return config


def members(state: Any, config: dict[str, Any] | None = None) -> dict[str, bytes]:
    weights = io.BytesIO()
    torch.save(state, weights)
    return {
        "./model_config.yaml": yaml.safe_dump(config or CONFIG).encode(),
        "./0a1b_tokenizer.model": their_pieces(),
        "./model_weights.ckpt": weights.getvalue(),
    }


def write(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    """An archive as NeMo writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_small(path: Path, **changes: Any) -> StandIn:
    """Write an archive; returns the net."""
    torch.manual_seed(0)
    net = trained(StandIn())
    write(path, members(net.state_dict(), changed(**changes)))
    return net
