"""Search the SVD ranks of a trained run by reinforcement learning, without retraining.

    python recipes/search_ranks.py --run runs/latest --sizes 2x,3x,5x --evaluations 200
    python recipes/search_ranks.py --run runs/latest --sizes 3x --method tpe      # a control

The same as ``omnisparse search --ranks``. Afterwards, in the run's folder ``rank_search``:
``omnisparse extract --rank-spec ranks-3x-rl-0.json``.
"""

from __future__ import annotations

import sys

from omnisparse.cli.main import verbs

if __name__ == "__main__":
    verbs(["search", "--ranks", *sys.argv[1:]], prog_name="omnisparse")
