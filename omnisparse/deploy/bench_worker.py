"""The process that :mod:`omnisparse.deploy.bench` starts for one model in one runtime."""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.deploy.log_mel import native_log_mel
from omnisparse.deploy.recognizer import Recognizer
from omnisparse.errors import OmnisparseError

CHUNK_MS = 40


def resident_bytes(key: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [line for line in lines if line.startswith(f"{key}:")]
    return 1024 * int(found[0].split()[1]) if found else 0


def load(runtime: str, model: str, place: str) -> Recognizer:
    """A recogniser in one of the runtimes of :mod:`omnisparse.deploy.bench`."""
    if runtime == "sparse":
        return Recognizer.from_path(model, runtime="sparse")
    if runtime == "torch":
        return Recognizer.from_path(model, runtime="torch")
    import omnisparse
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.data.tokenizer import Tokenizer
    from omnisparse.deploy.onnx_engine import OnnxTransducer

    files = omnisparse.open_model(model)
    extractor = FeatureExtractor.from_dict(files.features).by(native_log_mel)
    engine = OnnxTransducer(Path(place), files.model, extractor)
    return Recognizer(engine, Tokenizer.from_bytes(files.tokenizer), extractor)


def import_libraries(runtime: str) -> None:
    """Imports what a runtime needs, so that its load time is that of the model."""
    if runtime == "torch":
        import torch

        import omnisparse.models  # noqa: F401

        torch.set_num_threads(1)
    elif runtime != "sparse":
        import onnxruntime  # noqa: F401
    import sentencepiece  # noqa: F401


def serve(runtime: str, model: str, place: str, audio: str) -> None:
    """Loads, then answers each line of stdin with one line of JSON."""
    import_libraries(runtime)
    files = Path(model if runtime in ("sparse", "torch") else place)
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    recognizer = load(runtime, model, place)
    loaded = time.perf_counter() - start
    samples = recognizer.load_samples(audio)
    answer: dict[str, Any] = {
        "load_seconds": loaded,
        "file_bytes": sum(path.stat().st_size for path in files.glob("**/*") if path.is_file()),
        "text": recognizer.transcribe(samples).text,
    }
    give(answer)
    for line in sys.stdin:
        gc.collect()
        if line.strip() == "finish":
            give({"peak_bytes": max(0, resident_bytes("VmHWM") - before)})
            continue
        seconds = len(samples) / recognizer.extractor.sampling_rate
        start = time.process_time()
        recognizer.transcribe(samples)
        rtf = latency = (time.process_time() - start) / seconds
        if recognizer.engine.kind == "transducer":
            stream, size = (
                recognizer.stream(),
                recognizer.extractor.sampling_rate * CHUNK_MS // 1000,
            )
            start = time.process_time()
            for at in range(0, len(samples), size):
                stream.accept(samples[at : at + size].astype(np.float32))
            stream.finish()
            latency = (time.process_time() - start) / seconds
        give({"rtf": rtf, "latency_ms": latency * CHUNK_MS})


def give(answer: dict[str, Any]) -> None:
    """Prints one line of JSON."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        serve(*sys.argv[1:])
    except (OmnisparseError, ValueError, OSError, ImportError, MemoryError) as error:
        give({"error": " ".join(str(error).split())})
        sys.exit(1)
