"""A SLURM array script for a sweep: one task for each of its points."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from omnisparse.atomic import replaced_file
from omnisparse.console import RESULT_FILE, SWEEP
from omnisparse.sweeps.file import Sweep, SweepError
from omnisparse.sweeps.local import answer_of, key_of

SCRIPT, COMMANDS = "array.sh", "commands.txt"

_TEMPLATE = """#!/bin/bash
# One task for each point of {file}. `sbatch {script}`; when all are done,
# `omnisparse sweep {file} --local --out {folder}` says what became of them, and how to compare.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{jobs}
#SBATCH --output={folder}/logs/slurm-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
cd {cwd} || exit 1
line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {commands})
eval "set -- $line"
export {sweep}={folder} {result}="$1"
shift
"$@" &
child=$!
trap 'kill -TERM $child' TERM
trap 'kill -USR1 $child' USR1
wait $child; code=$?
while kill -0 $child 2> /dev/null; do wait $child; code=$?; done  # a signal ends the first wait
if [ $code -eq 143 ] || [ $code -eq 138 ]; then  # it was stopped, and has saved: go on later
  command -v scontrol > /dev/null && \\
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit $code
"""


def write_array(
    sweep: Sweep, folder: Path, *, jobs: int, count: int | None = None, seed: int = 0
) -> Path:
    """Write the script and the command lines of all points.

    Args:
        sweep: A grid or a random sweep.
        folder: For both files, the logs and the results; made if absent.
        jobs: Most tasks at once.
        count: As in :meth:`Sweep.points`.
        seed: As there.

    Returns:
        The script.

    Raises:
        SweepError: If it is a bayes sweep, whose points depend on results.
    """
    if sweep.method == "bayes":
        raise SweepError(
            f"{sweep.path}: method is 'bayes'; its points depend on results: legal for an array "
            "are grid and random"
        )
    folder = folder.absolute()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    lines = []
    for point in sweep.points(count=count, seed=seed):
        line = sweep.command_line(point, os.environ)
        lines.append(shlex.join([str(answer_of(folder, key_of(line))), *line]))
    if any("\n" in line for line in lines):
        raise SweepError(f"{sweep.path}: a value has a line break, which an array cannot pass on")
    script, commands = folder / SCRIPT, folder / COMMANDS
    quoted = {
        name: shlex.quote(str(value))
        for name, value in (
            ("file", sweep.path), ("script", script), ("folder", folder), ("cwd", Path.cwd()),
            ("commands", commands), ("name", sweep.path.stem),
        )
    }  # fmt: skip
    text = _TEMPLATE.format(
        **quoted, last=len(lines) - 1, jobs=jobs, sweep=SWEEP, result=RESULT_FILE
    )
    for path, content in ((commands, "".join(f"{line}\n" for line in lines)), (script, text)):
        with replaced_file(path) as partial:
            partial.write_text(content, encoding="utf-8")
    script.chmod(0o755)
    return script
