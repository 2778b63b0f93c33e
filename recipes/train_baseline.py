"""Train a baseline: the same data, loop and budget as the supernet, without the sandwich.

    accelerate launch recipes/train_baseline.py --config recipes/configs/las_assistant.yaml
    accelerate launch recipes/train_baseline.py method=dense training.epochs=18

Same arguments as ``recipes/train_supernet.py``. ``omnisparse extract --size 25%`` then cuts the
dense net by magnitude, which is what a supernet has to beat.
"""

from __future__ import annotations

import sys

from omnisparse.cli import run_recipe
from omnisparse.training.launch import ensure_cpu_processes

if __name__ == "__main__":
    ensure_cpu_processes()
    named = () if "--config" in sys.argv else ("name=dense",)
    sys.exit(run_recipe(sys.argv[1:], defaults=("method=dense", *named)))
