"""The embedded corpus: any number of hours of speech without a download.

Sentences come from a voice-assistant grammar or from a user's text. The voices of espeak-ng
(bundled by ``espeakng-loader``) speak them, noise is added, and the result has 16 kHz. Voices and
sentences of the development and test splits never occur in training. The same configuration gives
the same bytes::

    omnisparse prepare synthetic --out corpus --hours 2
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from omnisparse.errors import DataError, NonNegativeInt, Range, check_ranges
from omnisparse.synthetic.audio import SAMPLING_RATE, Acoustics, Utterance
from omnisparse.synthetic.text import (
    GRAMMARS,
    SPLITS,
    assistant_sentences,
    read_sentences,
    text_sentences,
)
from omnisparse.synthetic.voices import split_voices
from omnisparse.synthetic.workers import CHUNK, Workers

Progress = Callable[[int, int], None]

GENERATOR_VERSION = 1
"""Increased whenever the same configuration starts to give other bytes."""

MIN_UTTERANCES = 12
"""Fewest utterances of a split, even when very few hours are requested."""

NUM_BACKGROUND = 48
"""Utterances of the training split that are used as background speech."""

_EASY = Acoustics(
    snr_db=(15.0, 35.0),
    rate_wpm=(150, 200),
    pitch=(35, 65),
    pitch_range=(35, 65),
    babble_share=0.0,
)

_ACOUSTICS = {
    "assistant": Acoustics(
        snr_db=(5.0, 25.0),
        rate_wpm=(130, 215),
        pitch=(25, 75),
        pitch_range=(25, 80),
        babble_share=0.25,
    ),
    "assistant-easy": _EASY,
    "assistant-voices": _EASY,
    "assistant-strangers": _EASY,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """What to speak, how many hours, and how much noise to add."""

    preset: Literal["assistant", "assistant-easy", "assistant-voices", "assistant-strangers"] = (
        "assistant"
    )
    """Grammar, voices and conditions: ``assistant`` has every accent and variant;
    ``assistant-easy`` has 24 training voices of two accents, 8 sentence templates, little noise;
    ``assistant-voices`` the same templates and noise, 40 training voices, and 16 different people
    in the test, so that intervals over speakers are sound; ``assistant-strangers`` is the same with
    another test, by 24 people who sound less like those of the training."""
    hours: Annotated[float, Range(above=0, maximum=1000)] = 2.0
    """Hours of the training split. The other splits are added to it: test has a tenth of it but
    at most 1 h, dev has half of test."""
    text: str | None = None
    """A UTF-8 file of sentences to speak instead of the preset's grammar, one per line."""
    seed: NonNegativeInt = 0
    """Random seed of sentences, voices and noise."""
    snr_db: tuple[float, float] | None = None
    """Lowest and highest signal-to-noise ratio in dB; None takes the preset's."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ValueError: If a field is outside its range.
        """
        if self.preset not in GRAMMARS:
            raise ValueError(f"preset must be one of {', '.join(GRAMMARS)}, got {self.preset!r}")
        check_ranges(self)
        if self.snr_db is not None:
            low, high = self.snr_db
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"snr_db must be two finite numbers, low first, got {low}, {high}")


def split_hours(hours: float) -> dict[str, float]:
    """Hours of every split when the training split has ``hours``."""
    test = min(1.0, 0.1 * hours)
    return {"train": hours, "dev": test / 2.0, "test": test}


def prepare_synthetic(
    config: SyntheticConfig, out: Path, progress: Progress | None = None, num_jobs: int = 2
) -> dict[str, Any]:
    """Speak a corpus into ``out``: ``{train,dev,test}.jsonl`` and 16-bit WAV files at 16 kHz.

    ``out`` appears only when it is complete. If it already holds a corpus made with the same
    configuration, that corpus is kept and its statistics are returned at once.

    Args:
        config: What to speak.
        out: Folder to make; it must not exist, be empty, or hold the same corpus.
        progress: Called with (seconds spoken, seconds to speak), from this thread.
        num_jobs: Processes; the bytes do not depend on it.

    Returns:
        ``{"splits": {name: {"utterances", "hours", "speakers"}}}`` and the number of different
        ``sentences`` of every split.

    Raises:
        DataError: If ``out`` holds something else or cannot be written, the text cannot be used,
            the disk is too small, or speaking fails.
        ValueError: If ``num_jobs`` is below 1.
    """
    if num_jobs < 1:
        raise ValueError(f"num_jobs must be at least 1, got {num_jobs}")
    sentences = read_sentences(Path(config.text)) if config.text is not None else None
    record = _record(config, sentences)
    existing = _existing_statistics(out, record)
    if existing is not None:
        return existing
    target = out.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(config, target.parent)
        _remove_abandoned(target)
        scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(target), dir=target.parent))
        try:
            statistics = _speak_corpus(config, sentences, scratch, progress, num_jobs)
            (scratch / "corpus.json").write_text(
                json.dumps({"config": record, "statistics": statistics}, indent=2) + "\n"
            )
            scratch.chmod(0o755)  # mkdtemp makes it private
            try:
                scratch.replace(target)
            except OSError:  # another process wrote the same corpus first, or the disk fails
                existing = _existing_statistics(out, record)
                if existing is None:
                    raise
                return existing
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(f"corpus {out} cannot be written: {error}") from error
    return statistics


