"""What a net hears of long recordings: as a whole, and cut at pauses.

    python tools/measure_long.py RUN --manifest TEST.jsonl --cut-above 3.7

Joins utterances of a test set to recordings of 30, 120 and 600 s, without and with a pause of 1 s
between them, and prints the word error rate of the utterances by themselves, of the recording as
a whole, and of its pieces, as a table in markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omnisparse.data.audio import read_samples
from omnisparse.data.batch import text_of
from omnisparse.data.corpora import load_manifest
from omnisparse.data.pauses import cut_at_pauses
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.evaluation.wer import corpus_wer, word_errors
from omnisparse.pipeline.evaluate import recognizer_of
from omnisparse.runs.directory import load_model

NOISE = 1e-4
"""Amplitude of the noise in a pause: digital silence would be too easy to find."""


def join(
    utterances: Sequence[tuple[npt.NDArray[np.float32], str]],
    seconds: float,
    pause: float,
    rate: int,
) -> tuple[npt.NDArray[np.float32], str, int]:
    """Utterances and pauses until so much is there: samples, words, number of utterances."""
    generator = np.random.default_rng(0)
    order = generator.permutation(len(utterances))
    parts, texts, length = [], [], 0
    for number in order:
        samples, text = utterances[number]
        silence = NOISE * generator.standard_normal(round(pause * rate))
        parts += [samples, silence.astype(np.float32)]
        texts.append(text)
        length += len(samples) + len(silence)
        if length >= seconds * rate:
            break
    return np.concatenate(parts), " ".join(texts), len(texts)


def rate_of(reference: str, texts: Sequence[str]) -> float:
    """Word error rate of texts that together are one hypothesis, percent."""
    return corpus_wer(word_errors([reference], [" ".join(texts)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--cut-above", type=float, help="seconds; what the model records if unset")
    arguments = parser.parse_args()
    loaded = load_model(arguments.model)
    whole: Recognizer = recognizer_of(loaded, cut_above=0.0)
    cutting: Recognizer = recognizer_of(loaded, cut_above=arguments.cut_above)
    rate = loaded.extractor.sampling_rate
    utterances = [
        (read_samples(cut, rate), text_of(cut)) for cut in load_manifest(arguments.manifest)
    ]
    print("| recording | pauses | words | WER alone % | whole % | words heard | cut % | pieces |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for seconds in (30, 120, 600):
        for pause in (0.0, 1.0):
            samples, reference, count = join(utterances, seconds, pause, rate)
            order = np.random.default_rng(0).permutation(len(utterances))[:count]
            alone = [whole.transcribe(utterances[number][0]).text for number in order]
            text = whole.transcribe(samples).text
            cut = cutting.transcribe(samples)
            print(
                f"| {len(samples) / rate:.0f} s | {pause:.0f} s | {len(reference.split()):,} | "
                f"{rate_of(reference, alone):.1f} | {rate_of(reference, [text]):.1f} | "
                f"{len(text.split())} | {rate_of(reference, [cut.text]):.1f} | {cut.pieces} |",
                flush=True,
            )
    if cutting.cut_above is not None:
        started = time.process_time()
        pieces = cut_at_pauses(samples, rate, cutting.cut_above)
        used = time.process_time() - started
        print(f"\nfinding the {len(pieces)} pieces of {len(samples) / rate:.0f} s: {used:.2f} s")


if __name__ == "__main__":
    main()
