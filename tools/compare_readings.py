"""Read one corpus of 200 utterances directly and after an import, and compare what comes out.

    python tools/compare_readings.py MODEL MANIFEST [--folder DIR]

MANIFEST is a NeMo manifest of sound recordings, of which the corpus is made: most of its utterances
as they are, and one of each kind of item that a reader may get wrong. MODEL recognises both
readings. Exit code 1 if utterances, seconds or word error rate differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from omnisparse.data.audio import FloatArray, read_samples
from omnisparse.data.corpora import import_corpus, load_manifest
from omnisparse.pipeline.evaluate import evaluate_model

UTTERANCES = 200
RATE = 16000
COMPARED = ("utterances", "audio_seconds", "words", "wer", "insertions")


def write_corpus(manifest: Path, folder: Path) -> Path:
    """Write the corpus.

    Args:
        manifest: Sound recordings with transcripts.
        folder: Made, if it is not there.

    Returns:
        The manifest of the corpus: 200 lines, 10 of them bad.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    spoken = [
        (read_samples(cut, RATE), cut.supervisions[0].text) for cut in load_manifest(manifest)
    ]
    lines = [line if isinstance(line, str) else json.dumps(line) for line in _items(spoken, folder)]
    for index in range(UTTERANCES - len(lines)):
        samples, text = spoken[index % len(spoken)]
        name = _write(folder, f"plain{index:03d}.wav", samples)
        lines.append(json.dumps({"audio_filepath": name, "text": text}))
    path = folder / "test.jsonl"
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write(folder: Path, name: str, samples: FloatArray, rate: int = RATE, **form: Any) -> str:
    soundfile.write(folder / "audio" / name, samples, rate, **form)
    return f"audio/{name}"


def _items(spoken: list[tuple[FloatArray, str]], folder: Path) -> Iterator[dict[str, Any] | str]:
    """One item of each kind; those that are bad say so in their id."""
    (one, said), (two, told) = spoken[0], spoken[1]
    seconds = len(one) / RATE
    three = np.concatenate([two, one, two])
    middle, pair = len(two) / RATE, np.stack([two, np.resize(one, len(two))], axis=1)
    plain = _write(folder, "one.wav", one)
    yield {"audio_filepath": _write(folder, "zeros.wav", np.zeros(RATE)), "text": ""}
    yield {"id": "nobody", "audio_filepath": plain, "text": " "}
    yield {"audio_filename": plain, "normalized_text": said, "duration": seconds}
    part = {"offset": middle, "duration": seconds, "text": said}
    yield {"audio_filepath": _write(folder, "v.mp3", three, bitrate_mode="VARIABLE"), **part}
    yield {"audio_filepath": _write(folder, "v.ogg", three), **part}
    stereo = _write(folder, "stereo.wav", pair)
    yield {"id": "left", "audio_filepath": stereo, "channel_selector": 0, "text": told}
    yield {"id": "right", "audio_filepath": stereo, "channel_selector": 1, "text": said}
    yield {"id": "narrow", "audio_filepath": _write(folder, "8k.wav", one[::2], 8000), "text": said}
    yield {"audio_filepath": _write(folder, "001.wav", one), "text": said}
    yield {"audio_filepath": _write(folder, "001.flac", two), "text": told}
    long = _write(folder, "long.wav", three)
    yield {"audio_filepath": long, "offset": 0.1001, "duration": seconds / 2, "text": said}
    yield {"audio_filepath": long, "offset": 0.1004, "duration": seconds / 2, "text": said}
    yield {"id": "bad-short", "audio_filepath": plain, "duration": seconds + 0.45, "text": said}
    late = {"offset": seconds - 0.5, "duration": 1.0}
    yield {"id": "bad-end", "audio_filepath": plain, "text": said, **late}
    yield {"id": "bad-channel", "audio_filepath": plain, "channel_selector": 1, "text": said}
    yield {"id": "bad-missing", "audio_filepath": "audio/none.wav", "text": said}
    yield {"id": "bad-untranscribed", "audio_filepath": plain}
    yield '{"id": "bad-line", "audio_filepath": "audio/one.wav", "text": '
    (folder / "audio" / "broken.wav").write_bytes(b"RIFF and no more")
    yield {"id": "bad-broken", "audio_filepath": "audio/broken.wav", "text": said}
    (folder / "audio" / "empty.wav").write_bytes(b"")
    yield {"id": "bad-empty", "audio_filepath": "audio/empty.wav", "text": said}
    nan = np.where(np.arange(len(one)) == 5, np.nan, one)
    nan_name = _write(folder, "nan.wav", nan, subtype="FLOAT")
    yield {"id": "bad-nan", "audio_filepath": nan_name, "text": said}
    yield {"id": "bad-silent", "audio_filepath": "audio/zeros.wav", "text": said}


def compare(model: Path, manifest: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Evaluate a model on both readings of the corpus.

    Returns:
        What `omnisparse evaluate` gives for each, by the name of the reading.
    """
    corpus = write_corpus(manifest, folder / "corpus")
    import_corpus(corpus, folder / "imported")
    paths = {"direct": corpus, "imported": folder / "imported" / "test.jsonl.gz"}
    return {name: evaluate_model(model, path, progress=_silently) for name, path in paths.items()}


def _silently(title: str) -> Any:
    from contextlib import nullcontext

    return nullcontext(lambda done, total: None)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--folder", type=Path, help="Where the corpus is left; a new one if unset.")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="readings-"))
    found = compare(arguments.model, arguments.manifest, folder)
    print(f"{'':>14}" + "".join(f"{name:>14}" for name in found))
    for key in (*COMPARED, "skipped"):
        print(f"{key:>14}" + "".join(f"{row[key]:>14.3f}" for row in found.values()))
    for line in found["direct"]["warnings"]:
        print(line, file=sys.stderr)
    one, other = found.values()
    sys.exit(any(one[key] != other[key] for key in COMPARED))


if __name__ == "__main__":
    main()