def _record(config: SyntheticConfig, sentences: list[str] | None) -> dict[str, Any]:
    """Everything that the bytes of the corpus depend on, as JSON."""
    text_sha256 = None
    if sentences is not None:
        text_sha256 = hashlib.sha256("\n".join(sentences).encode()).hexdigest()
    return {
        "generator_version": GENERATOR_VERSION,
        "preset": config.preset,
        "hours": config.hours,
        "seed": config.seed,
        "text_sha256": text_sha256,
        "acoustics": json.loads(json.dumps(dataclasses.asdict(_acoustics(config)))),
    }


def _acoustics(config: SyntheticConfig) -> Acoustics:
    acoustics = _ACOUSTICS[config.preset]
    if config.snr_db is None:
        return acoustics
    return dataclasses.replace(acoustics, snr_db=(config.snr_db[0], config.snr_db[1]))


def _existing_statistics(out: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    if not out.exists():
        return None
    if not out.is_dir():
        raise DataError(f"corpus folder {out} is a file")
    if not any(out.iterdir()):
        return None
    try:
        found = json.loads((out / "corpus.json").read_text())
        same = found["config"] == record
        statistics: dict[str, Any] = found["statistics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"folder {out} is not empty and holds no finished corpus") from error
    if not same:
        raise DataError(f"folder {out} holds a corpus of another configuration; choose another")
    if not all((out / f"{split}.jsonl").is_file() for split in SPLITS):
        raise DataError(f"corpus {out} lacks a manifest; remove the folder to make it again")
    return statistics


def _check_disk(config: SyntheticConfig, folder: Path) -> None:
    seconds = 3600.0 * sum(split_hours(config.hours).values())
    needed = int(1.05 * seconds * SAMPLING_RATE * 2)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{config.hours:g} hours need {needed / 1e9:.1f} GB in {folder}, "
            f"where {free / 1e9:.1f} GB are free"
        )


def _scratch_prefix(target: Path, pid: int | None = None) -> str:
    """Name of the unfinished corpus, with its host and process: ``.corpus.host-123-``."""
    return f".{target.name}.{platform.node()}-{os.getpid() if pid is None else pid}-"


def _remove_abandoned(target: Path) -> None:
    """Remove what a killed process of this host left beside ``target``."""
    if os.name != "posix":
        return
    pattern = re.compile(re.escape(_scratch_prefix(target, 0)).replace(r"\-0\-", r"\-(\d+)\-"))
    for path in target.parent.iterdir():
        match = pattern.match(path.name)
        if match is None:
            continue
        try:
            os.kill(int(match.group(1)), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:  # the process is alive and belongs to another user
            continue


def _plan(
    config: SyntheticConfig, sentences: list[str] | None, split: str, voices: tuple[str, ...]
) -> Iterator[Utterance]:
    """Endless utterances of a split. Every voice speaks once in random order, then all again."""
    if sentences is None:
        texts = assistant_sentences(GRAMMARS[config.preset], split, config.seed)
    else:
        texts = text_sentences(sentences, split, config.seed)
    rng = np.random.default_rng([config.seed, SPLITS.index(split), 5])
    order: list[int] = []
    for index, text in enumerate(texts):
        order = order or rng.permutation(len(voices)).tolist()
        voice = voices[order.pop()]
        yield Utterance(split=split, index=index, text=text, voice=voice, seed=config.seed)


def _speak_corpus(
    config: SyntheticConfig,
    sentences: list[str] | None,
    root: Path,
    progress: Progress | None,
    num_jobs: int,
) -> dict[str, Any]:
    voices = split_voices(config.preset, config.seed)
    acoustics = _acoustics(config)
    num_background = NUM_BACKGROUND if acoustics.babble_share > 0.0 else 0
    plan = _plan(config, sentences, "train", voices["train"])
    background = itertools.islice(plan, num_background)
    settings = {
        "root": str(root.resolve()),
        "acoustics": dataclasses.asdict(acoustics),
        "babble": [(utterance.text, utterance.voice) for utterance in background],
    }
    hours = split_hours(config.hours)
    total = round(3600.0 * sum(hours.values()))
    done = 0.0
    statistics: dict[str, Any] = {"splits": {}, "sentences": {}}
    with Workers(settings, num_jobs) as workers:
        for split in SPLITS:
            seconds, count = 0.0, 0
            speakers: set[str] = set()
            texts: set[str] = set()
            plan = _plan(config, sentences, split, voices[split])
            with (root / f"{split}.jsonl").open("w", encoding="utf-8") as manifest:
                for line in workers.render(plan):
                    if seconds >= 3600.0 * hours[split] and count >= MIN_UTTERANCES:
                        (root / line["audio_filepath"]).unlink()
                        workers.finish()
                        continue
                    manifest.write(json.dumps(line) + "\n")
                    seconds += line["duration"]
                    count += 1
                    speakers.add(line["speaker"])
                    texts.add(line["text"])
                    if progress is not None and count % CHUNK == 0:
                        progress(min(total, round(done + seconds)), total)
            _remove_empty_folders(root / "audio" / split)
            done += 3600.0 * hours[split]
            statistics["splits"][split] = {
                "utterances": count,
                "hours": round(seconds / 3600.0, 4),
                "speakers": len(speakers),
            }
            statistics["sentences"][split] = len(texts)
    if progress is not None:
        progress(total, total)
    return statistics


def _remove_empty_folders(folder: Path) -> None:
    """Remove the folders left empty by utterances that were rendered ahead and not needed."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            path.rmdir()
