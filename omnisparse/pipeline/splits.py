"""The corpora of a configuration: their cuts, and the messages of a run about them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lhotse import CutSet

from omnisparse.config import CorpusConfig
from omnisparse.data.batch import text_of
from omnisparse.data.corpora import load_manifest, perturb_speed, resample, split_statistics
from omnisparse.data.tokenizer import Tokenizer
from omnisparse.data.unseen import find_unseen
from omnisparse.errors import DataError
from omnisparse.synthetic.corpus import SyntheticConfig, prepare_synthetic

_EMBEDDED = "{} (embedded corpus, synthetic speech)"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One corpus of a split."""

    name: str
    """Name for messages: its manifest; for the embedded corpus also its folder."""
    cuts: CutSet
    """Its utterances, without copies at other speeds."""


@dataclass(frozen=True)
class Splits:
    """The cuts of a corpus configuration."""

    train: CutSet
    dev: CutSet
    train_corpora: tuple[Corpus, ...] = ()
    """The corpora of ``train``."""
    dev_corpora: tuple[Corpus, ...] = ()
    """The corpora of ``dev``."""
    speed_factors: tuple[float, ...] = (1.0,)
    """Speeds of the copies of the training manifests, or of the embedded corpus alone."""


def load_splits(
    config: CorpusConfig,
    stage: Callable[[str], None] = lambda line: None,
    *,
    speed_factors: Sequence[float] = (1.0,),
    sampling_rate: int | None = None,
) -> Splits:
    """Make the embedded corpus if it is configured and missing, and read all manifests.

    Args:
        config: The corpora.
        stage: Called with messages about the work.
        speed_factors: Speeds of the copies of the training manifests; the embedded corpus is copied
            only where there are none.
        sampling_rate: Rate to which all audio is resampled, in Hz; None for no resampling.

    Raises:
        DataError: If a manifest cannot be used or the training split is empty.
    """
    base = Path(config.base)

    def load(path: Path, name: str = "") -> Corpus:
        corpus = _load(path, stage, sampling_rate, name)
        spoken = CutSet.from_cuts(cut for cut in corpus.cuts if text_of(cut).strip())
        silent = len(corpus.cuts) - len(spoken)
        if silent:
            stage(f"{path}: {silent:,} utterances without words are left out of training")
        return replace(corpus, cuts=spoken)

    train = [load(base / path) for path in config.train]
    parts = [perturb_speed(corpus.cuts, speed_factors) for corpus in train]
    if config.synthetic is not None:
        folder = synthetic_folder(config)
        stage(f"corpus {folder}")
        prepare_synthetic(config.synthetic, folder)
        path = folder / "train.jsonl"
        train.append(load(path, _EMBEDDED.format(path)))
        cuts = train[-1].cuts
        parts.append(cuts if config.train else perturb_speed(cuts, speed_factors))
    dev = _load_dev(config, stage, sampling_rate)
    joined = _join(parts)
    if len(joined) == 0:
        raise DataError("the training split is empty")
    return Splits(
        joined,
        _join([corpus.cuts for corpus in dev]),
        tuple(train),
        tuple(dev),
        tuple(speed_factors),
    )


def load_dev(
    config: CorpusConfig,
    stage: Callable[[str], None] = lambda line: None,
    *,
    sampling_rate: int | None = None,
) -> CutSet:
    """The dev split alone, as :func:`load_splits` reads it; utterances without words stay in it.

    Raises:
        DataError: If a manifest cannot be used.
    """
    if config.synthetic is not None:
        prepare_synthetic(config.synthetic, synthetic_folder(config))
    return _join([corpus.cuts for corpus in _load_dev(config, stage, sampling_rate)])


def _load_dev(
    config: CorpusConfig, stage: Callable[[str], None], sampling_rate: int | None
) -> list[Corpus]:
    dev = [_load(Path(config.base) / path, stage, sampling_rate) for path in config.dev]
    if config.synthetic is not None:
        path = synthetic_folder(config) / "dev.jsonl"
        dev.append(_load(path, stage, sampling_rate, _EMBEDDED.format(path)))
    return dev


