"""Cost of a sandwich step, compared with the dense step on the same batch.

    python tools/benchmark_training.py
    python tools/benchmark_training.py --model transducer --threads 2 --json
    python tools/benchmark_training.py --config recipes/configs/transducer_emformer_small.yaml
    python tools/benchmark_training.py --config recipes/configs/transducer_emformer_76m.yaml \
        --device cuda --precision bf16 --batch 64 --seconds 12 --tokens 45

Both steps run in one process, in turn, on the same random batch; each is forward, backward,
clipping and optimizer step. Reported are medians of seconds, the median of the ratios of the
interleaved pairs (which need not be the ratio of the medians), the audio that a second of training
gets through, and the share of the sandwich step that goes into masks: ranking (divided by the steps
it serves), masks of new sizes, and the products of weights and masks in forward and backward.
Seconds are CPU time (all threads) on a CPU, which a busy machine does not stretch, and time on the
clock, the device waited for, on a GPU.

With ``--config`` net, features, vocabulary and subnets are those of the configuration, after
``key=value`` overrides; without, they are the defaults of ``--model``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from omnisparse.config import RunConfig, config_from_dict, load_config
from omnisparse.data.batching import Batch
from omnisparse.methods import Dense, Method, Sandwich, SandwichConfig
from omnisparse.models import build_model
from omnisparse.sparsity.space import subnet_generator

STACK = {"las": 3, "transducer": 4}


def make_batch(config: RunConfig, utterances: int, seconds: float, tokens: int) -> Batch:
    """A random batch of utterances of ``seconds``."""
    generator = torch.Generator().manual_seed(0)
    vocab_size = config.data.vocab_size
    frames = round(100 * seconds / config.data.features.stack)
    features = torch.randn(utterances, frames, input_dim(config), generator=generator)
    return Batch(
        features=features,
        feature_lengths=torch.full((utterances,), frames),
        tokens=torch.randint(3, vocab_size, (utterances, tokens), generator=generator),
        token_lengths=torch.full((utterances,), tokens),
        ids=tuple(str(index) for index in range(utterances)),
        positions=torch.arange(utterances),
        audio_seconds=seconds * utterances,
    )


def input_dim(config: RunConfig) -> int:
    """Width of the features."""
    return config.data.features.num_bins * config.data.features.stack


def make_config(arguments: argparse.Namespace) -> RunConfig:
    """What is measured, with a sandwich that starts at once."""
    if arguments.config is None:
        config = config_from_dict(
            {
                "data": {"features": {"stack": STACK[arguments.model]}, "vocab_size": 128},
                "model": {"kind": arguments.model},
                "method": {"kind": "sandwich", "min_size": "12%"},
            }
        )
    else:
        config = load_config(arguments.config, arguments.overrides)
    if not isinstance(config.method, SandwichConfig):
        raise SystemExit(f"{arguments.config}: its method is {config.method.kind}, not sandwich")
    given = {
        "member_share": arguments.member_share,
        "num_random_subnets": arguments.random_subnets,
        "full_batch": arguments.full_batch or None,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    alone = {"warmup_fraction": 0.0, "core_fraction": 0.0, "shrink_fraction": 0.0}
    method = replace(config.method, **alone, **changes)  # the sandwich from the first step on
    vocab_size = arguments.vocab_size or config.data.vocab_size
    return replace(config, method=method, data=replace(config.data, vocab_size=vocab_size))


def clock(device: torch.device) -> float:
    """Seconds: of CPU time on a CPU, elsewhere on the clock when all that was asked is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def make_step(
    net: nn.Module, method: Method, batch: Batch, accelerator: Accelerator
) -> Callable[[int], float]:
    """A function that takes one training step and returns its seconds."""
    net.to(accelerator.device)
    module = accelerator.prepare(method.prepare(net, max_steps=1_000_000))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

    def step(index: int) -> float:
        started = clock(accelerator.device)
        optimizer.zero_grad(set_to_none=True)
        losses = method.losses(module, batch, index)
        for _ in range(method.num_losses(index)):
            loss = next(losses)
            (loss.weight * loss.value_sum / loss.num_units.clamp(min=1)).backward()
        next(losses, None)
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        return clock(accelerator.device) - started

    return step


def mask_seconds(method: Sandwich, steps: int, accelerator: Accelerator) -> float:
    """Seconds of mask work per step, measured by doing that work alone."""
    supernet, device = method.supernet, accelerator.device
    started = clock(device)
    supernet.refresh()
    ranking = clock(device) - started
    started = clock(device)
    for step in range(steps):
        for index in range(method.num_subnets):
            spec = method.smallest
            if index:
                spec = method.space.sample(subnet_generator(method.seed, step, index))
            supernet.activate(spec)
            with accelerator.autocast():
                copies = supernet._masked_weights()
            torch.autograd.backward(list(copies.values()), list(copies.values()))
    supernet.activate(None)
    supernet.zero_grad(set_to_none=True)
    return ranking / method.config.refresh_every + (clock(device) - started) / steps


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("las", "transducer"), default="las")
    parser.add_argument("--config", type=Path, help="YAML of a supernet; --model is ignored then")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of --config")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32, help="utterances")
    parser.add_argument("--tokens", type=int, default=20, help="per utterance")
    parser.add_argument("--seconds", type=float, default=4.0, help="per utterance")
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--member-share", type=float, help="of the batch, for all subnets together")
    parser.add_argument("--full-batch", action="store_true", help="every subnet sees everything")
    parser.add_argument("--random-subnets", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this machine has none; legal: cpu")
    accelerator = Accelerator(
        cpu=arguments.device == "cpu",
        mixed_precision="no" if arguments.precision == "fp32" else arguments.precision,
    )
    config = make_config(arguments)
    batch = make_batch(config, arguments.batch, arguments.seconds, arguments.tokens)
    batch = batch.to(accelerator.device)
    assert isinstance(config.method, SandwichConfig)
    sandwich = Sandwich(config.method, seed=0)
    steps = {}
    for name, method in (("dense", Dense()), ("sandwich", sandwich)):
        torch.manual_seed(0)
        net = build_model(
            config.model, input_dim=input_dim(config), vocab_size=config.data.vocab_size
        )
        steps[name] = make_step(net, method, batch, accelerator)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(arguments.steps + 2):
        for name, step in steps.items():
            seconds = step(index)
            if index >= 2:  # the first steps allocate
                times[name].append(seconds)
    dense, whole = (statistics.median(times[name]) for name in ("dense", "sandwich"))
    masks = mask_seconds(sandwich, arguments.steps, accelerator)
    result = {
        "model": config.model.kind if arguments.config is None else config.name,
        "parameters": sandwich.supernet.budget.dense_parameters,
        "batch": arguments.batch,
        "audio_seconds": batch.audio_seconds,
        "device": arguments.device,
        "precision": arguments.precision,
        "threads": arguments.threads,
        "dense_seconds": dense,
        "sandwich_seconds": whole,
        "dense_audio_seconds_per_second": batch.audio_seconds / dense,
        "sandwich_audio_seconds_per_second": batch.audio_seconds / whole,
        "ratio": statistics.median(
            b / a for a, b in zip(times["dense"], times["sandwich"], strict=True)
        ),
        "mask_share": masks / whole,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:34} {value:.4f}" if isinstance(value, float) else f"{name:34} {value}")


if __name__ == "__main__":
    main()
