"""Takes training steps when told to: one side of `tools/benchmark_training.py`.

Reads one JSON object, what to build; then a line for each step, a net (`dense` or `sandwich`) and
the number of its batch, answered by the seconds of the step, or `memory`, answered by bytes of what
the nets hold between two steps. Behind the last line it prints the peak of its memory. It runs on
any revision of the package since f1feb7c: the one that is on `PYTHONPATH`.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from omnisparse.config import RunConfig, config_from_dict, load_config
from omnisparse.data.batching import Batch
from omnisparse.methods import Dense, Sandwich, SandwichConfig
from omnisparse.models import build_model
from omnisparse.training.launch import make_accelerator
from omnisparse.training.trainer import Trainer

STACK = {"las": 3, "transducer": 4}
MANY_STEPS = 1_000_000


def make_config(order: dict[str, Any]) -> RunConfig:
    """What is measured, with a sandwich that starts at once."""
    if order["config"] is None:
        config = config_from_dict(
            {
                "data": {"features": {"stack": STACK[order["model"]]}, "vocab_size": 128},
                "model": {"kind": order["model"]},
                "method": {"kind": "sandwich", "min_size": "12%"},
            }
        )
    else:
        config = load_config(Path(order["config"]), order["overrides"])
    if not isinstance(config.method, SandwichConfig):
        raise SystemExit(f"{order['config']}: its method is {config.method.kind}, not sandwich")
    alone = {"warmup_fraction": 0.0, "core_fraction": 0.0, "shrink_fraction": 0.0}
    method = replace(config.method, **alone, **order["sandwich"])
    vocab_size = order["vocab_size"] or config.data.vocab_size
    return replace(config, method=method, data=replace(config.data, vocab_size=vocab_size))


def input_dim(config: RunConfig) -> int:
    """Width of the features."""
    return config.data.features.num_bins * config.data.features.stack


def make_batch(config: RunConfig, utterances: int, seconds: float, tokens: int) -> Batch:
    """A random batch of utterances of `seconds`."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = config.data.vocab_size
    frames = round(100 * seconds / config.data.features.stack)
    return Batch(
        features=torch.randn(utterances, frames, input_dim(config), generator=generator),
        feature_lengths=torch.full((utterances,), frames),
        tokens=torch.randint(3, vocab_size, (utterances, tokens), generator=generator),
        token_lengths=torch.full((utterances,), tokens),
        ids=tuple(str(index) for index in range(utterances)),
        positions=torch.arange(utterances),
        audio_seconds=seconds * utterances,
    )


def clock(device: torch.device) -> float:
    """Seconds: of CPU time on a CPU, elsewhere on the clock when all that was asked is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def make_trainer(config: RunConfig, name: str, accelerator: Any, run: Path) -> Trainer:
    """The loop with a net of its own, behind all phases of its model."""
    torch.manual_seed(0)
    net = build_model(config.model, input_dim=input_dim(config), vocab_size=config.data.vocab_size)
    net.skip_phases()
    method = Dense() if name == "dense" else Sandwich(config.method, seed=0)
    return Trainer(
        net,
        method,
        None,
        config.training,
        max_steps=MANY_STEPS,
        seed=0,
        run=run,
        accelerator=accelerator,
        tracker=None,
    )


def peak_bytes(device: torch.device) -> int:
    """Most memory that was taken: of the device, or resident on the host."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def num_bytes(held: Any) -> int:
    """Bytes of tensors, and of those in lists, tuples and mappings."""
    if isinstance(held, torch.Tensor):
        return held.numel() * held.element_size()
    if isinstance(held, dict):
        held = list(held.values())
    return sum(map(num_bytes, held)) if isinstance(held, list | tuple | set) else 0


def resident_bytes() -> int:
    """Bytes of this process in memory now."""
    return psutil.Process().memory_info().rss


def held_bytes(trainer: Trainer) -> dict[str, int]:
    """Bytes of what a trainer holds between two steps, by what it is."""
    parameters = list(trainer.parameters.values())
    held = {
        "weights": num_bytes(parameters),
        "gradients": num_bytes([p.grad for p in parameters if p.grad is not None]),
        "moments": num_bytes([dict(state) for state in trainer.optimizer.state.values()]),
    }
    supernet = getattr(trainer.method, "supernet", None)
    names = {"_positions": "ranking", "_masks": "masks"}
    for name, value in vars(supernet).items() if supernet is not None else ():
        if name not in ("_parameters", "_buffers", "_modules") and num_bytes(value):
            held[names.get(name, name)] = num_bytes(value)
    return held


def main() -> None:
    """Build what the first line asks for, then answer."""
    order = json.loads(sys.stdin.readline())
    torch.set_num_threads(order["threads"])
    torch.set_flush_denormal(True)
    if order["precision"] is None:  # a revision that has no such setting
        accelerator = make_accelerator()
    else:
        from omnisparse.training.heap import keep_freed_memory

        keep_freed_memory()
        accelerator = make_accelerator(order["precision"])
    config = make_config(order)
    batches = [
        make_batch(config, order["batch"], order["seconds"] * part, round(order["tokens"] * part))
        for part in order["lengths"]
    ]
    batches = [batch.to(accelerator.device) for batch in batches]
    with tempfile.TemporaryDirectory() as folder:
        before = resident_bytes()
        trainers = {
            name: make_trainer(config, name, accelerator, Path(folder)) for name in order["nets"]
        }
        for trainer in trainers.values():
            trainer.module.train()
        parameters = sum(p.numel() for p in next(iter(trainers.values())).model.parameters())
        name = config.model.kind if order["config"] is None else config.name
        built = {"model": name, "parameters": parameters, "device": accelerator.device.type}
        built["bytes_before"] = before
        print(json.dumps({**built, "mixed_precision": accelerator.mixed_precision}), flush=True)
        for line in sys.stdin:
            if line.strip() == "memory":
                held = [held_bytes(trainer) for trainer in trainers.values()]
                print(json.dumps({key: sum(one.get(key, 0) for one in held) for key in held[-1]}))
                sys.stdout.flush()
                continue
            net, number = line.split()
            trainer = trainers[net]
            started = clock(accelerator.device)
            step = "train_step" if hasattr(trainer, "train_step") else "_train_step"  # of before
            getattr(trainer, step)(batches[int(number) % len(batches)])
            print(clock(accelerator.device) - started, flush=True)
    print(peak_bytes(accelerator.device), flush=True)


if __name__ == "__main__":
    main()
