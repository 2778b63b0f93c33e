#!/usr/bin/env bash
# W&B offline: rows that were logged 10 s before a `kill -9` are in no file.
#
# The documentation says that an offline run is kept on disk and can be synced later, and `run.log`
# returns at once. One expects that what was logged some seconds ago survives the death of the
# training process, because W&B writes from a process of its own (wandb-core). It does not: that
# process keeps up to a block of 32 KiB in memory and ends with the training without writing it. The
# `.wandb` file then holds its 7 bytes of head and nothing else. With an ordinary end of the process
# (without `finish`), the same rows are there.
#
# So a program that continues a killed run under the same id must look into the file of before to
# learn which steps W&B still needs; what it handed over says nothing.
#
# Seen with wandb 0.31.0, Python 3.11, Linux, 2026-11. Exits with 1 if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "wandb==0.31.0"
cd "$folder"
cat > train.py <<'PY'
import os, signal, sys, time
import wandb
run = wandb.init(mode="offline", dir=sys.argv[1], project="p")
for step in range(1, 5):
    run.log({"loss": 1.0 / step}, step=step)
time.sleep(10)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
PY
for kind in ended killed; do
  mkdir "$kind"
  venv/bin/python train.py "$kind" > /dev/null 2>&1 || true
done
sleep 5
venv/bin/python - <<'PY'
import glob, os, sys
import wandb
print("wandb", wandb.__version__)
sizes = {kind: os.path.getsize(glob.glob(f"{kind}/wandb/offline-run-*/*.wandb")[0]) for kind in ("ended", "killed")}
print("bytes of the .wandb file:", sizes)
expected = sizes["killed"] == 7 and sizes["ended"] > 1000
print("as described" if expected else "the behaviour has changed")
sys.exit(0 if expected else 1)
PY
