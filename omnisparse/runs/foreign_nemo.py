"""NeMo's LSTM transducers to start from: ``init=nemo:PATH``.

A ``.nemo`` file is a tar archive of a configuration, a state dict and a sentencepiece model. Its
members are read one by one where they lie; nothing is unpacked.
"""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

from omnisparse.config.yaml_core import read_yaml
from omnisparse.errors import DataError, FormatError, OmnisparseError
from omnisparse.runs.foreign_tensors import ForeignNet, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer

PREFIX = "nemo:"
"""Start of an ``init`` that names a net of NeMo."""

_CONFIG = "model_config.yaml"
_WEIGHTS = "model_weights.ckpt"
_MOST_MEMBERS = 1000
_MOST_BYTES = 64 << 20
"""Of a configuration or a tokenizer."""

_NEVER_EMITTED = -1e4
"""Bias of a token that NeMo's net does not have."""

_NAMES = (
    (r"encoder\.pre_encode\.(?:proj_out\.)?(weight|bias)", r"encoder.input_projection.\1"),
    (
        r"decoder\.prediction\.dec_rnn\.lstm\.(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l(\d+)",
        r"predictor.layers.\2.\1_l0",
    ),
    (r"decoder\.prediction\.embed\.weight", r"predictor.embedding.weight"),
    (r"joint\.enc\.(weight|bias)", r"joiner.encoder_projection.\1"),
    (r"joint\.pred\.(weight|bias)", r"joiner.predictor_projection.\1"),
    (r"joint\.joint_net\.\d+\.(weight|bias)", r"joiner.output.\1"),
)
"""Names there, as regular expressions, and here; those of the encoder's layers: `_layer_name`."""

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(\w+)")
_IS_LSTM = re.compile(r"(?:weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l0")

_NEEDED = (
    "encoder.input_projection.weight",
    "encoder.layers.0.weight_ih_l0",
    "encoder.norms.0.weight",
    "predictor.embedding.weight",
    "predictor.layers.0.weight_ih_l0",
    "joiner.encoder_projection.bias",
    "joiner.predictor_projection.weight",
    "joiner.output.weight",
    "joiner.output.bias",
)

_LEGAL: dict[str, tuple[Any, tuple[Any, ...]]] = {
    # What NeMo takes where nothing is said, and what is legal here.
    "encoder.rnn_type": ("lstm", ("lstm",)),
    "encoder.bidirectional": (True, (False,)),
    "encoder.subsampling": ("striding", ("stacking",)),
    "decoder.normalization_mode": (None, (None,)),
    "joint.jointnet.activation": (None, ("relu",)),
    "joint.num_extra_outputs": (0, (0,)),
    "tokenizer.type": (None, ("bpe",)),
    "preprocessor.window_size": (0.02, (0.025,)),
    "preprocessor.window_stride": (0.01, (0.01,)),
    "preprocessor.window": ("hann", ("hann",)),
    "preprocessor.preemph": (0.97, (0.97,)),
    "preprocessor.lowfreq": (0, (0, 0.0)),
    "preprocessor.log": (True, (True,)),
    "preprocessor.log_zero_guard_type": ("add", ("add",)),
    "preprocessor.log_zero_guard_value": (2.0**-24, (2.0**-24,)),
    "preprocessor.frame_splicing": (1, (1,)),
    "preprocessor.exact_pad": (False, (False,)),
    "preprocessor.mag_power": (2.0, (2.0, 2)),
    "preprocessor.mel_norm": ("slaney", ("slaney",)),
}

_TARGETS = {
    "encoder": "RNNEncoder",
    "decoder": "RNNTDecoder",
    "joint": "RNNTJoint",
    "preprocessor": "AudioToMelSpectrogramPreprocessor",
}
"""The classes that a part is made of."""


def weights_file(init: str) -> Path:
    """The archive that an ``init`` names, or the weights of one that was unpacked.

    Raises:
        OmnisparseError: If there is none.
    """
    place = Path(init.removeprefix(PREFIX)).expanduser()
    if place.is_dir() and (place / _WEIGHTS).is_file():
        return place / _WEIGHTS
    if not place.is_file():
        raise OmnisparseError(
            f"{place}: no such file; {PREFIX}PATH is a .nemo file, or a folder with its {_CONFIG}, "
            f"{_WEIGHTS} and tokenizer"
        )
    return place


def load_tokenizer(init: str) -> Tokenizer:
    """The word pieces of a net of NeMo, in the order of our ids.

    Raises:
        OmnisparseError: If they are missing or damaged.
    """
    return _Archive(init).pieces()[0]


