"""Time and memory of an extraction, compared with pruning by torch.nn.utils.prune.

    python tools/benchmark_extract.py                        # table on stdout
    python tools/benchmark_extract.py --json --repeats 5

A LAS of about 110 M parameters is saved as a run with an fp32 checkpoint (so it is in the page
cache). Then each variant runs in its own process: ``one`` size by ``pipeline.extract.extract``,
``ten`` sizes in one pass, and the ``peer``, ``prune.global_unstructured`` on the same net with
``prune.remove`` and ``torch.save``. A time includes everything from opening the checkpoint to the
last fsync, but not the imports. ``cli`` is the whole command ``omnisparse extract``, from the start
to the end of its process, with imports; every repeat is a new process. Peak memory is that of the
whole process (after one repeat); the memory after the imports is printed beside it. Sizes and
logits are checked on the written files. The formula is N/8 + nnz * bytes per packed matrix plus the
dense rest; for int8 plus 4 bytes of scale per row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Every side imports what it uses itself: what is measured must not carry what others need.

INPUT_DIM, VOCAB_SIZE = 240, 1000
MODEL = {
    "kind": "las",
    "encoder_layers": 6,
    "encoder_dim": 1312,
    "time_reduction": 4,
    "attention_dim": 512,
    "decoder_layers": 2,
    "decoder_dim": 1024,
    "embedding_dim": 256,
    "dropout": 0.0,
}
TEN_SIZES = tuple(f"{size}M" for size in (8, 10, 12, 14, 16, 18, 20, 24, 28, 32))
SIDES = ("make", "one", "ten", "cli", "peer", "check")
CHECKPOINT = Path("checkpoints", "step-00000000", "model.safetensors")

COMMAND = """
import sys
from omnisparse.cli.main import verbs
verbs.main(sys.argv[1:], standalone_mode=False)
lines = open("/proc/self/status").read().splitlines()
print(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
"""
"""Runs the ``omnisparse`` script, and then prints the peak memory of its process in KiB."""


def make_net() -> Any:
    from omnisparse.models import LasConfig, build_model

    return build_model(LasConfig(**MODEL), input_dim=INPUT_DIM, vocab_size=VOCAB_SIZE)


def make_run(run: Path) -> None:
    """Save the net as a run and bring it into the page cache."""
    import torch

    from omnisparse.runs import directory as runs
    from omnisparse.sparsity.prunable import find_prunable
    from omnisparse.training.checkpoint import save_checkpoint

    torch.manual_seed(0)
    net = make_net()
    run.mkdir(parents=True)
    save_checkpoint(run / "checkpoints", step=0, tensors={"model": net.state_dict()}, state={})
    model = {**MODEL, "input_dim": INPUT_DIM, "vocab_size": VOCAB_SIZE}
    description = runs.RunDescription(
        model=model,
        features={},
        prunable=find_prunable(net),
        parameters=[name for name, _ in net.named_parameters()],
        method="none",
    )
    runs.write_description(run, description)
    (run / "tokenizer.model").write_bytes(b"")
    (run / "tokens.txt").write_text("")
    (run / CHECKPOINT).read_bytes()


def extract_many(run: Path, out: Path, sizes: tuple[str, ...]) -> None:
    """Open the checkpoint and write an artifact of every size in one pass."""
    from omnisparse.artifact import Contents, Extraction, write_extractions
    from omnisparse.runs import directory as runs
    from omnisparse.sparsity.budget import Budget
    from omnisparse.sparsity.space import SubnetSpec

    description = runs.read_description(run)
    state, _ = runs.newest_weights(run)
    budget = Budget({name: array.shape for name, array in state.items()}, description.prunable)
    contents = Contents(
        model=description.model,
        tokenizer=b"",
        tokens_txt="",
        features={},
        dense_parameters=budget.dense_parameters,
        prunable=description.prunable,
        source={},
    )
    extractions = []
    for size in sizes:
        kept = budget.allocate_uniform(budget.solve(size))
        spec = SubnetSpec.from_counts(kept, budget.prunable)
        extractions.append(
            Extraction(out=out / size, num_kept=kept, contents=replace(contents, spec=spec))
        )
    write_extractions(state, extractions)


def prune_with_torch(run: Path, out: Path, size: str) -> None:
    """The peer: the same net and number of kept weights, ranked over all matrices together."""
    import torch
    from safetensors.torch import load_file
    from torch.nn.utils import prune

    from omnisparse.runs import directory as runs
    from omnisparse.sparsity.budget import Budget

    net = make_net()
    net.load_state_dict(load_file(run / CHECKPOINT))
    prunable = runs.read_description(run).prunable
    budget = Budget.of(net, prunable)
    amount = budget.prunable_parameters - budget.solve(size)
    targets = []
    for name in prunable:
        module, _, parameter = name.rpartition(".")
        targets.append((net.get_submodule(module), parameter))
    prune.global_unstructured(targets, pruning_method=prune.L1Unstructured, amount=amount)
    for target, parameter in targets:
        prune.remove(target, parameter)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "peer.pt").open("wb") as file:
        torch.save(net.state_dict(), file)
        file.flush()
        os.fsync(file.fileno())


def peak_bytes() -> int:
    """Peak resident memory of this program (ru_maxrss would include the parent's before exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(run: Callable[[], int | None], out: Path, repeats: int) -> dict[str, Any]:
    """Seconds of every repeat, and peak memory after the first (or as reported by the process).

    Every repeat writes to a new folder, so that deleting old files is not measured.
    """
    before = peak_bytes()
    seconds, cpu, peak = [], [], 0
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        started, used = time.perf_counter(), sum(os.times()[:4])
        own_peak = run()
        seconds.append(time.perf_counter() - started)
        cpu.append(sum(os.times()[:4]) - used)
        peak = peak or own_peak or peak_bytes()
    return {
        "seconds": statistics.median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "cpu_seconds": statistics.median(cpu),
        "peak_bytes": peak,
        "imported_bytes": before,
    }


def logits(net: Any, state: dict[str, Tensor]) -> Tensor:
    """Log posteriors of a fixed batch with these weights."""
    import torch

    net.load_state_dict(state)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 40, INPUT_DIM, generator=generator)
    tokens = torch.randint(3, VOCAB_SIZE, (2, 8), generator=generator)
    with torch.inference_mode():
        output = net.eval()(features, torch.tensor([40, 33]), tokens, torch.tensor([8, 5]))
    posteriors: Tensor = output.log_posteriors
    return posteriors


def check(run: Path, out: Path, size: str) -> dict[str, Any]:
    """Counts, bytes and logits of the written files."""
    from safetensors.torch import load_file

    from omnisparse.artifact import inspect_artifact, read_artifact
    from omnisparse.artifact.tensorfile import TensorFile
    from omnisparse.pipeline import extract as runs_extract
    from omnisparse.runs import directory as runs
    from omnisparse.sparsity.budget import Budget
    from omnisparse.sparsity.masks import apply_mask, mask_from_count

    dense = load_file(run / CHECKPOINT)
    prunable = runs.read_description(run).prunable
    budget = Budget({name: tensor.shape for name, tensor in dense.items()}, prunable)
    kept = budget.allocate_uniform(budget.solve(size))
    squashed = {
        name: apply_mask(tensor, mask_from_count(tensor, kept[name])) if name in kept else tensor
        for name, tensor in dense.items()
    }
    net = make_net()
    expected = logits(net, squashed)
    result: dict[str, Any] = {}
    for precision, value_bytes in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        folder = out / precision
        runs_extract.extract(run, size=size, out=folder, precision=precision)
        report = inspect_artifact(folder)
        formula = sum(budget.numel[n] / 8 + kept[n] * value_bytes for n in prunable)
        formula += sum(
            budget.numel[n] * (4 if len(budget.shapes[n]) < 2 else value_bytes)
            if precision == "int8"
            else budget.numel[n] * value_bytes
            for n in budget.numel
            if n not in kept
        )
        if precision == "int8":  # a float32 scale per row of every matrix
            formula += sum(4 * shape[0] for shape in budget.shapes.values() if len(shape) >= 2)
        packed = TensorFile(folder / "model.safetensors").size_bytes
        result[precision] = {
            "nonzero": report["nonzero"],
            "bytes": report["bytes"],
            "bytes_over_formula": packed / formula,
            "problems": report["problems"],
            "max_logit_difference": float(
                (logits(net, read_artifact(folder).state) - expected).abs().max()
            ),
        }
    return result


def run_side(side: str, folder: Path, size: str, repeats: int, threads: int) -> dict[str, Any]:
    run, out = folder / "run", folder / side
    if side in ("make", "peer", "check"):
        import torch

        torch.set_num_threads(threads)
    if side == "make":
        make_run(run)
        return {"bytes": (run / CHECKPOINT).stat().st_size, "torch": torch.__version__}
    if side == "check":
        return check(run, out, size)
    if side == "peer":
        return measure(lambda: prune_with_torch(run, out, size), out, repeats)
    if side == "cli":
        options = ["extract", "--run", str(run), "--size", size, "--out", str(out), "--json"]
        command = [sys.executable, "-c", COMMAND, *options]

        def whole_command() -> int:
            finished = subprocess.run(command, check=True, capture_output=True, text=True)
            return int(finished.stdout.splitlines()[-1]) * 1024

        return measure(whole_command, out, repeats)
    from omnisparse.pipeline import extract as runs_extract

    def one_size() -> None:
        runs_extract.extract(run, size=size, out=out)

    if side == "one":
        return measure(one_size, out, repeats)
    return measure(lambda: extract_many(run, out, TEN_SIZES), out, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--size", default="16M", help="size to extract")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of our sides")
    parser.add_argument("--peer-repeats", type=int, default=2, help="repeats of the peer")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    arguments = parser.parse_args()
    if arguments.side:
        repeats = arguments.peer_repeats if arguments.side == "peer" else arguments.repeats
        result = run_side(
            arguments.side, arguments.folder, arguments.size, repeats, arguments.threads
        )
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        report(arguments, Path(temporary))


def report(arguments: argparse.Namespace, folder: Path) -> None:
    results: dict[str, Any] = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
        for name in ("size", "repeats", "peer_repeats", "threads"):
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        results[side] = json.loads(finished.stdout.splitlines()[-1])
    results["peer_over_one"] = results["peer"]["seconds"] / results["one"]["seconds"]
    results["ten_over_one"] = results["ten"]["seconds"] / results["one"]["seconds"]
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    total = results["make"]["bytes"]
    print("| side | median s | fastest | slowest | CPU s | peak / checkpoint | of it imports |")
    print("|---|---|---|---|---|---|---|")
    for side in SIDES[1:-1]:
        row = results[side]
        imported = "" if side == "cli" else f"{row['imported_bytes'] / total:.2f}"
        print(
            f"| {side} | {row['seconds']:.2f} | {row['fastest']:.2f} | {row['slowest']:.2f} "
            f"| {row['cpu_seconds']:.2f} | {row['peak_bytes'] / total:.2f} | {imported} |"
        )
    print(
        f"\npeer / one: {results['peer_over_one']:.1f}; ten / one: {results['ten_over_one']:.2f}\n"
    )
    print("| precision | non-zeros | bytes | bytes / formula | largest logit difference |")
    print("|---|---|---|---|---|")
    for precision, row in results["check"].items():
        print(
            f"| {precision} | {row['nonzero']:,} | {row['bytes']:,} "
            f"| {row['bytes_over_formula']:.4f} | {row['max_logit_difference']:.2e} |"
        )


if __name__ == "__main__":
    main()
