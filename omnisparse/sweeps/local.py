"""Running a sweep on this machine, one run or several at once, without a server.

The folder of the sweep holds ``runs.json`` (the outcome of every run) and ``logs/``. When started
again, the sweep skips finished runs and starts the others. An interrupted run gets the same command
line again, so our recipes continue from their checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
_STATE, _LOCK, _POINTS = "runs.json", ".lock", "points.json"
_ATTEMPTS = 2
_USAGE = 2
"""Exit code of a mistake in the command line, which a second attempt repeats."""
_LOOK_EVERY = 0.05


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
    jobs: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Run every point of a sweep that is not finished yet.

    A failed run is started once more; if it fails again it is recorded, and the sweep continues.
    When started again, the sweep tries it again.

    Args:
        sweep: The sweep.
        folder: Folder of its state and logs. Several sweeps may share a folder, because runs are
            identified by their command lines.
        count: As in :meth:`Sweep.points`.
        seed: As there.
        jobs: Runs at once.
        tell: Called with a line about every run.

    Returns:
        A mapping per point, in order: ``parameters, status`` (finished or failed), ``exit_code,
        seconds, attempts, log, error`` (the last line of a failed run), ``run`` (the run directory,
        if the program says it), ``needed`` (runs it needed), ``metric`` (of a bayes sweep),
        ``started`` (False where it was finished before).

    Raises:
        SweepError: If a random or bayes sweep has no number of runs.
        InterruptedSweepError: If SIGINT or SIGTERM arrived.
        OmnisparseError: If the program is missing, the state cannot be read, or another sweep is
            running in ``folder``.
    """
    points = [] if sweep.method == "bayes" else sweep.points(count=count, seed=seed)
    total = sweep.number_of_points(count) if sweep.method == "bayes" else len(points)
    if not Path(sweep.program).is_file():
        raise OmnisparseError(
            f"{sweep.path}: program {sweep.program}: no such file below {Path.cwd()}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder) as lock:
        return _Sweeping(sweep, folder, points, total, seed, lock, tell).run(jobs)


class _Sweeping:
    """The points of a sweep on their way, several at once."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        points: list[dict[str, Any]],
        total: int,
        seed: int,
        lock: int | None,
        tell: Callable[[str], None],
    ) -> None:
        self.sweep, self.folder, self.seed, self.lock, self.tell = sweep, folder, seed, lock, tell
        self.points, self.total = points, total
        self.known = _read_state(folder / _STATE)
        self.results: dict[int, dict[str, Any]] = {}
        self.running: dict[int, _Running] = {}
        self.waiting = list(range(total))

    def run(self, jobs: int) -> list[dict[str, Any]]:
        """Run all; a mapping per point."""
        with _signals_passed_on(self.running) as seen:
            while self.running or (self.waiting and not seen):
                while self.waiting and len(self.running) < jobs and not seen:
                    self._start(self.waiting.pop(0))
                ended = [n for n, one in self.running.items() if one.process.poll() is not None]
                for number in ended:
                    self._end(number, is_stopped=bool(seen))
                if not ended and self.running:
                    time.sleep(_LOOK_EVERY)
        if seen:
            done = len(self.results)
            raise InterruptedSweepError(
                seen[0],
                f"stopped with {done} of {self.total} runs done; the same command continues",
            )
        return [self.results[number] for number in range(self.total)]

    def _title(self, number: int) -> str:
        words = " ".join(f"{k}={v}" for k, v in self.points[number].items())
        return f"[{number + 1}/{self.total}] {words}"

    def _start(self, number: int, attempts: int = 1) -> None:
        if number >= len(self.points):
            self.points.append(self._next(number))
        point = self.points[number]
        line = self.sweep.command_line(point, os.environ)
        key = key_of(line)
        title = self._title(number)
        before = self.known.get(key) or self._done_elsewhere(key, point)
        if before is not None and _is_finished(before):
            self.tell(f"{title}: finished before")
            self.results[number] = {**before, "started": False}
            return
        self.tell(f"{title}: {self.folder / 'logs' / f'{key}.log'}")
        try:
            self.running[number] = _Running.start(line, self.folder, key, self.lock, attempts)
        except OSError as error:
            self._record(number, key, {
                "status": FAILED, "exit_code": 127, "seconds": 0.0, "attempts": attempts,
                "log": str(self.folder / "logs" / f"{key}.log"),
                "error": f"{line[0]}: {error.strerror}", "run": None, "needed": [],
            })  # fmt: skip

    def _next(self, number: int) -> dict[str, Any]:
        """The point of a bayes sweep: of before, if this sweep continues, or a new one."""
        place = self.folder / _POINTS
        kept = _read_points(place)
        if number < len(kept):
            return kept[number]
        results = [
            (one["parameters"], float(one["metric"]))
            for one in self.results.values()
            if one.get("metric") is not None
        ]
        point = self.sweep.next_point(results, number=number, seed=self.seed)
        with replaced_file(place) as partial:
            partial.write_text(json.dumps([*kept, point], indent=1) + "\n", encoding="utf-8")
        return point

    def _done_elsewhere(self, key: str, point: dict[str, Any]) -> dict[str, Any] | None:
        """What a run left that was not started here, such as a task of an array."""
        answer = answer_of(self.folder, key)
        if key in self.known or not answer.exists():
            return None
        entry = {
            "parameters": point, "status": FINISHED, "exit_code": 0, "seconds": 0.0, "attempts": 1,
            "log": str(answer.with_suffix(".log")), "error": None, **_answered_runs(answer),
        }  # fmt: skip
        return entry if entry["run"] is not None else None

    def _end(self, number: int, *, is_stopped: bool) -> None:
        one = self.running.pop(number)
        outcome = one.outcome(is_stopped=is_stopped)
        is_hopeless = outcome["exit_code"] == _USAGE or is_stopped
        if outcome["status"] == FAILED and one.attempts < _ATTEMPTS and not is_hopeless:
            self.tell(f"{self._title(number)}: failed{_reason(outcome)}; once more")
            self._start(number, one.attempts + 1)
            return
        self._record(number, one.key, outcome)

    def _record(self, number: int, key: str, outcome: dict[str, Any]) -> None:
        entry = {"parameters": self.points[number], **outcome}
        if self.sweep.metric is not None and outcome["status"] == FINISHED:
            entry["metric"] = _metric_of(answer_of(self.folder, key), self.sweep.metric)
        self.known[key] = entry
        _write_state(self.folder / _STATE, self.known)
        if entry["status"] == INTERRUPTED:
            return
        missing = ""
        if self.sweep.method == "bayes" and entry.get("metric") is None:
            missing = f" (no metric {self.sweep.metric})"
        seconds = f"{entry['seconds']:.0f} s"
        told = f"{entry['status']} after {seconds}{_reason(entry)}{missing}"
        self.tell(f"{self._title(number)}: {told}")
        self.results[number] = {**entry, "started": True}


def _reason(entry: Mapping[str, Any]) -> str:
    return f": {entry['error']}" if entry.get("error") else ""


def key_of(line: Sequence[str]) -> str:
    """A name of a run from its command line, without the path of the interpreter."""
    words = [part for part in line if part not in {sys.executable, "/usr/bin/env"}]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]


def _is_finished(entry: Mapping[str, Any]) -> bool:
    """Whether a run is finished and its directory, if known, still exists."""
    run = entry.get("run")
    return entry.get("status") == FINISHED and (run is None or Path(run).is_dir())


def answer_of(folder: Path, key: str) -> Path:
    """The file for the JSON object of a run."""
    return folder / "logs" / f"{key}.json"


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


@dataclass
class _Running:
    """One run, started."""

    process: subprocess.Popen[bytes]
    key: str
    log: Path
    answer: Path
    attempts: int
    began: float

    @classmethod
    def start(
        cls, line: Sequence[str], folder: Path, key: str, lock: int | None, attempts: int
    ) -> _Running:
        """Start it.

        Raises:
            OSError: If there is no such program.
        """
        log, answer = folder / "logs" / f"{key}.log", answer_of(folder, key)
        log.parent.mkdir(exist_ok=True)
        answer.unlink(missing_ok=True)
        ours = {RESULT_FILE: str(answer.absolute()), SWEEP: str(folder.absolute())}
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(line),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ours},
                pass_fds=() if lock is None else (lock,),
                start_new_session=True,  # a Ctrl-C reaches it once, through us
            )
        return cls(process, key, log, answer, attempts, time.monotonic())

    def outcome(self, *, is_stopped: bool) -> dict[str, Any]:
        """What became of it, after its end."""
        code = self.process.wait()
        status = FINISHED if code == 0 else INTERRUPTED if is_stopped else FAILED
        return {
            "status": status,
            "exit_code": code,
            "seconds": time.monotonic() - self.began,
            "attempts": self.attempts,
            "log": str(self.log),
            "error": None if code == 0 else _last_line(self.log),
            **_answered_runs(self.answer),
        }


@contextmanager
def _signals_passed_on(running: Mapping[int, _Running]) -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM on to the runs as SIGTERM, and remember that they came."""
    seen: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        for one in list(running.values()):
            one.process.terminate()

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


def _metric_of(answer: Path, name: str) -> float | None:
    """A metric that the program named in its JSON, or that its run recorded last."""
    try:
        document = json.loads(answer.read_text(encoding="utf-8"))
        metrics = document.get("metrics", {})
        if name not in metrics and document.get("run"):
            lines = Path(document["run"], "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            found = [line for line in map(json.loads, lines) if name in line]
            metrics = found[-1] if found else {}
        value = float(metrics[name])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return value if math.isfinite(value) else None


def _read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a bayes sweep so far."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        document = None
    if not isinstance(document, list) or not all(isinstance(one, dict) for one in document):
        raise OmnisparseError(f"{path}: cannot be read; delete it to start the sweep again")
    return document


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
