"""One process of the gradient test: takes one step of a run and saves the gradient it saw.

torchrun --nproc_per_node=2 gradient_worker.py config.yaml RUN gradient.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from omnisparse.config import load_config
from omnisparse.pipeline.train import train
from omnisparse.training.trainer import Trainer

saved = Path(sys.argv[3])
clip = Trainer._clip


def save_then_clip(trainer: Trainer) -> float:
    if trainer.accelerator.is_main_process and trainer.step == trainer.max_steps - 1:
        gradients = {name: p.grad.clone() for name, p in trainer.parameters.items()}
        save_file(gradients, saved)
    return clip(trainer)


Trainer._clip = save_then_clip  # type: ignore[method-assign]
train(load_config(Path(sys.argv[1])), out=Path(sys.argv[2]))
