"""What a GPU does with this package: equal to the CPU, how fast, in how much memory.

    tools/gpu_check.sh OUT                # all of it, under 8 minutes on an H200
    tools/gpu_check.sh OUT --tiny --device cpu    # the script itself, on any machine

Writes OUT/gpu_check.json and OUT/gpu_check.md. Compared with the CPU in float32 are masks (bit for
bit), losses (1e-4 of their value), gradients (1e-3 of their norm), and the tokens that greedy and
beam search find; in bf16 the types of LSTM outputs. Speeds are those of
`tools/benchmark_training.py`. The books transducer is trained for as many steps as `--minutes`
allow, by a dry run. What fails is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnisparse.data.batching import Batch
from omnisparse.evaluation.devices import prepare_device
from omnisparse.methods.base import forward_batch
from omnisparse.models import LasConfig, SpeechModel, TransducerConfig, build_model
from omnisparse.models.lstm import make_lstm, run_lstm
from omnisparse.sparsity.prunable import find_prunable
from omnisparse.sparsity.supernet import Supernet

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "las": LasConfig(
        encoder_layers=2, encoder_dim=64, decoder_dim=64, attention_dim=32, dropout=0.0,
        ctc_weight=0.3,
    ),
    "las-lstmp": LasConfig(
        encoder_layers=2, encoder_dim=64, encoder_projection=32, decoder_dim=64,
        decoder_projection=32, attention_dim=32, dropout=0.0,
    ),
    "transducer": TransducerConfig(
        encoder_layers=2, encoder_dim=64, predictor_dim=64, joiner_dim=64, dropout=0.0,
        predictor_warmup=0, ctc_weight=0.3,
    ),
    "conformer": TransducerConfig(
        encoder="conformer", encoder_layers=2, encoder_dim=64, encoder_feed_forward=128,
        dropout=0.0, predictor_warmup=0,
    ),
    "emformer": TransducerConfig(
        encoder="emformer", encoder_layers=2, encoder_dim=64, encoder_feed_forward=128,
        dropout=0.0, predictor_warmup=0,
    ),
}  # fmt: skip
LARGE = {
    "emformer_76m": ["--batch", "64", "--seconds", "12", "--tokens", "45"],
    "lstm_85m": ["--batch", "64", "--seconds", "12", "--tokens", "45"],
}


def make_batch() -> Batch:
    """Eight random utterances of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return Batch(
        features=torch.randn(8, 60, 24, generator=generator),
        feature_lengths=torch.randint(30, 61, (8,), generator=generator),
        tokens=torch.randint(3, 40, (8, 9), generator=generator),
        token_lengths=torch.randint(1, 10, (8,), generator=generator),
        ids=tuple(f"u{index}" for index in range(8)),
        positions=torch.arange(8),
        audio_seconds=8.0,
    )


