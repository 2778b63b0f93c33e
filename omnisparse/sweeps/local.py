"""Running a sweep on this machine, one run after the other, without a server.

The folder of the sweep holds ``runs.json`` (the outcome of every run) and ``logs/``. When started
again, the sweep skips finished runs and starts the others. An interrupted run gets the same command
line again, so our recipes continue from their checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from omnisparse.atomic import replaced_file
from omnisparse.console import RESULT_FILE, SWEEP
from omnisparse.errors import OmnisparseError
from omnisparse.sweeps.file import Sweep

try:
    import fcntl
except ImportError:  # Windows: the user must avoid two sweeps in one folder
    fcntl = None  # type: ignore[assignment]

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"
_STATE, _LOCK = "runs.json", ".lock"


class InterruptedSweepError(OmnisparseError):
    """A signal ended the sweep; the run it met has been told.

    Args:
        number: The signal.
        message: What happened.
    """

    def __init__(self, number: int, message: str) -> None:
        self.exit_code = 128 + number
        super().__init__(message)


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    count: int | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run every point of a sweep that is not finished yet.

    A failed run is recorded and the sweep continues. When started again, the sweep tries it again.

    Args:
        sweep: The sweep.
        folder: Folder of its state and logs. Several sweeps may share a folder, because runs are
            identified by their command lines.
        count: As in :meth:`Sweep.points`.
        seed: As there.
        tell: Called with a line about every run.

    Returns:
        A mapping per point, in order: ``parameters, status`` (finished or failed), ``exit_code,
        seconds, log, error`` (the last line of a failed run), ``run`` (the run directory, if the
        program says it), ``needed`` (runs it needed), ``started`` (False where it was finished
        before).

    Raises:
        SweepError: If a random sweep has no number of runs.
        InterruptedSweepError: If SIGINT or SIGTERM arrived.
        OmnisparseError: If the program is missing, the state cannot be read, or another sweep is
            running in ``folder``.
    """
    points = sweep.points(count=count, seed=seed)
    if not Path(sweep.program).is_file():
        raise OmnisparseError(
            f"{sweep.path}: program {sweep.program}: no such file below {Path.cwd()}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder) as lock:
        known = _read_state(folder / _STATE)
        results = []
        for number, point in enumerate(points, start=1):
            line = sweep.command_line(point, os.environ)
            key = _key(line)
            title = f"[{number}/{len(points)}] " + " ".join(f"{k}={v}" for k, v in point.items())
            before = known.get(key)
            if before is not None and _is_finished(before):
                tell(f"{title}: finished before")
                results.append({**before, "started": False})
                continue
            tell(f"{title}: {folder / 'logs' / f'{key}.log'}")
            outcome, stopped = _run(line, folder, key, lock)
            entry = {"parameters": point, **outcome}
            known[key] = entry
            _write_state(folder / _STATE, known)
            if stopped:
                raise InterruptedSweepError(
                    stopped, f"stopped in run {number} of {len(points)}; the same command continues"
                )
            seconds = f"{entry['seconds']:.0f} s"
            tell(f"{title}: {entry['status']} after {seconds}" + _reason(entry))
            results.append({**entry, "started": True})
    return results


def _reason(entry: Mapping[str, Any]) -> str:
    return f": {entry['error']}" if entry.get("error") else ""


def _key(line: Sequence[str]) -> str:
    """A name of a run from its command line, without the path of the interpreter."""
    words = [part for part in line if part not in {sys.executable, "/usr/bin/env"}]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]


def _is_finished(entry: Mapping[str, Any]) -> bool:
    """Whether a run is finished and its directory, if known, still exists."""
    run = entry.get("run")
    return entry.get("status") == FINISHED and (run is None or Path(run).is_dir())


@contextmanager
def _held(folder: Path) -> Iterator[int | None]:
    """Lock the folder; a run that continues after its sweep was killed keeps the lock.

    Raises:
        OmnisparseError: If another sweep, or a run of one, is active there.
    """
    if fcntl is None:
        yield None
        return
    with (folder / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OmnisparseError(f"{folder}: another sweep, or a run of it, is active") from None
        yield file.fileno()


def _run(
    line: Sequence[str], folder: Path, key: str, lock: int | None
) -> tuple[dict[str, Any], int | None]:
    """Start one run and wait for it; a signal to us is passed on to it.

    Returns:
        What became of it, and the first signal that arrived meanwhile, if one did.
    """
    log = folder / "logs" / f"{key}.log"
    answer = folder / "logs" / f"{key}.json"
    log.parent.mkdir(exist_ok=True)
    answer.unlink(missing_ok=True)
    environment = {**os.environ, RESULT_FILE: str(answer.absolute()), SWEEP: str(folder.absolute())}
    started = time.monotonic()
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                list(line),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,  # a Ctrl-C reaches it once, through us
            )
        except OSError as error:
            reason = f"{line[0]}: {error.strerror}"
            return {"status": FAILED, "exit_code": 127, "seconds": 0.0, "log": str(log),
                    "error": reason, "run": None, "needed": []}, None  # fmt: skip
        with _signals_passed_on(process) as seen:
            code = process.wait()
    status = FINISHED if code == 0 else FAILED
    if seen and code != 0:
        status = INTERRUPTED
    outcome = {
        "status": status,
        "exit_code": code,
        "seconds": time.monotonic() - started,
        "log": str(log),
        "error": None if code == 0 else _last_line(log),
        **_answered_runs(answer),
    }
    return outcome, next(iter(seen), None)


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to a run as SIGTERM, and remember that they came."""
    seen: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        process.terminate()

    previous = {
        number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    """The last line of a failed run: its error line if it has one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
    spoken = [line.strip() for line in lines if line.strip()]
    ours = [line for line in spoken if line.startswith("omnisparse: ")]
    last = (ours or spoken or ["it said nothing"])[-1]
    return last.removeprefix("omnisparse: ").removeprefix("error: ")[:300]


def _answered_runs(answer: Path) -> dict[str, Any]:
    """The run directories that the program named in its JSON, if it is one of ours."""
    try:
        document = json.loads(answer.read_text(encoding="utf-8"))
        run, needed = document.get("run"), document.get("needed", [])
    except (OSError, ValueError, AttributeError):
        return {"run": None, "needed": []}
    return {
        "run": None if run is None else str(Path(run).absolute()),
        "needed": [str(Path(path).absolute()) for path in needed],
    }


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        sound = all(isinstance(entry, dict) for entry in document.values())
    except (OSError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise OmnisparseError(f"{path}: cannot be read; delete it to start the sweep again")
    return dict(document)


def _write_state(path: Path, known: Mapping[str, Any]) -> None:
    with replaced_file(path) as partial:
        partial.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
