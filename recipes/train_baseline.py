"""Train one row of the comparison: the same data, loop and budget as the supernet.

    accelerate launch recipes/train_baseline.py method=pruned size=25% seed=0
    accelerate launch recipes/train_baseline.py --config recipes/configs/las_assistant.yaml

``method`` is base (dense, the default), distilled, factored, pruned, factored_distilled,
factored_distilled_pruned, supernet (as many utterance passes as any other row, including those of
subnets), supernet_double (twice as many), a control (docs/compare.md), or the kind of an added
method (docs/add_a_method.md). ``sizes=[50%,25%,12.5%]`` with ``method=pruned`` is one pruning that
leaves a model at each of these sizes.
``size`` is 25% of the dense net or 16M parameters; without it the net keeps its full size. A row
that needs a teacher trains the dense net first, once per seed. ``teacher=RUN`` and ``init=RUN``
set other nets; ``pretrain=20%`` is the share of the steps in which a student trains only on labels;
``projection_share`` and ``decoder_share`` are the shape of factored nets; ``budget=2x`` is twice
the length of the configuration, and in the run's name.
Any other ``key=value`` is a key of the configuration, and ``method.key=value`` is a key of this
row's method. ``omnisparse compare RUN...`` makes the table.
"""

from __future__ import annotations

import sys

from omnisparse.cli.baseline import plan_baseline
from omnisparse.cli.train import run_recipe

if __name__ == "__main__":
    sys.exit(run_recipe(sys.argv[1:], plan=plan_baseline))
