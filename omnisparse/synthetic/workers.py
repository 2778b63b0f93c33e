"""Processes that render the embedded corpus in parallel; results keep the order of the plan."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import omnisparse
from omnisparse.errors import DataError
from omnisparse.synthetic.audio import Utterance

CHUNK = 16
"""Utterances that a worker renders per request."""


class Workers:
    """Rendering processes. A thread for each of them exchanges lines of JSON with it.

    The processes are new interpreters, not forks and not ``multiprocessing``: espeak-ng has one
    state per process, the caller may have threads, and such a worker ends by itself when its
    parent is killed.

    Args:
        settings: First line for every process; see ``synthetic.audio.serve``.
        num_jobs: Number of processes.
    """

    def __init__(self, settings: dict[str, Any], num_jobs: int) -> None:
        self._settings = settings
        self._num_jobs = num_jobs
        self._local = threading.local()
        self._processes: list[subprocess.Popen[str]] = []
        self._finished = False

    def __enter__(self) -> Workers:
        self._pool = ThreadPoolExecutor(self._num_jobs)
        return self

    def __exit__(self, *exception: object) -> None:
        # Kill at once: after a failure, nobody needs the utterances still being rendered.
        for process in self._processes:
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()

    def render(self, plan: Iterator[Utterance]) -> Iterator[dict[str, Any]]:
        """Manifest lines in the order of ``plan``, until :meth:`finish` is called."""
        self._finished = False
        pending: list[Future[list[dict[str, Any]]]] = []
        while True:
            while not self._finished and len(pending) < 2 * self._num_jobs:
                chunk = list(itertools.islice(plan, CHUNK))
                pending.append(self._pool.submit(self._request, chunk))
            if not pending:
                return
            yield from pending.pop(0).result()

    def finish(self) -> None:
        """Send no more requests; answers to earlier requests are still yielded."""
        self._finished = True

    def _request(self, chunk: list[Utterance]) -> list[dict[str, Any]]:
        process: subprocess.Popen[str] | None = getattr(self._local, "process", None)
        if process is None:
            process = self._start()
            self._local.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            request = json.dumps([dataclasses.asdict(utterance) for utterance in chunk])
            process.stdin.write(request + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise DataError(f"the process that spoke {chunk[0].id} died (exit {process.poll()})")
        lines = json.loads(answer)
        if isinstance(lines, dict):
            raise DataError(f"speaking {chunk[0].id} failed: {lines['error']}")
        return list(lines)

    def _start(self) -> subprocess.Popen[str]:
        search_path = [str(Path(omnisparse.__file__).parents[1]), *filter(None, sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}
        # FFTs of one utterance do not get faster with threads.
        environment.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
        process = subprocess.Popen(
            [sys.executable, "-c", "from omnisparse.synthetic.audio import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # the parent handles an interrupt
        )
        self._processes.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._settings) + "\n")
        return process
