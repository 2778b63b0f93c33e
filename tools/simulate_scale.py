"""What an epoch of LibriSpeech 960 h costs on 1, 8 and 64 devices, and where it stops scaling.

    python tools/simulate_scale.py                                # steps measured on this machine
    python tools/simulate_scale.py --loader loader.json --json    # of benchmark_shards.py --json

Measured here: the CPU seconds and the floating-point operations of a sandwich step (the real loop,
`training_step_worker.py`) of the 110 M LAS and the 76.7 M Emformer transducer, and with `--loader`
how fast a core makes features. All else is assumed, and printed with the result: what share of a
device's peak such nets reach, how fast devices talk, what batch still trains well. The estimate is
of one step:

    compute = operations / (peak * utilisation), once for each process's share of the batch
    exchange = bytes of all gradients in float32 * 2 (P - 1) / P / bandwidth
    loading = audio of a process's share / (cores per device * hours a core makes a second)

Computing and exchange follow each other: only the last of the passes of a sandwich step is one in
which gradients are sent, and it is a small one. Loading goes on beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETS = {
    "LAS, 110 M": "recipes/configs/las_110m_librispeech.yaml",
    "Emformer, 76.7 M": "recipes/configs/transducer_emformer_76m.yaml",
}
DEVICES = (1, 8, 64)
EPOCH_SECONDS = 960 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What is not measured."""

    peak_flops: float = 312e12
    """Of a device, in bf16: an A100's data sheet."""
    utilisation: float = 0.12
    """Share of it that a recurrent recogniser reaches. An 85 M LSTM transducer trained at 2,900
    audio seconds a second on an A100 (CAIMAN-ASR, training times of v1.12); at 6 operations a
    weight and frame of 30 ms (17 G a second of audio) that is 0.16, and subnets run on small
    batches."""
    inside_bandwidth: float = 200e9
    """Bytes a second and device, within a machine of 8 (NVLink, ring, reached)."""
    between_bandwidth: float = 12.5e9
    """Bytes a second and device between machines (one 100 Gbit/s adapter for each device)."""
    devices_per_machine: int = 8
    latency: float = 30e-6
    """Seconds of one step of a ring."""
    batch_seconds_per_device: float = 400.0
    """Audio that a device computes at once: what fits beside a 110 M net and keeps it busy."""
    largest_batch_seconds: float = 12_800.0
    """Largest batch of all devices that still trains as well per epoch; above it a device gets
    less. Large-batch recipes of LibriSpeech stay near 3.5 h."""
    cores_per_device: int = 8
    """CPU cores that read for a device."""
    loader_hours_per_second: float = 0.34
    """Hours of audio that a core makes features of in a second, from shards of flac:
    `benchmarks/shards_cpu_2026-11.md`; of the machine that is meant with `--loader`."""


def estimate(net: dict[str, Any], devices: int, given: Assumptions) -> dict[str, Any]:
    """An epoch of one net on some devices."""
    batch = min(devices * given.batch_seconds_per_device, given.largest_batch_seconds)
    share = batch / devices
    compute = share * net["flops_per_second"] / (given.peak_flops * given.utilisation)
    volume = 4 * net["parameters"] * 2 * (devices - 1) / devices
    crosses = devices > given.devices_per_machine
    bandwidth = given.between_bandwidth if crosses else given.inside_bandwidth
    exchange = volume / bandwidth + (2 * (devices - 1) * given.latency if devices > 1 else 0.0)
    loading = share / 3600 / (given.cores_per_device * given.loader_hours_per_second)
    step = max(compute + exchange, loading)
    limits = {"compute": compute, "exchange": exchange, "loading": loading}
    return {
        "devices": devices,
        "batch_seconds": batch,
        "steps": EPOCH_SECONDS / batch,
        "step_seconds": step,
        **{f"{name}_seconds": value for name, value in limits.items()},
        "exchanged_bytes_per_device": volume,
        "epoch_seconds": EPOCH_SECONDS / batch * step,
        "device_hours": EPOCH_SECONDS / batch * step * devices / 3600,
        "limit": "loading" if loading > compute + exchange
        else max(("compute", "exchange"), key=limits.__getitem__),
    }  # fmt: skip


def last_that_pays(net: dict[str, Any], given: Assumptions) -> int:
    """Most devices, a power of two, of which doubling them halved at least 0.7 of the time."""
    devices = 1
    while devices < 4096:
        now, more = (estimate(net, count, given) for count in (devices, 2 * devices))
        if now["epoch_seconds"] / more["epoch_seconds"] < 1.4:
            break
        devices *= 2
    return devices


