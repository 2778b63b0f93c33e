"""Writing a corpus as lhotse Shar: a few large archives instead of very many small files.

Every file is decoded after it was encoded, and an index of what was found is written beside each
split, so that a corpus of any size is read without decoding it again.
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import soundfile

from omnisparse.atomic import replaced_directory
from omnisparse.data.audio import FloatArray, read_samples
from omnisparse.data.corpora import read_corpus
from omnisparse.data.decoding import BadAudioError, decode_content
from omnisparse.data.features import FeatureExtractor
from omnisparse.data.formats.shard_index import ShardFacts, cuts_beside, write_index
from omnisparse.data.members import digest_of, list_members
from omnisparse.data.validation import Hertz, Progress, SkippedItem, require_mostly_good
from omnisparse.data.writing import write_skipped
from omnisparse.durable import sync_path
from omnisparse.errors import DataError

if TYPE_CHECKING:
    from lhotse.cut import Cut

Codec = Literal["flac", "wav", "opus", "mp3"]
CODECS: tuple[Codec, ...] = ("flac", "wav", "opus", "mp3")
"""How audio is kept in shards: ``flac`` and ``wav`` lose nothing, ``opus`` and ``mp3`` do."""

ABOUT = "shards.json"
"""What a written corpus says of itself; such a folder may be replaced."""
OPUS_RATES: tuple[Hertz, ...] = (8000, 12000, 16000, 24000, 48000)
MP3_RATES: tuple[Hertz, ...] = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)

_AHEAD = 32  # utterances per thread that are read and encoded in advance


@dataclass(frozen=True, slots=True)
class _Encoded:
    """An utterance as it is written."""

    cut: Any
    content: bytes
    rate: Hertz
    frames: int
    heard: str
    is_changed: bool
    """Whether a codec that loses nothing of whole numbers had to round samples, or to clip them."""
    features: FloatArray | None


def shard_corpus(
    source: Path,
    out: Path,
    *,
    codec: Codec = "flac",
    shard_size: int = 1000,
    sampling_rate: Hertz | None = None,
    num_bins: int | None = None,
    corpus_format: Any = "auto",
    rules: Sequence[str] = (),
    num_jobs: int = 2,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Judge every recording of a corpus and write the good utterances as shards.

    Args:
        source: As `corpora.read_corpus` has it; also shards, to write them anew.
        out: Folder that gets a folder of shards and an index for each split; replaced as a whole,
            or not at all, if it holds shards already.
        codec: How audio is kept, one channel of each utterance: the mean where several are heard.
        shard_size: Most utterances of a shard.
        sampling_rate: Rate of the audio in the shards, in Hz; None keeps that of each file.
        num_bins: Also write log-mel frames of so many bins, as the field ``features``; None writes
            none. Other tools read them; training computes its own.
        corpus_format: How to read ``source``.
        rules: How transcripts are changed, in order (`normalization.RULES`).
        num_jobs: Threads that read and encode audio.
        progress: Told (utterances done, utterances in all) of each split.
        tell: Told what was left out and what was changed, a line each.

    Returns:
        `{"shards", "utterances", "hours", "bytes", "skipped", "splits": {name: the same of it}}`.

    Raises:
        ValueError: If ``codec``, ``shard_size`` or ``corpus_format`` are not legal.
        DataError: If nothing can be read, more than 5 % of a split are bad, or writing fails;
            ``out`` is as before then.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    require_replaceable(out)
    splits = read_corpus(
        source, corpus_format=corpus_format, num_jobs=num_jobs, progress=progress, rules=rules
    )
    about: dict[str, Any] = {"codec": codec, "shard_size": shard_size, "normalize": list(rules)}
    parts: dict[str, Any] = {}
    skipped: list[SkippedItem] = []
    with replaced_directory(out, is_shards) as folder:
        for name, split in splits.items():
            for line in split.notes:
                tell(line if len(splits) == 1 else f"{name}: {line}")
            skipped += split.skipped
            if not split.cuts:
                continue
            encode = _Encoder(codec, sampling_rate, num_bins)
            bad: list[SkippedItem] = []
            parts[name] = _write_split(
                encode.all(split.cuts, bad, num_jobs, progress), folder / name, codec, shard_size,
                tell, has_features=num_bins is not None,
            )  # fmt: skip
            require_mostly_good(bad, len(split.cuts), f"{source}, split {name}")
            skipped += bad
        total = {
            key: sum(part[key] for part in parts.values())
            for key in ("shards", "utterances", "hours", "bytes")
        }
        report = {**total, "skipped": len(skipped), "splits": parts}
        write_skipped(skipped, folder / "skipped.jsonl")
        document = json.dumps({"source": str(source.absolute()), **about, **report}, indent=1)
        (folder / ABOUT).write_text(document + "\n", encoding="utf-8")
        for path in sorted(folder.rglob("*")):
            sync_path(path)
    return report


def is_shards(folder: Path) -> bool:
    """Whether a folder was written by :func:`shard_corpus`."""
    return (folder / ABOUT).is_file()


def require_replaceable(out: Path) -> None:
    """Refuse a place where something else is, before anything is read.

    Raises:
        DataError: Naming it.
    """
    if out.exists() and not (out.is_dir() and (is_shards(out) or not any(out.iterdir()))):
        raise DataError(f"{out} exists and holds no shards of ours; choose another place")


class _Encoder:
    """Reads and encodes utterances, some in advance, in their order."""

    def __init__(self, codec: Codec, sampling_rate: Hertz | None, num_bins: int | None) -> None:
        self._codec = codec
        self._sampling_rate = sampling_rate
        self._num_bins = num_bins

    def all(
        self,
        cuts: Sequence[Cut],
        bad: list[SkippedItem],
        num_jobs: int,
        progress: Progress | None,
    ) -> Iterator[_Encoded]:
        """Encoded utterances; those that cannot be read are added to ``bad``."""
        left = iter(cuts)
        with ThreadPoolExecutor(max_workers=max(1, num_jobs)) as pool:
            ahead: deque[tuple[Cut, Future[_Encoded]]] = deque()
            try:
                for done in range(1, len(cuts) + 1):
                    while len(ahead) < _AHEAD * max(1, num_jobs):
                        cut = next(left, None)
                        if cut is None:
                            break
                        ahead.append((cut, pool.submit(self._encode, cut)))
                    cut, future = ahead.popleft()
                    try:
                        yield future.result()
                    except (DataError, BadAudioError) as error:
                        bad.append(SkippedItem(cut.id, "unreadable", str(error)))
                    if progress is not None:
                        progress(done, len(cuts))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _encode(self, cut: Cut) -> _Encoded:
        _require_name(cut.id)
        samples = read_samples(cut, self._sampling_rate)
        rate = self._sampling_rate or int(cut.sampling_rate)
        content = encode(samples, rate, self._codec)
        back = decode_content(content, self._codec)
        # A lossy codec may add a few samples of its own.
        back = back[: len(samples), 0]
        if len(back) < 0.99 * len(samples) - 0.1 * rate:
            raise DataError(f"{cut.id}: {self._codec} keeps {len(back)} of {len(samples)} samples")
        is_lossless = self._codec in ("flac", "wav")
        features = None
        if self._num_bins is not None:
            extractor = FeatureExtractor(num_bins=self._num_bins, sampling_rate=rate, stack=1)
            features = extractor.fbank(back)
        heard = "sound" if back.any() else "silent"
        changed = is_lossless and not np.array_equal(back, samples)
        return _Encoded(cut, content, rate, len(back), heard, changed, features)


def encode(samples: FloatArray, rate: Hertz, codec: Codec) -> bytes:
    """A sound file of one channel.

    Args:
        samples: [N] float32 in [-1, 1]. With ``flac`` and ``wav``, samples of 16 or 24 bits are
            kept exactly; ``wav`` keeps all others too, ``flac`` rounds them to 16 bits, which is
            finer than what a lossy source loses.
        rate: In Hz.
        codec: Of :data:`CODECS`.

    Raises:
        DataError: If the codec does not know the rate.
    """
    for name, rates in (("opus", OPUS_RATES), ("mp3", MP3_RATES)):
        if codec == name and rate not in rates:
            legal = ", ".join(map(str, rates))
            raise DataError(f"{codec} cannot keep {rate} Hz; legal: {legal}, as --sampling-rate")
    stream = io.BytesIO()
    kind = {"flac": "FLAC", "wav": "WAV", "opus": "OGG", "mp3": "MP3"}[codec]
    subtype = {"opus": "OPUS", "mp3": "MPEG_LAYER_III"}.get(codec) or _subtype(samples, codec)
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def _subtype(samples: FloatArray, codec: Codec) -> str:
    """The smallest encoding that keeps samples as they are."""
    inside = bool(np.all((samples >= -1.0) & (samples < 1.0)))
    for subtype, scale in (("PCM_16", 1 << 15), ("PCM_24", 1 << 23)):
        scaled = samples * np.float32(scale)  # exact: a power of two
        if inside and np.array_equal(scaled, np.rint(scaled)):
            return subtype
    return "FLOAT" if codec == "wav" else "PCM_16"


def _require_name(name: str) -> None:
    """Refuse the name of an utterance that lhotse would not find again in an archive."""
    path = PurePosixPath(f"{name}.x")
    if not name or "\0" in name or str(path.parent / path.stem) != name:
        raise DataError(f"{name[:80]!r} cannot be the name of a file in an archive")


def _write_split(
    encoded: Iterable[_Encoded],
    folder: Path,
    codec: Codec,
    shard_size: int,
    tell: Callable[[str], None],
    *,
    has_features: bool,
) -> dict[str, Any]:
    """Write the shards of a split and their index; counts them."""
    from lhotse.shar.writers.array import ArrayTarWriter
    from lhotse.shar.writers.cut import JsonlShardWriter
    from lhotse.shar.writers.tar import TarWriter

    folder.mkdir()
    pattern = str(folder).replace("%", "%%")
    kept: list[_Row] = []
    seconds, changed = 0.0, 0
    with ExitStack() as stack:
        cuts = stack.enter_context(JsonlShardWriter(f"{pattern}/cuts.%06d.jsonl.gz", shard_size))
        audio = stack.enter_context(TarWriter(f"{pattern}/recording.%06d.tar", shard_size))
        frames = None
        if has_features:
            frames = ArrayTarWriter(f"{pattern}/features.%06d.tar", shard_size, "numpy")
            stack.enter_context(frames)
        for one in encoded:
            cut = _shar_cut(one)
            meta = json.dumps(cut.recording.to_dict()) + "\n"
            audio.write(f"{cut.id}.{codec}", io.BytesIO(one.content))
            audio.write(f"{cut.id}.json", io.BytesIO(meta.encode()), count=False)
            if frames is not None:
                frames.write(cut.id, one.features, cut.features)
            cuts.write(cut)
            digest = digest_of(one.content)
            kept.append((cut.id, len(one.content), digest, one.rate, one.frames, one.heard))
            seconds += one.frames / one.rate
            changed += one.is_changed
    if changed:
        tell(
            f"{changed:,} utterances have samples that are no whole numbers of 24 bits, as lossy "
            "sources give: flac rounded them to 16 bits; wav keeps them"
        )
    shards = [
        _facts(Path(tar), kept[first * shard_size : (first + 1) * shard_size], codec)
        for first, tar in enumerate(audio.output_paths)
    ]
    write_index(folder, shards)
    return {
        "shards": len(shards),
        "utterances": len(kept),
        "hours": seconds / 3600,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


_Row = tuple[str, int, str, Hertz, int, str]
"""Name, size, digest, rate, frames and what is heard, of a file."""


def _facts(tar: Path, rows: Sequence[_Row], codec: Codec) -> ShardFacts:
    """Facts of a written shard, with the places that its archive gave its files."""
    members = list_members(tar)[::2]
    ids, sizes, digests, rates, frames, heard = map(list, zip(*rows, strict=True))
    if [(name, size) for name, _, size in members] != [
        (f"{name}.{codec}", size) for name, size in zip(ids, sizes, strict=True)
    ]:
        raise DataError(f"{tar.name} was not written as it should be")
    facts: Mapping[str, Any] = {
        **{"ids": ids, "sizes": sizes, "digests": digests, "rates": rates, "frames": frames},
        **{"heard": heard, "offsets": [offset for _, offset, _ in members]},
    }
    manifest = digest_of(cuts_beside(tar).read_bytes())
    return ShardFacts(
        tar=tar.name, bytes=tar.stat().st_size, cuts=manifest, suffix=f".{codec}", **facts
    )


def _shar_cut(one: _Encoded) -> Any:
    """An utterance as lhotse writes it into a shard: its audio is a place to be filled."""
    from lhotse import AudioSource, Features, MonoCut, Recording
    from lhotse.shar.utils import to_shar_placeholder
    from lhotse.utils import fastcopy

    name, duration = one.cut.id, one.frames / one.rate
    recording = Recording(
        id=name,
        sources=[AudioSource(type="shar", channels=[0], source="")],
        sampling_rate=one.rate,
        num_samples=one.frames,
        duration=duration,
    )
    cut = MonoCut(
        id=name,
        start=0.0,
        duration=duration,
        channel=0,
        supervisions=[
            fastcopy(spoken, recording_id=name, start=0.0, duration=duration, channel=0)
            for spoken in one.cut.supervisions
        ],
        recording=recording,
    )
    if one.features is not None:
        features = Features(
            type="kaldi-fbank", num_frames=len(one.features), num_features=one.features.shape[1],
            frame_shift=0.01, sampling_rate=one.rate, start=0.0, duration=duration, channels=0,
            storage_type="shar", storage_path="", storage_key="", recording_id=name,
        )  # fmt: skip
        cut.features = to_shar_placeholder(features)
    return cut