def require_manifests(config: CorpusConfig) -> None:
    """Refuse manifests that do not exist, before anything is written.

    Raises:
        DataError: Naming the first.
    """
    for name in (*config.train, *config.dev):
        if not (path := Path(config.base) / name).exists():
            raise DataError(f"manifest {path}: no such file")


def _load(
    path: Path, stage: Callable[[str], None], sampling_rate: int | None, name: str = ""
) -> Corpus:
    """One corpus, brought to a rate."""
    cuts = load_manifest(path, sampling_rate=sampling_rate, tell=stage)
    if sampling_rate is not None:
        cuts = resample(cuts, sampling_rate)
    return Corpus(name=name or str(path), cuts=cuts)


def tell_corpora(splits: Splits, stage: Callable[[str], None]) -> None:
    """Tell the user the training and dev corpora: utterances, hours, speakers."""
    for line in describe_corpora("trains on", splits.train_corpora):
        stage(line)
    if splits.speed_factors != (1.0,):
        speeds = ", ".join(f"{factor:g}" for factor in splits.speed_factors)
        stage(f"  with copies at speeds {speeds}: {len(splits.train):,} utterances in all")
    if splits.dev_corpora:
        for line in describe_corpora("dev split:", splits.dev_corpora):
            stage(line)


def tell_unseen(splits: Splits, tokenizer: Tokenizer, stage: Callable[[str], None]) -> None:
    """Tell the user about words that this tokenizer cannot write, one line per split."""
    for name, cuts in (("training", splits.train), ("dev", splits.dev)):
        line = find_unseen(tokenizer, map(text_of, cuts)).describe()
        if line:
            stage(f"{name} set: {line}")


def describe_corpora(title: str, corpora: Sequence[Corpus]) -> list[str]:
    """Lines with the sizes of corpora, in total and each.

    Args:
        title: Start of the first line.
        corpora: The corpora.
    """
    if len(corpora) == 1:
        return [f"{title} {_size_of(corpora[0].cuts)}: {corpora[0].name}"]
    together = _size_of(cut for corpus in corpora for cut in corpus.cuts)
    lines = [f"  {_size_of(corpus.cuts)}: {corpus.name}" for corpus in corpora]
    return [f"{title} {together}, of {len(corpora)} corpora", *lines]


def _size_of(cuts: Iterable[Any]) -> str:
    size = split_statistics(cuts)
    speakers = f"{size['speakers']:,} speakers" if size["speakers"] else "speakers not named"
    return f"{size['utterances']:,} utterances, {size['hours']:.2f} h, {speakers}"


def list_test_manifests(config: CorpusConfig) -> list[Path]:
    """Paths of the test splits of a corpus configuration; they may not exist."""
    base = Path(config.base)
    tests = [base / path for path in config.test]
    if config.synthetic is not None:
        tests.append(synthetic_folder(config) / "test.jsonl")
    return tests


def synthetic_folder(config: CorpusConfig) -> Path:
    """Folder of the embedded corpus of ``config``; different settings have different folders.

    A text is identified by its content, so its path does not matter.
    """
    synthetic = config.synthetic or SyntheticConfig()
    name = "books" if synthetic.text else synthetic.preset
    folder = f"{name}-{synthetic.hours:g}h-{synthetic.seed}"
    if synthetic.text or synthetic.snr_db:
        settings = repr((synthetic.preset, _digest(synthetic.text), synthetic.snr_db))
        folder += f"-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
    return Path(config.root) / folder


def _digest(text: str | None) -> str | None:
    """Hash of a file of sentences; its name if it cannot be read (reported elsewhere)."""
    try:
        return None if text is None else hashlib.sha256(Path(text).read_bytes()).hexdigest()
    except OSError:
        return text


def _join(parts: Sequence[CutSet]) -> CutSet:
    """Join corpora; a name that occurs twice gets the number of its corpus."""
    joined: list[Any] = []
    seen: set[str] = set()
    for number, part in enumerate(parts):
        for cut in part:
            if cut.id in seen:
                cut = cut.with_id(f"{number}-{cut.id}")
            seen.add(cut.id)
            joined.append(cut)
    return CutSet.from_cuts(joined)
