"""How large exported files are beside an artifact, and what memory loading them takes.

    python tools/benchmark_export_size.py [--sparsity 0.78]

A transducer of 49 M parameters (six LSTM layers of 1024 cells, stateless predictor; random
weights, pruned at random) is written as artifacts and exported. Each file set is then loaded
by onnxruntime in a process of its own, which reports the growth of its peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

BINS, STACK, VOCABULARY = 80, 4, 1000
LOADER = """
import json, sys, time
import onnxruntime
def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
before = kilobytes("VmRSS")
start = time.perf_counter()
sessions = [onnxruntime.InferenceSession(f, options, providers=["CPUExecutionProvider"])
            for f in sys.argv[1:]]
print(json.dumps({"seconds": time.perf_counter() - start,
                  "peak_bytes": 1024 * (kilobytes("VmHWM") - before)}))
"""


def build(sparsity: float) -> Any:
    from omnisparse.models import TransducerConfig, build_model
    from omnisparse.sparsity.prunable import find_prunable

    torch.manual_seed(0)
    config = TransducerConfig(
        encoder_layers=6, encoder_dim=1024, time_reduction=1, predictor_layers=0,
        predictor_dim=512, embedding_dim=256, joiner_dim=512, max_symbols_per_frame=1,
    )  # fmt: skip
    model = build_model(config, input_dim=BINS * STACK, vocab_size=VOCABULARY)
    prunable = set(find_prunable(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in prunable:
                parameter[torch.rand_like(parameter) < sparsity] = 0.0
    return model.eval(), config


def write_packed(model: Any, config: Any, features: Any, out: Path, precision: Any) -> int:
    from omnisparse.artifact import write_artifact
    from omnisparse.sparsity.prunable import find_prunable

    return write_artifact(
        out,
        state=model.state_dict(),
        model={**asdict(config), "input_dim": BINS * STACK, "vocab_size": VOCABULARY},
        tokenizer=b"",
        tokens_txt="",
        features=features.to_dict(),
        precision=precision,
        dense_parameters=sum(p.numel() for p in model.parameters()),
        prunable=list(find_prunable(model)),
        source={},
    ).bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.78)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from omnisparse.data.features import FeatureExtractor
    from omnisparse.deploy.onnx_export import frames_of, weight_store
    from omnisparse.deploy.onnx_models import TransducerGraphs

    model, config = build(arguments.sparsity)
    features = FeatureExtractor(num_bins=BINS, stack=STACK)
    parameters = sum(p.numel() for p in model.parameters())
    result: dict[str, Any] = {
        "parameters": parameters,
        "nonzero": sum(int(p.count_nonzero()) for p in model.parameters()),
        "dense_fp32_bytes": 4 * parameters,
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for precision in ("fp16", "int8"):
            size = write_packed(model, config, features, folder / precision, precision)
            result["rows"].append({"files": f"{precision} artifact", "bytes": size})
        for layout, precision in (
            ("dense", "fp32"), ("packed", "fp16"), ("packed", "int8"), ("sparse", "fp32"),
        ):  # fmt: skip
            store = weight_store(model, layout=layout, precision=precision)  # type: ignore[arg-type]
            graphs = TransducerGraphs(model, store, frames_of(features))
            parts = {
                "encoder": graphs.encoder({}, chunk=32),
                "decoder": graphs.decoder({}),
                "joiner": graphs.joiner({}),
            }
            files = []
            for name, data in parts.items():
                files.append(folder / f"{layout}-{precision}-{name}.onnx")
                files[-1].write_bytes(data)
            command = [sys.executable, "-c", LOADER, *map(str, files)]
            loaded = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            result["rows"].append(
                {
                    "files": f"{layout} {precision}", "bytes": sum(map(len, parts.values())),
                    **loaded, "peak_over_dense": loaded["peak_bytes"] / (4 * parameters),
                }
            )  # fmt: skip
            for file in files:
                file.unlink()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
