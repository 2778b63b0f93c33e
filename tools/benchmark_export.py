"""Measures exported files in stock runtimes: texts, word errors, bytes, real-time factors.

    python tools/benchmark_export.py ARTIFACT MANIFEST [--int8 ARTIFACT] [--out FILE.json]

ARTIFACT is a transducer with a stateless predictor, as `extract` wrote it; that of `--int8` is the
same net with `--precision int8`. Every layout and precision is exported, loaded by an unmodified
sherpa-onnx, and compared with our streaming greedy search on the same recordings, one thread each.
Times are processor time for the same samples, the tail of silence too; for every recording all
runtimes take turns, and a row has the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omnisparse import load_model
from omnisparse.deploy.onnx_export import Source
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.deploy.recording import read_audio
from omnisparse.deploy.sherpa import export_sherpa
from omnisparse.evaluation.wer import corpus_wer, word_errors

LAYOUTS = (
    ("dense", "fp32"),
    ("packed", "fp32"),
    ("packed", "fp16"),
    ("dense", "int8"),
    ("packed", "int8"),
)


def load_sherpa(folder: Path, bins: int) -> Any:
    import sherpa_onnx

    parts = {part: str(folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    return sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"), feature_dim=bins, num_threads=1, **parts
    )


def sherpa_text(client: Any, samples: np.ndarray, rate: int, tail: float) -> str:
    stream = client.create_stream()
    stream.accept_waveform(rate, samples)
    stream.accept_waveform(rate, np.zeros(int(tail * rate), np.float32))
    stream.input_finished()
    while client.is_ready(stream):
        client.decode_stream(stream)
    return str(client.get_result(stream)).strip()


def word_error_rate(texts: list[str], references: list[str]) -> float:
    return corpus_wer(word_errors(references, texts))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    lines = arguments.manifest.read_text().splitlines()[: arguments.utterances]
    items = [json.loads(line) for line in lines]
    folder = arguments.manifest.parent
    recordings = [read_audio(folder / item["audio_filepath"]) for item in items]
    references = [item["text"] for item in items]
    seconds = sum(len(samples) / rate for samples, rate in recordings)
    loaded = load_model(arguments.artifact)
    source = Source(
        model=loaded.model, tokenizer=loaded.tokenizer, extractor=loaded.extractor,
        name=arguments.artifact.name,
    )  # fmt: skip
    tails: dict[float, list[str]] = {}

    def transcribed(recognizer: Recognizer, tail: float) -> list[str]:
        silence = np.zeros(int(tail * loaded.extractor.sampling_rate), np.float32)
        return [
            recognizer.transcribe(
                np.concatenate([samples, silence]), sampling_rate=rate, streaming=True
            ).text.strip()
            for samples, rate in recordings
        ]

    ours = Recognizer.from_path(arguments.artifact)
    texts = transcribed(ours, 0.0)
    rows: list[dict[str, Any]] = [
        {
            "runtime": "omnisparse, streaming", "files": "artifact",
            "bytes": _weight_bytes(arguments.artifact), "wer": word_error_rate(texts, references),
        }
    ]  # fmt: skip
    clients: list[Any] = [ours]
    for layout, precision in LAYOUTS:
        exported = export_sherpa(source, layout=layout, precision=precision)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "net"
            exported.write(out)
            start = time.perf_counter()
            client = load_sherpa(out, loaded.extractor.num_bins)
            load_seconds = time.perf_counter() - start
            tail = exported.description["tail_seconds"]
            found = [sherpa_text(client, samples, rate, tail) for samples, rate in recordings]
            clients.append(client)
            if tail not in tails:
                tails[tail] = transcribed(ours, tail)
            padded = tails[tail]
            rows.append(
                {
                    "runtime": "sherpa-onnx", "files": f"{layout} {precision}",
                    "bytes": sum(
                        len(exported.files[name])
                        for name in ("encoder.onnx", "decoder.onnx", "joiner.onnx")
                    ),
                    "identical": sum(a == b for a, b in zip(found, texts, strict=True)),
                    "wer": word_error_rate(found, references),
                    "identical_with_tail": sum(
                        a == b for a, b in zip(found, padded, strict=True)
                    ),
                    "load_seconds": load_seconds,
                    "max_abs_difference": exported.max_abs_difference,
                }
            )  # fmt: skip
    for row, factor in zip(
        rows, _take_turns(clients, recordings, tail, arguments.rounds), strict=True
    ):
        row["rtf"] = factor
    for tail, padded in tails.items():
        files = [("artifact", arguments.artifact, padded)]
        if arguments.int8 is not None:
            recognizer = Recognizer.from_path(arguments.int8)
            files.append(("int8 artifact", arguments.int8, transcribed(recognizer, tail)))
        for name, folder, found in files:
            rows.append(
                {
                    "runtime": f"omnisparse, {tail:g} s of silence", "files": name,
                    "bytes": _weight_bytes(folder), "wer": word_error_rate(found, references),
                    "identical_with_tail": sum(a == b for a, b in zip(found, padded, strict=True)),
                }
            )  # fmt: skip
    return {
        "utterances": len(items), "audio_seconds": seconds, "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0], "texts": texts[:3], "rows": rows,
    }  # fmt: skip


def _take_turns(
    clients: list[Any], recordings: list[tuple[np.ndarray, int]], tail: float, rounds: int
) -> list[float]:
    """Real-time factor of each client: the median over rounds."""
    seconds = sum(len(samples) / rate + tail for samples, rate in recordings)
    spent = np.zeros((rounds, len(clients)))
    for times in spent:
        for samples, rate in recordings:
            padded = np.concatenate([samples, np.zeros(int(tail * rate), np.float32)])
            for number, client in enumerate(clients):
                start = time.process_time()
                if isinstance(client, Recognizer):
                    client.transcribe(padded, sampling_rate=rate, streaming=True)
                else:
                    sherpa_text(client, samples, rate, tail)
                times[number] += time.process_time() - start
    return [float(factor) for factor in np.median(spent, axis=0) / seconds]


def _weight_bytes(artifact: Path) -> int:
    return sum(p.stat().st_size for p in artifact.iterdir() if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--int8", type=Path)
    parser.add_argument("--utterances", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
