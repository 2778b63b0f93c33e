"""What models cost on this machine: ``omnisparse bench``."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from omnisparse.artifact import CARD, add_latency, is_artifact
from omnisparse.deploy.bench import MILLISECONDS, RUNTIMES, BenchRow, Runtime, measure, to_dicts
from omnisparse.deploy.bench_layers import LayerRow, measure_layers
from omnisparse.deploy.engine import needs_torch, require_torch
from omnisparse.deploy.native import kernels, name_of
from omnisparse.durable import replacing
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.runs import directory as runs
from omnisparse.runs.opening import open_model

TONES_SECONDS = 10.0


def parse_runtimes(text: str) -> list[Runtime]:
    """Runtimes by name, with commas between; ``all`` for all.

    Raises:
        UsageError: If one is unknown; names the legal ones.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(RUNTIMES)
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown or not names:
        raise UsageError(
            f"runtimes: {', '.join(unknown) or 'none'}; legal: all, {', '.join(RUNTIMES)}"
        )
    return [runtime for runtime in RUNTIMES if runtime in names]


def write_tones(path: Path) -> Path:
    """Writes ten seconds of tones and noise, always the same, and returns the file."""
    import soundfile

    rng = np.random.default_rng(0)
    count = int(TONES_SECONDS * 16000)
    pitches = np.repeat(rng.uniform(100, 6000, count // 1280 + 1), 1280)[:count]
    samples = 0.3 * np.sin(np.cumsum(2 * np.pi * pitches / 16000))
    soundfile.write(path, samples + 0.01 * rng.standard_normal(count), 16000)
    return path


def bench(
    models: Sequence[Path],
    runtimes: Sequence[Runtime],
    *,
    audio: Path,
    rounds: int = 7,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[BenchRow]:
    """Measure every model in every runtime.

    Args:
        models: Artifact or run directories.
        runtimes: Which runtimes.
        audio: The recording that all recognise.
        rounds: How often.
        progress: Told how many of how many measurements are done.

    Raises:
        OmnisparseError: If a model cannot be measured, or a runtime is not installed.
    """
    others = [runtime for runtime in runtimes if runtime != "sparse"]
    if others:
        require_torch(f"runtime {others[0]}")
    counted = {model: runs.inspect(model) for model in models}
    rows = measure(
        models,
        runtimes,
        audio=audio,
        rounds=rounds,
        export=_export,
        nonzero=lambda model: int(counted[model]["nonzero"]),
        progress=progress,
    )
    return [
        _with_bytes_read(row, int(counted[Path(row.model)]["bytes"]))
        if row.runtime in ("sparse", "torch")
        else row
        for row in rows
    ]


def _with_bytes_read(row: BenchRow, counted: int) -> BenchRow:
    """A row with the bytes of an artifact without its card, or of the files of a run that count."""
    run = Path(row.model)
    if not (run / "checkpoints").is_dir():
        return replace(row, file_bytes=counted)
    weights = runs.newest_checkpoint(run)[0] / runs.WEIGHTS
    files = [weights, run / "model.json", run / "tokenizer.model"]
    return replace(row, file_bytes=sum(file.stat().st_size for file in files))


def write_cards(rows: Sequence[BenchRow]) -> list[Path]:
    """Writes the latency of each artifact into its model card; returns the cards.

    Raises:
        OmnisparseError: If a model is no artifact, or its card was edited by hand.
    """
    require_artifacts([Path(row.model) for row in rows])
    for row in rows:
        add_latency(
            Path(row.model),
            f"{_processor()}, one thread, {row.runtime}",
            f"{row.latency_ms:.2f} ms for {MILLISECONDS} ms of speech, "
            f"real-time factor {row.rtf:.4f}",
        )
    return [Path(model) / CARD for model in dict.fromkeys(row.model for row in rows)]


def require_artifacts(models: Sequence[Path]) -> None:
    """Refuse models that have no card.

    Raises:
        OmnisparseError: Naming the first.
    """
    for model in models:
        if not is_artifact(model):
            raise OmnisparseError(f"{model}: only an artifact of `omnisparse extract` has a card")


def _processor() -> str:
    """What this machine computes with, as its system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bench_layers(
    model: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[LayerRow]:
    """Time every packing of every thinned matrix of a model.

    Raises:
        OmnisparseError: If it is no model of our runtime, or no matrix of it is thinned.
    """
    files = open_model(model)
    why = needs_torch(files.model)
    if why is not None:
        raise OmnisparseError(f"{model}: {why} is run by torch, not by kernels for its layers")
    rows = measure_layers(files, progress=progress)
    if not rows:
        raise OmnisparseError(
            f"{model}: no matrix of it is thinned; `omnisparse extract --size` makes such a model"
        )
    return rows


def _export(model: Path, runtime: Runtime, out: Path) -> None:
    """Writes the ONNX files of a model."""
    from omnisparse.deploy.onnx_export import Source, export_onnx

    loaded = runs.load_model(model)
    source = Source(
        model=loaded.model,
        tokenizer=loaded.tokenizer,
        extractor=loaded.extractor,
        name=model.resolve().name,
    )
    if runtime == "onnxruntime-packed":
        exported = export_onnx(source, layout="packed", precision="fp32")
    else:
        precision = "int8" if runtime == "onnxruntime-int8" else "fp32"
        exported = export_onnx(source, precision=precision)  # type: ignore[arg-type]
    exported.write(out)


def as_result(rows: Sequence[BenchRow], audio: Path | None) -> dict[str, Any]:
    """What ``--json`` prints: ``rows``, and what they were measured with."""
    return {
        "rows": to_dicts(rows),
        "kernels": name_of(*kernels()),
        "audio": None if audio is None else str(audio),
    }


def write_bench(rows: Sequence[BenchRow], result: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes ``bench.json`` and, where matplotlib is installed, ``bench.png``.

    Returns:
        The files.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "bench.json"
    with replacing(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if find_spec("matplotlib") is None:
        return [path]
    return [path, _plot(rows, out / "bench.png")]


def _plot(rows: Sequence[BenchRow], path: Path) -> Path:
    """Latency and memory against the number of parameters, a line per runtime."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for runtime in dict.fromkeys(row.runtime for row in rows):
        own = sorted((row for row in rows if row.runtime == runtime), key=lambda row: row.nonzero)
        sizes = [row.nonzero / 1e6 for row in own]
        axes[0].plot(sizes, [row.latency_ms for row in own], "o-", label=runtime)
        axes[1].plot(sizes, [row.peak_bytes / 1e6 for row in own], "o-", label=runtime)
    axes[0].set_ylabel("ms per 40 ms of audio, one thread")
    axes[1].set_ylabel("peak memory of the model, MB")
    for axis in axes:
        axis.set_xlabel("non-zero parameters, millions")
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    pyplot.close(figure)
    return path