def load_extractor(init: str) -> FeatureExtractor:
    """The features that a net of NeMo reads.

    Raises:
        OmnisparseError: If its configuration is missing, damaged, or describes others.
    """
    return _Archive(init).extractor()


def load_net(init: str) -> ForeignNet:
    """Read ``nemo:PATH``: configuration, weights and word pieces.

    The bias of the joint network's ``pred`` is added to that of ``enc``: only their sum counts.

    Args:
        init: PATH is a ``.nemo`` file of an ``EncDecRNNTBPEModel`` with an ``RNNEncoder``, or a
            folder into which one was unpacked.

    Raises:
        OmnisparseError: If a file is missing, is not of such a net, or holds code.
    """
    archive = _Archive(init)
    extractor = archive.extractor()
    with archive.open(_WEIGHTS) as file:
        tensors = read_tensors(file, f"{archive.place}: {_WEIGHTS}")
    state = _renamed(tensors, archive.place)
    tokenizer, order = archive.pieces()
    _arrange(state, order, archive.place)
    return ForeignNet(state, tokenizer, extractor)


def _renamed(tensors: Mapping[str, Tensor], place: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("preprocessor.featurizer."):
            continue  # tables that its configuration gives
        found = _layer_name(name) or next(
            (re.sub(f"^{theirs}$", ours, name) for theirs, ours in _NAMES
             if re.fullmatch(theirs, name)), None,
        )  # fmt: skip
        if found is None or found in state:
            raise FormatError(f"{place}: not the weights of an LSTM transducer: {name} is unknown")
        state[found] = tensor
    for name in _NEEDED:
        if name not in state:
            raise FormatError(f"{place}: not the weights of an LSTM transducer: no {name}")
    return state


def _layer_name(name: str) -> str | None:
    """Each layer there is an LSTM, a norm and a dropout, numbered through."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    index, part = divmod(int(match[1]), 3)
    if part == 0 and _IS_LSTM.fullmatch(match[2]):
        return f"encoder.layers.{index}.{match[2]}"
    if part == 1 and match[2] in ("weight", "bias"):
        return f"encoder.norms.{index}.{match[2]}"
    return None


def _arrange(state: dict[str, Tensor], order: list[int], place: Path) -> None:
    """Bring the rows of tokens into our order, and what has no place here to where it counts."""
    import torch

    pieces = order[0]  # blank is behind the pieces there
    output, bias = state["joiner.output.weight"], state["joiner.output.bias"]
    embedding = state["predictor.embedding.weight"]
    if (output.dim(), bias.dim(), embedding.dim()) != (2, 1, 2):
        raise FormatError(f"{place}: not the weights of an LSTM transducer: symbols without rows")
    rows = {"joint.joint_net": len(output), "its bias": len(bias)}
    rows["decoder.prediction.embed"] = len(embedding) + (len(embedding) == pieces)
    for name, found in rows.items():
        if found != pieces + 1:
            raise FormatError(
                f"{place}: its net has {found} symbols ({name}), but its word pieces are {pieces} "
                "and a blank: another vocabulary"
            )
    # NeMo's prediction network starts from zeros, whatever its row of the blank holds.
    blank = embedding.new_zeros(1, embedding.size(1))
    nothing = output.new_zeros(1, output.size(1))
    state["predictor.embedding.weight"] = torch.cat([embedding[:pieces], blank, blank])[order]
    state["joiner.output.weight"] = torch.cat([output, nothing])[order]
    state["joiner.output.bias"] = torch.cat([bias, bias.new_full((1,), _NEVER_EMITTED)])[order]
    added = state.pop("joiner.predictor_projection.bias", None)
    if added is not None:
        if added.shape != state["joiner.encoder_projection.bias"].shape:
            raise FormatError(f"{place}: the biases of joint.enc and joint.pred differ in size")
        state["joiner.encoder_projection.bias"] = state["joiner.encoder_projection.bias"] + added


class _Archive:
    """A ``.nemo`` file, or a folder into which one was unpacked.

    Args:
        init: ``nemo:PATH``.

    Raises:
        OmnisparseError: If its configuration is missing, or is not that of a net that ours can be.
    """

    def __init__(self, init: str) -> None:
        self.place = weights_file(init)
        if self.place.name == _WEIGHTS:
            self.place = self.place.parent
        try:
            document = read_yaml(self.read(_CONFIG).decode("utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:160]
            raise FormatError(f"{self.place}: {_CONFIG} is not YAML ({reason})") from error
        if not isinstance(document, Mapping):
            raise FormatError(f"{self.place}: {_CONFIG} holds no configuration")
        self._config = document
        self._check()

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A member of the archive.

        Raises:
            OmnisparseError: If there is none, or the archive is damaged.
        """
        if self.place.is_dir():
            path = self.place / name
            if not path.is_file():
                raise OmnisparseError(f"{self.place}: there is no {name}")
            with path.open("rb") as file:
                yield file
            return
        try:
            with tarfile.open(self.place, "r:*") as archive:
                member = archive.extractfile(self._member(archive, name))
                assert member is not None  # a regular file
                with member:
                    yield member
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            reason = " ".join(str(error).split())[:160]
            raise FormatError(f"{self.place}: damaged or no .nemo archive ({reason})") from error

    def _member(self, archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
        """The only regular file of a name."""
        found = []
        for number, member in enumerate(archive):
            if number == _MOST_MEMBERS:
                raise FormatError(f"{self.place}: more than {_MOST_MEMBERS} files in an archive")
            if member.name.removeprefix("./") == name:
                found.append(member)
        if len(found) != 1:
            count = "no" if not found else f"{len(found)} files"
            raise FormatError(f"{self.place}: there is {count} {name} in the archive")
        if not found[0].isreg():
            raise FormatError(f"{self.place}: {name} in the archive is no plain file")
        return found[0]

    def read(self, name: str) -> bytes:
        """The bytes of a small member."""
        with self.open(name) as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise FormatError(f"{self.place}: {name} has more than {_MOST_BYTES >> 20} MB")
        return content

    def _get(self, name: str, default: Any = None) -> Any:
        value: Any = self._config
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                return default
            value = value[key]
        return value

    def _check(self) -> None:
        """Refuse nets of other parts, and options that change what a net computes."""
        for part, wanted in _TARGETS.items():
            target = str(self._get(f"{part}._target_", "nothing")).rpartition(".")[2]
            if target != wanted:
                raise FormatError(f"{self.place}: its {part} is {target}; legal here: {wanted}")
        for name, (default, legal) in _LEGAL.items():
            found = self._get(name, default)
            if name == "encoder.subsampling" and self._get("encoder.subsampling_factor", 4) == 1:
                continue
            if not any(found == value and type(found) is type(value) for value in legal):
                told = " or ".join(map(repr, legal[:1]))
                raise FormatError(f"{self.place}: {name} is {found!r}; legal here: {told}")

    def extractor(self) -> FeatureExtractor:
        """The features of its preprocessor."""
        from omnisparse.data.features import FeatureExtractor

        rate = self._get("preprocessor.sample_rate", 16000)
        bins = self._get("preprocessor.features", 64)
        length = 0
        if isinstance(rate, int) and isinstance(bins, int):
            length = 1 << max(0, rate * 25 // 1000 - 1).bit_length()
        size, top = self._get("preprocessor.n_fft") or length, self._get("preprocessor.highfreq")
        normalize = self._get("preprocessor.normalize", "per_feature") or ""
        if not isinstance(normalize, str) or normalize == "all_features":
            raise FormatError(
                f"{self.place}: preprocessor.normalize is {normalize!r}; legal here: "
                "'per_feature', or 'NA' for none"
            )
        if size != length or not length or (top is not None and 2 * top != rate):
            raise FormatError(
                f"{self.place}: preprocessor has sample_rate {rate!r}, features {bins!r}, n_fft "
                f"{size!r}, highfreq {top!r}; legal here: the next power of two above 25 ms, and "
                "half of the rate"
            )
        try:
            return FeatureExtractor(
                num_bins=bins,
                stack=1,
                sampling_rate=rate,
                kind="nemo",
                per_utterance=normalize == "per_feature",
            )
        except ValueError as error:
            raise FormatError(f"{self.place}: {_CONFIG}: {error}") from error

    def pieces(self) -> tuple[Tokenizer, list[int]]:
        """Its word pieces as ours, and the id there of each id here."""
        from omnisparse.data.foreign_pieces import reordered

        name = str(self._get("tokenizer.model_path", "tokenizer.model")).removeprefix(PREFIX)
        if "/" in name or "\\" in name:
            name = re.split(r"[/\\]", name)[-1]
        try:
            found = reordered(self.read(name), start_may_lack=True)
        except DataError as error:
            raise DataError(f"{self.place}: {name}: {error}") from error
        return found.tokenizer, list(found.order)