def loss_and_gradients(
    model: SpeechModel, device: str, sparsity: float | None
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and masked copies of a net, or of a subnet of it, on the CPU."""
    net = Supernet(model.to(device), prunable=find_prunable(model)).train()
    net.zero_grad()
    net.activate(None if sparsity is None else net.spec_for(sparsity=sparsity))
    masked = {} if sparsity is None else net._weights_of_pass()
    output = forward_batch(net, make_batch().to(device))
    output.label_loss_sum.backward()
    gradients = {
        name: p.grad.cpu() for name, p in net.model.named_parameters() if p.grad is not None
    }
    copies = {name: tensor.detach().cpu() for name, tensor in masked.items()}
    return output.label_loss_sum.item(), gradients, copies


def check_parity(name: str, device: str, sparsity: float | None) -> dict[str, Any]:
    """How far a device is from the CPU, in float32."""
    found = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        model = build_model(MODELS[name], input_dim=24, vocab_size=40)
        found.append(loss_and_gradients(model, place, sparsity))
    (loss, gradients, masks), (other, others, copies) = found
    error = max(
        float((others[key] - value).norm() / value.norm().clamp(min=1e-12))
        for key, value in gradients.items()
    )
    equal = all(torch.equal(masks[key], copies[key]) for key in masks)
    relative = abs(other - loss) / abs(loss)
    return {
        "check": f"{name}, {'dense' if sparsity is None else f'sparsity {sparsity:g}'}",
        "loss_error": relative,
        "gradient_error": error,
        "masks_equal": equal,
        "passed": equal and relative < 1e-4 and error < 1e-3,
    }


def check_search(name: str, device: str) -> dict[str, Any]:
    """Whether a device recognises what the CPU does, greedily and with a beam."""
    found = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        model = build_model(MODELS[name], input_dim=24, vocab_size=40).to(place).eval()
        prepare_device(torch.device(place))
        batch = make_batch().to(place)
        found.append(
            [model.decode(batch.features, batch.feature_lengths, beam=beam) for beam in (1, 4)]
        )
    tokens = sum(len(row) for rows in found[0] for row in rows)
    return {"check": f"{name}, search", "tokens": tokens, "passed": found[0] == found[1]}


def check_types(device: str) -> dict[str, Any]:
    """What run_lstm computes in where bf16 is asked for."""
    types = {}
    for name, projection in (("lstm", None), ("lstmp", 8)):
        layer = make_lstm(16, 32, projection).to(device)
        with torch.autocast(device, torch.bfloat16):
            outputs, _ = run_lstm(layer, torch.randn(5, 3, 16, device=device))
        types[name] = str(outputs.dtype)
    passed = set(types.values()) == {"torch.bfloat16"}
    return {"check": "bf16 types", **types, "passed": passed}


def check_trips() -> dict[str, Any]:
    """The test that counts how often a step waits."""
    test = str(ROOT / "tests" / "unit" / "training" / "test_trips.py")
    command = [sys.executable, "-m", "pytest", "-q", test]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = (done.stdout.strip().splitlines() or ["pytest said nothing"])[-1]
    return {"check": "waits of a step", "said": said, "passed": done.returncode == 0}


def measure(name: str, device: str, options: list[str], steps: int) -> dict[str, Any]:
    """Speed and memory of one recipe, dense and as supernet, each in a process of its own."""
    config = ROOT / "recipes" / "configs" / f"transducer_{name}.yaml"
    tool = [sys.executable, str(ROOT / "tools" / "benchmark_training.py"), "--config", str(config)]
    row: dict[str, Any] = {"net": name}
    for net in ("dense", "sandwich"):
        command = [*tool, "--device", device, "--nets", net, "--steps", str(steps), "--json"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            return {**row, "failed": done.stderr.strip().splitlines()[-1:]}
        found = json.loads(done.stdout)
        row["precision"] = found["precision"]
        row[f"{net}_audio_s_per_s"] = found[f"{net}_audio_seconds_per_second"]
        row[f"{net}_peak_gib"] = found["peak_bytes"]["new"] / (1 << 30)
    return row


def run_quietly(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder, with all that it says."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def train_books(
    out: Path, text: str | None, minutes: float, options: list[str]
) -> list[dict[str, Any]]:
    """The `books` transducer as dense net and as supernet, for some minutes both, with WER."""
    rows = []
    for method in ("dense", "sandwich"):
        run = out / f"books-{method}"
        settings = [
            str(ROOT / "recipes" / "configs" / "transducer_books.yaml"),
            "training.evaluate_every=1000000", "training.evaluate_utterances=200",
            f"corpus.root={out / 'data'}", *options,
        ]  # fmt: skip
        if method == "dense":
            settings.append("method=dense")
        if text is not None:
            settings.append(f"corpus.synthetic.text={Path(text).resolve()}")
        else:
            settings += ["corpus.synthetic.text=null", "corpus.synthetic.preset=assistant"]
        row: dict[str, Any] = {"net": method}
        train = [sys.executable, "-m", "omnisparse.cli", "train", *settings]
        tried = run_quietly([*train, "--dry-run", "--json"], out)
        if tried.returncode == 0:
            dry = json.loads(tried.stdout)
            row["audio_s_per_s"] = dry["audio_seconds_per_second"]
            row["peak_gib"] = dry["peak_bytes"] / (1 << 30)
            fitting = int(60 * minutes / dry["estimated_seconds"] * dry["steps"])
            steps = max(1, min(dry["steps"], fitting))
            started = time.perf_counter()
            train += [f"training.max_steps={steps}", "--out", str(run)]
            tried = run_quietly(train, out)
            row["seconds"] = time.perf_counter() - started
        if tried.returncode:
            row["failed"] = (tried.stderr.strip().splitlines() or ["no message"])[-1]
        metrics = run / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        for line in map(json.loads, lines):
            row |= {key: line[key] for key in ("step", "loss/dense", "dev/wer") if key in line}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (row.get(column, "") for column in columns)
        texts = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Check, measure, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--text", help="file of sentences for the books corpus")
    parser.add_argument("--minutes", type=float, default=2.0, help="of each of the two trainings")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this machine has none; legal: cpu")
    out, device = arguments.out.resolve(), arguments.device
    out.mkdir(parents=True, exist_ok=True)
    checks = [check_parity(name, device, sparsity) for name in MODELS for sparsity in (None, 0.75)]
    checks += [check_search(name, device) for name in MODELS]
    checks += [check_types(device), check_trips()]
    sizes = {"books": ["--batch", "2", "--seconds", "1"]} if arguments.tiny else LARGE
    steps = 1 if arguments.tiny else 8
    speeds = [measure(name, device, options, steps) for name, options in sizes.items()]
    tiny = [
        "training.epochs=1", "corpus.synthetic.hours=0.02",
        "data.vocab_size=40", "training.evaluate_utterances=2", "model.encoder_dim=16",
    ]  # fmt: skip
    # A corpus that is made in a minute; the dry run ends the epochs where the minutes do.
    whole = ["corpus.synthetic.hours=3", "training.epochs=500"]
    books = train_books(out, arguments.text, arguments.minutes, tiny if arguments.tiny else whole)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    document = {
        "device": name, "torch": torch.__version__, "checks": checks, "speeds": speeds,
        "books": books,
    }  # fmt: skip
    (out / "gpu_check.json").write_text(json.dumps(document, indent=1))
    parts = [f"# {name}, torch {torch.__version__}", table(checks), table(speeds), table(books)]
    (out / "gpu_check.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))
    failed = [check["check"] for check in checks if not check["passed"]]
    failed += [str(row["net"]) for row in (*speeds, *books) if "failed" in row]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
