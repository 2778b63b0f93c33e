"""Train a supernet: one training run, every size.

    accelerate launch recipes/train_supernet.py
    accelerate launch recipes/train_supernet.py --config recipes/configs/las_assistant.yaml
    accelerate launch --num_processes 2 recipes/train_supernet.py training.max_steps=200

Without arguments it makes the embedded corpus and trains the default configuration (a LAS of 2.88 M
parameters). ``key=value`` overrides any key of the configuration; for an unknown key the legal keys
are listed. Afterwards: ``omnisparse extract --size 25%``.
"""

from __future__ import annotations

import sys

from omnisparse.cli.train import run_recipe

if __name__ == "__main__":
    sys.exit(run_recipe(sys.argv[1:], defaults=("method.kind=sandwich",)))
