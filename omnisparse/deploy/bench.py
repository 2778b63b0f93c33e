"""Measures a model in several runtimes: time, memory, load and file, one thread, batch 1.

Each runtime has a process of its own, so that peak memory and load time are its own and one thread
is one thread. Times are processor time, which with one thread on an idle machine is the time that
passes. The rounds of all runtimes alternate, so that a busy machine slows them alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from omnisparse.errors import OmnisparseError, UsageError

Runtime = Literal["sparse", "torch", "onnxruntime", "onnxruntime-int8", "onnxruntime-packed"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

MILLISECONDS = 40
"""Audio of a chunk: the time of one is what people call latency."""

ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """What one runtime needs for one model."""

    model: str
    """Path of the model."""

    runtime: str
    """One of RUNTIMES."""

    nonzero: int
    """Non-zero parameters."""

    file_bytes: int
    """Bytes of the files that the runtime reads."""

    load_seconds: float
    """From the files to the first possible word, without importing libraries."""

    latency_ms: float
    """Milliseconds for 40 ms of audio: of a transducer streamed in chunks of 40 ms, of LAS its
    share of a whole recording. The median over rounds of the mean of a recording."""

    rtf: float
    """Real-time factor of a whole recording, offline; the median over rounds."""

    rtf_least: float
    """The least of all rounds: what the machine can do when nobody else works on it."""

    peak_bytes: int
    """Peak resident memory of the process, less what it was before the model was loaded."""

    text: str
    """What was recognised: equal for runtimes that compute the same."""


def measure(
    models: Sequence[Path],
    runtimes: Sequence[Runtime],
    *,
    audio: Path,
    rounds: int,
    export: Callable[[Path, Runtime, Path], None],
    nonzero: Callable[[Path], int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[BenchRow]:
    """Measures every model in every runtime.

    Args:
        models: Artifact or run directories.
        runtimes: Which runtimes.
        audio: The recording that all recognise.
        rounds: How often; >= 1.
        export: Writes a model's ONNX files for a runtime into a folder.
        nonzero: Counts a model's non-zero parameters.
        progress: Told how many of how many measurements are done.

    Raises:
        UsageError: If ``rounds`` is below 1 or no runtime is named.
        OmnisparseError: If a model cannot be measured; names it and the runtime.
    """
    if rounds < 1 or not runtimes:
        raise UsageError(f"rounds: expected at least 1 and a runtime, got {rounds}, {runtimes}")
    rows: list[BenchRow] = []
    total = len(models) * len(runtimes) * rounds
    for model in models:
        with ExitStack() as stack:
            workers = []
            for runtime in runtimes:
                place = model
                if runtime.startswith("onnxruntime"):
                    place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "onnx"
                    export(model, runtime, place)
                workers.append(stack.enter_context(_worker(model, place, runtime, audio)))
            measured: list[list[dict[str, float]]] = [[] for _ in workers]
            for index in range(rounds):
                for number, worker in enumerate(workers):
                    measured[number].append(worker.round())
                    progress(len(rows) * rounds + index * len(workers) + number + 1, total)
            for runtime, worker, found in zip(runtimes, workers, measured, strict=True):
                rows.append(_row(model, runtime, nonzero(model), worker, found))
    return rows


def _row(
    model: Path, runtime: str, nonzero: int, worker: _Worker, found: list[dict[str, float]]
) -> BenchRow:
    last = worker.finish()
    return BenchRow(
        model=str(model),
        runtime=runtime,
        nonzero=nonzero,
        file_bytes=int(worker.loaded["file_bytes"]),
        load_seconds=float(worker.loaded["load_seconds"]),
        latency_ms=_median([item["latency_ms"] for item in found]),
        rtf=_median([item["rtf"] for item in found]),
        rtf_least=min(item["rtf"] for item in found),
        peak_bytes=int(last["peak_bytes"]),
        text=str(worker.loaded["text"]),
    )


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-1 - middle]) / 2


class _Worker:
    """A process with one model in one runtime; it answers a line with a line."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self._name, self._process = name, process
        self.loaded = self._answer()

    def round(self) -> dict[str, float]:
        """Recognises once, streaming and offline."""
        return self._ask("round")

    def finish(self) -> dict[str, Any]:
        """Peak memory."""
        return self._ask("finish")

    def _ask(self, request: str) -> dict[str, Any]:
        stdin: IO[str] | None = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(request + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # it has died: the answer says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise OmnisparseError(f"{self._name}: the process ended with code {code}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise OmnisparseError(f"{self._name}: {answer['error']}")
        return answer


@contextmanager
def _worker(model: Path, place: Path, runtime: str, audio: Path) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "omnisparse.deploy.bench_worker", runtime]
    process = subprocess.Popen(
        [*command, str(model.resolve()), str(place.resolve()), str(audio.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    try:
        yield _Worker(f"{model} in {runtime}", process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def to_dicts(rows: Sequence[BenchRow]) -> list[dict[str, Any]]:
    """The rows as JSON holds them."""
    return [asdict(row) for row in rows]
