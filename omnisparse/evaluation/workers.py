"""Processes that measure models: the same tasks in the same order, whoever does them.

A job is built once in each process (a net is loaded there) and then does tasks. How work is divided
into tasks does not depend on the number of processes, and results come in the order of the tasks.

The processes are new interpreters that read pickles from their parent alone, through a pipe. They
end by themselves when the parent is killed: then the pipe is at its end.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch

import omnisparse
from omnisparse.errors import OmnisparseError, UsageError
from omnisparse.evaluation.devices import devices_of, prepare_device


class Job(Protocol):
    """What the processes do; it must survive pickling."""

    def build(self, device: torch.device) -> Callable[[Any], Any]:
        """Load what is needed onto the device; the result does one task."""
        ...


class Workers:
    """Some processes, of which one is this process itself where there is only one.

    Args:
        num_jobs: Number of processes, at least 1.
        device: ``cpu``, ``cuda`` (the processes share all there are) or ``cuda:N``.

    Raises:
        UsageError: If an argument is not legal, or the device is not here.
    """

    def __init__(self, num_jobs: int = 1, device: str = "cpu") -> None:
        if num_jobs < 1:
            raise UsageError(f"jobs is {num_jobs}; it must be at least 1")
        self.num_jobs = num_jobs
        self.devices = devices_of(device, num_jobs)
        self._local = threading.local()
        self._processes: list[_Process] = []
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._job: Job | None = None
        self._number = 0
        self._pickled = b""
        self._do: Callable[[Any], Any] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is only this process, and its CPU."""
        return self.num_jobs == 1 and self.device.type == "cpu"

    @property
    def device(self) -> torch.device:
        """Of the first process."""
        return self.devices[0]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        """End the processes at once: nobody needs what they still do."""
        for process in self._processes:
            process.kill()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.close()
        self._processes, self._pool, self._local = [], None, threading.local()

    def map(self, job: Job, tasks: Iterable[Any]) -> Iterator[Any]:
        """Results of the tasks, in their order, while later ones are still done.

        Raises:
            OmnisparseError: If a process has died.
            Exception: What a task raised; the first one in order.
        """
        self._take(job)
        if self._do is not None:
            yield from map(self._do, tasks)
            return
        number, pickled = self._number, self._pickled
        futures = [self._threads().submit(self._ask, number, pickled, task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def prepare(self, job: Job) -> None:
        """Start all processes and build a job in each, so that its tasks are all that follows.

        Raises:
            OmnisparseError: If a process has died.
            Exception: What building it raised.
        """
        self._take(job)
        if self._do is not None:
            return
        number, pickled = self._number, self._pickled
        everyone = threading.Barrier(self.num_jobs)  # so that no thread takes two of the calls

        def prepare() -> None:
            everyone.wait()
            self._process().prepare(number, pickled)

        try:
            for future in [self._threads().submit(prepare) for _ in range(self.num_jobs)]:
                future.result()
        finally:
            everyone.abort()  # an interrupt leaves no thread waiting

    def map_items(self, job: Job, question: Any, items: Sequence[int]) -> list[Any]:
        """What a job finds for a question on each of some items, which the processes share.

        Args:
            job: Its tasks are a question and a tuple of items; it gives a value for each of these.
            question: Of all tasks.
            items: In the wanted order.

        Raises:
            OmnisparseError: If a process has died.
        """
        count = max(1, min(self.num_jobs, len(items)))
        shares = [tuple(items[first::count]) for first in range(count)]
        found: list[Any] = [None] * len(items)
        for first, values in enumerate(self.map(job, [(question, share) for share in shares])):
            found[first::count] = values
        return found

    def _take(self, job: Job) -> None:
        """Build a job here, or prepare it for the processes, unless it is the last one again."""
        if job is self._job:
            return
        self._job, self._do = job, None
        if self.num_jobs == 1:
            prepare_device(self.device)
            self._do = job.build(self.device)
            return
        self._number += 1
        self._pickled = pickle.dumps(job)

    def _threads(self) -> ThreadPoolExecutor:
        """A thread for each process."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_jobs, thread_name_prefix="measuring")
        return self._pool

    def _ask(self, number: int, job: bytes, task: Any) -> Any:
        return self._process().ask(number, job, task)

    def _process(self) -> _Process:
        """The process of this thread, started if it has none."""
        process: _Process | None = getattr(self._local, "process", None)
        if process is None:
            with self._lock:
                device = self.devices[len(self._processes)]
                process = _Process(device, max(1, torch.get_num_threads() // self.num_jobs))
                self._processes.append(process)
            self._local.process = process
        return process


class _Process:
    """One process, and the job that it has built."""

    def __init__(self, device: torch.device, num_threads: int) -> None:
        search_path = [str(Path(omnisparse.__file__).parents[1]), *filter(None, sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}
        environment["OMP_NUM_THREADS"] = str(num_threads)
        self._job: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from omnisparse.evaluation.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # the parent handles an interrupt
        )
        self._send(device)

    def prepare(self, number: int, job: bytes) -> None:
        """Build a job, if it is another than before, and wait until it is built."""
        self._answer(number, job, ("built", None))

    def ask(self, number: int, job: bytes, task: Any) -> Any:
        """Do a task of a job, which is sent if it is another than before."""
        return self._answer(number, job, ("task", task))

    def _answer(self, number: int, job: bytes, question: tuple[str, Any]) -> Any:
        try:
            if number != self._job:
                self._send(("job", job))
                self._job = number
            self._send(question)
            kind, answer = pickle.load(cast("BinaryIO", self._process.stdout))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise OmnisparseError(
                f"a process that measures died (exit {code}); fewer --jobs need less memory"
            ) from error
        if kind == "error":
            raise answer
        return answer

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """Wait for its end."""
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, message: Any) -> None:
        stream = cast("BinaryIO", self._process.stdin)
        pickle.dump(message, stream)
        stream.flush()


def serve() -> None:
    """What a process does: build jobs and do tasks until its input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    questions = sys.stdin.buffer
    device: torch.device = pickle.load(questions)
    prepare_device(device)
    do: Callable[[Any], Any] | None = None
    failed: Exception | None = None
    while True:
        try:
            kind, content = pickle.load(questions)
        except EOFError:
            return
        if kind == "job":
            do, failed = None, None
            try:
                do = pickle.loads(content).build(device)
            except Exception as error:  # it is the parent's to handle
                failed = error
            continue
        try:
            if failed is not None:
                raise failed
            assert do is not None
            reply: tuple[str, Any] = ("ok", do(content) if kind == "task" else None)
        except Exception as error:
            reply = ("error", _sendable(error))
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(reply, answers)
            answers.flush()


def _sendable(error: Exception) -> Exception:
    """The error itself where a pickle gives it back, else one with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return OmnisparseError(f"{type(error).__name__}: {error}")
    return error