def measure(
    config: str, utterances: int, seconds: float, tokens: int, steps: int
) -> dict[str, Any]:
    """CPU seconds and operations of sandwich steps on this machine, in one thread."""
    import torch
    from training_step_worker import make_batch, make_config, make_trainer

    from omnisparse.models.operations import counted_operations
    from omnisparse.training.heap import keep_freed_memory
    from omnisparse.training.launch import make_accelerator

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    accelerator = make_accelerator("fp32")
    order = {"config": str(ROOT / config), "overrides": [], "sandwich": {}, "vocab_size": None}
    chosen = make_config(order)
    batch = make_batch(chosen, utterances, seconds, tokens)
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(chosen, "sandwich", accelerator, Path(folder))
        trainer.module.train()
        operations = []
        for _ in range(steps + 1):
            began = time.process_time()
            with counted_operations() as count:
                trainer.train_step(batch)
            taken.append(time.process_time() - began)
            operations.append(count.total)
        parameters = sum(p.numel() for p in trainer.model.parameters())
    audio = utterances * seconds
    cpu = statistics.median(taken[1:])  # the first one allocates, and ranks
    return {
        "parameters": parameters,
        "cpu_seconds_per_step": cpu,
        "audio_seconds_per_step": audio,
        "audio_seconds_per_cpu_second": audio / cpu,
        "flops_per_second": statistics.mean(operations) / audio,
        "cpu_flops": statistics.median(operations) / cpu,
    }


def advise(rows: list[dict[str, Any]], given: Assumptions) -> str:
    """What to change where the largest number of devices is limited."""
    last = rows[-1]
    if last["limit"] == "loading":
        return "more cores for a device, or data.frames: store (reading takes a tenth of making)"
    if last["limit"] == "exchange":
        return (
            "a larger share for each device (fewer devices or a larger batch), a faster network, "
            "or gradients in bf16, which halve the bytes"
        )
    if last["batch_seconds"] >= given.largest_batch_seconds:
        return (
            "nothing in the step: the batch has reached its largest useful size, so more devices "
            "only make each share smaller"
        )
    return "nothing yet: computing is the most of a step"


def main() -> int:
    """Measure, estimate, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utterances", type=int, default=4, help="of the measured batch")
    parser.add_argument("--seconds", type=float, default=12.3, help="LibriSpeech's mean")
    parser.add_argument("--tokens", type=int, default=45)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--loader", type=Path, help="what benchmark_shards.py --json printed")
    for name, value in asdict(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = {name: getattr(options, name) for name in asdict(Assumptions())}
    if options.loader is not None:
        rows = {row["name"]: row for row in json.loads(options.loader.read_text())["rows"]}
        chosen["loader_hours_per_second"] = rows["features, shards, flac"]["hours_per_second"]
    given = Assumptions(**chosen)
    report: dict[str, Any] = {"assumptions": asdict(given), "nets": {}}
    for name, config in NETS.items():
        net = measure(config, options.utterances, options.seconds, options.tokens, options.steps)
        rows_of = [estimate(net, devices, given) for devices in DEVICES]
        report["nets"][name] = {
            "measured": net,
            "rows": rows_of,
            "pays_up_to": last_that_pays(net, given),
            "advice": advise(rows_of, given),
        }
    if options.json:
        print(json.dumps(report))
    else:
        _show(report)
    return 0


def _show(report: dict[str, Any]) -> None:
    columns = ("devices", "batch s", "compute ms", "exchange ms", "loading ms", "GB sent")
    columns += ("epoch min", "device h")
    for name, net in report["nets"].items():
        measured = net["measured"]
        speed, rate = measured["audio_seconds_per_cpu_second"], measured["cpu_flops"] / 1e9
        print(f"{name}: {measured['parameters']:,} parameters")
        print(f"  measured: {speed:.2f} s of audio per CPU second, at {rate:.0f} GFLOP/s")
        print(f"  {measured['flops_per_second'] / 1e9:.1f} GFLOP for a second of audio")
        print("  ".join(f"{column:>11}" for column in columns) + "  limit")
        for row in net["rows"]:
            seconds = (row[f"{what}_seconds"] for what in ("compute", "exchange", "loading"))
            figures = [row["devices"], row["batch_seconds"], *(1e3 * one for one in seconds)]
            figures += [row["exchanged_bytes_per_device"] / 1e9, row["epoch_seconds"] / 60]
            figures += [row["device_hours"]]
            print("  ".join(f"{figure:11,.2f}" for figure in figures) + f"  {row['limit']}")
        print(f"doubling pays up to {net['pays_up_to']} devices; then: {net['advice']}\n")
    print("assumed: " + ", ".join(f"{k} {v:g}" for k, v in report["assumptions"].items()))


if __name__ == "__main__":
    sys.exit(main())
