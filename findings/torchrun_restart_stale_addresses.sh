#!/usr/bin/env bash
# After `torchrun --max-restarts`, a process may read the address of one that is dead, and never meet
# the one that took its place.
#
# Surprising, because torch's own comment says "We create a new TCPStore for every retry so no need to
# add prefix for each attempt" (torch/distributed/rendezvous.py): but torchrun keeps one store over all
# restarts, and gloo finds the addresses of the round before under the same names. If one process starts
# a little later than the other, the job ends; on a busy machine that is a matter of luck.
# Way out: a store with a prefix for each restart (TORCHELASTIC_RESTART_COUNT).
#
# torch 2.11.0 (CPU), 2026-11-30. PYTHON=... uses an environment that is there. Exits non-zero if the
# behaviour changes. Takes about a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install -q "torch==2.11.0" "numpy<3"
  python="$folder/venv/bin/python"
fi
cat > "$folder/worker.py" <<'PYTHON'
import datetime
import os
import time

import torch.distributed as dist

attempt, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
if attempt == 1 and rank == 1:
    time.sleep(15)  # a slow start: rank 0 is there first
options = {"backend": "gloo", "timeout": datetime.timedelta(seconds=60)}
if os.environ["WAY_OUT"] == "1":
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.PrefixStore(f"restart-{attempt}", dist.TCPStore(*place, is_master=False))
    options |= {"store": store, "rank": rank, "world_size": 2}
try:
    dist.init_process_group(**options)
    dist.barrier()
except Exception as error:
    print(f"round {attempt}: rank {rank} failed: {str(error)[:160]}", flush=True)
    os._exit(3)
print(f"round {attempt}: rank {rank} has met the other", flush=True)
if attempt == 0:
    time.sleep(2 if rank == 1 else 60)
    os._exit(1)  # rank 1 dies; torchrun starts both again
dist.barrier()
PYTHON
export OMP_NUM_THREADS=1
run() {
  WAY_OUT=$1 "$python" -m torch.distributed.run --standalone --nproc_per_node=2 --max-restarts=1 \
    "$folder/worker.py" 2> /dev/null | grep '^round' || true
}
echo "as it is:"; run 0 | tee "$folder/plain"
echo "with a prefix for each restart:"; run 1 | tee "$folder/prefixed"
grep -q "round 1: rank 0 failed.*Connection refused" "$folder/plain"
[ "$(grep -c 'round 1: rank . has met' "$folder/prefixed")" = 2 ]
