"""A thread beside the training that ends a job which stands still, and says which process it was.

In a job of several processes a reader that hangs, or a process that is stopped, leaves the others
waiting in a sum that never comes; the launcher sees only processes that live. So every process says
now and then where it is, in the store with which the job was started. Who waits for whom can be
read from that, and one process says it in one line before all end.

Only training steps have a limit. Preparing, evaluating and saving take as long as they take, but a
process that does not answer at all any more ends the job there, too, and while data is prepared a
line tells from time to time that it still goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

from omnisparse.console import format_seconds
from omnisparse.errors import OmnisparseError

PREPARING, READING, STEPPING, WAITING, OTHER, ENDED = (
    "preparing", "reading its batch", "computing", "waiting", "saving or evaluating", "ended",
)  # fmt: skip
_LIMITED = (READING, STEPPING)
_EVERY = 1.0
_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_TO_NAME = 4.0
_PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


class LostProcessError(OmnisparseError):
    """Another process of the job has gone; a sum with it failed."""


@dataclass(frozen=True)
class Beat:
    """What a process said of itself last.

    Attributes:
        number: Counts its messages.
        place: ``pid 12 on host``.
        phase: What it does.
        step: Optimizer steps that it has done.
        seconds: How long it has done that, when it said so.
    """

    number: int
    place: str
    phase: str
    step: int
    seconds: float


def stalled(beats: Mapping[int, Beat], timeout: float) -> list[int]:
    """The processes on which a job has waited for more than ``timeout`` seconds; mostly none.

    A process that reads, or that is a step behind, holds up those that compute. Where all compute
    the same step, they wait for each other, and all are named.
    """
    limited = {rank: beat for rank, beat in beats.items() if beat.phase in _LIMITED}
    if len(limited) < len([beat for beat in beats.values() if beat.phase != ENDED]):
        return []  # one evaluates, saves or prepares: that has no limit
    if not any(beat.seconds > timeout for beat in limited.values()):
        return []
    first = min(beat.step for beat in limited.values())
    behind = {rank: beat for rank, beat in limited.items() if beat.step == first}
    readers = [rank for rank, beat in behind.items() if beat.phase == READING]
    return sorted(readers or behind)


class Watchdog:
    """Watches the processes of one training.

    Args:
        timeout: Seconds that a training step may take, its batch included; 0 for no limit.
        rank: This process.
        world_size: Processes of the job.
        store: Where they tell each other; None for one process.
        tell: Called now and then while data is prepared.
        every: Seconds between two looks.
        seconds_between_lines: Seconds between two lines of ``tell``.
        end: Ends the process with a code, whatever its main thread does.
    """

    def __init__(
        self,
        *,
        timeout: float,
        rank: int = 0,
        world_size: int = 1,
        store: Any = None,
        tell: Callable[[str], None] = lambda line: None,
        every: float | None = None,
        seconds_between_lines: float = _SECONDS_BETWEEN_LINES,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.timeout, self.rank, self.world_size = timeout, rank, world_size
        self._store, self._tell, self._end = store, tell, end
        self._every = every or min(max(_EVERY, world_size / 16), timeout / 4 or _EVERY)
        self._between_lines = seconds_between_lines
        self._place = f"pid {os.getpid()} on {socket.gethostname()}"
        self._now: tuple[str, int, float] = (PREPARING, 0, time.monotonic())
        self._count = 0
        self._seen: dict[int, tuple[Beat, float]] = {}
        self._line, self._line_at = "", time.monotonic()
        self._stop = threading.Event()
        self._began = time.monotonic()

    # -- what the training tells it ----------------------------------------------------------

    def at(self, phase: str, step: int = 0) -> None:
        """This process now does ``phase``, with ``step`` optimizer steps done."""
        self._now = (phase, step, time.monotonic())

    @contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """This process does ``phase`` within the body, and then again what it did before."""
        before, step, _ = self._now
        self.at(phase, step)
        try:
            yield
        finally:
            self.at(before, step)

    def stage(self, line: str) -> None:
        """Tell a line about the preparation, and repeat it while what it names takes long."""
        self._line, self._line_at = line, time.monotonic()
        self._tell(line)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch within the body."""
        self._began = time.monotonic()
        with contextlib.suppress(Exception):  # where this process is, should it end at once
            self._say()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=5)
            self.at(ENDED, self._now[1])
            with contextlib.suppress(Exception):  # the store ends with the process that keeps it
                self._say()

    def raise_if_lost(self, error: RuntimeError) -> None:
        """If an error says that a peer has gone, raise one that says which.

        Raises:
            LostProcessError: If so.
        """
        if self.world_size == 1 or not any(words in str(error) for words in _PEER_GONE):
            return
        self.timeout = 0.0  # it is said below
        time.sleep(min(_SECONDS_TO_NAME, 4 * self._every) if self._store is not None else 0)
        now = time.monotonic()
        peers = [rank for rank in range(self.world_size) if rank != self.rank]
        lost = self._silent(now, 2.5 * self._every)
        who = self._names(lost or peers)
        gone = "has gone" if len(lost) == 1 or self.world_size == 2 else "have gone, or one of them"
        raise LostProcessError(
            f"{who} {gone} at step {self._now[1]}: the job ends; the same command continues from "
            "its newest checkpoint"
        ) from error

    # -- the thread --------------------------------------------------------------------------

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._every):
            now = time.monotonic()
            late, before = now - before - self._every, now
            if late > 3 * self._every:  # all of this process stood still: no time has passed here
                phase, step, since = self._now
                self._now = (phase, step, since + late)
                self._seen = {rank: (beat, at + late) for rank, (beat, at) in self._seen.items()}
                self._began += late
            self._show_preparation(now)
            try:
                self._say()
                self._listen(now)
            except Exception:
                if self._now[0] not in _LIMITED:
                    continue  # the process that keeps it may have ended well; sums say if not
            if self.timeout:
                self._judge(now)

    def _show_preparation(self, now: float) -> None:
        phase, _, since = self._now
        if phase == PREPARING and self.rank == 0 and now - self._line_at >= self._between_lines:
            self._line_at = now
            doing = f" ({self._line})" if self._line else ""
            self._tell(f"still preparing after {format_seconds(now - since)}{doing}")

    def _say(self) -> None:
        phase, step, since = self._now
        self._count += 1
        beat = Beat(self._count, self._place, phase, step, time.monotonic() - since)
        if self._store is None:
            self._seen[self.rank] = (beat, time.monotonic())
        else:
            self._store.set(self._key(self.rank), json.dumps(astuple(beat)))

    def _listen(self, now: float) -> None:
        if self._store is None:
            return
        for rank in range(self.world_size):
            if self._store.check([self._key(rank)]):
                beat = Beat(*json.loads(self._store.get(self._key(rank))))
                known = self._seen.get(rank)
                if known is None or known[0].number != beat.number:
                    self._seen[rank] = (beat, now)

    def _judge(self, now: float) -> None:
        beats = {rank: beat for rank, (beat, _) in self._seen.items()}
        guilty = stalled(beats, self.timeout)
        # Who does not answer is why the others wait, also if that began a little later.
        silent = []
        if guilty or self._silent(now, self.timeout):
            silent = self._silent(now, min(3 * self._every, self.timeout))
        if silent:
            self._end_job(
                f"{self._names(silent)} {_have(silent)} not answered for "
                f"{now - min(self._heard(rank) for rank in silent):.0f} s (step {self._now[1]})"
            )
        elif guilty:
            beat = beats[guilty[0]]
            self._end_job(
                f"{self._names(guilty)} {_have(guilty)} been {beat.phase} for {self.timeout:g} s "
                f"after step {beat.step}"
            )

    def _silent(self, now: float, seconds: float) -> list[int]:
        """The other processes that have said nothing for more than some seconds."""
        return [
            rank
            for rank in range(self.world_size)
            if rank != self.rank
            and now - self._heard(rank) > seconds
            and (rank not in self._seen or self._seen[rank][0].phase != ENDED)
        ]

    def _heard(self, rank: int) -> float:
        """When a process said something last, or when this began to listen."""
        return self._seen[rank][1] if rank in self._seen else self._began

    def _end_job(self, what: str) -> None:
        is_first = True
        with contextlib.suppress(Exception):
            is_first = self._store is None or self._store.add(self._key("ended"), 1) == 1
        if is_first:
            start = "\r\x1b[2K" if os.isatty(2) else ""
            line = (
                f"{start}omnisparse: error: {what} (training.timeout); the job ends, the same "
                "command continues from its newest checkpoint\n"
            )
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
        self._stop.set()
        self._end(1)

    def _names(self, ranks: Sequence[int]) -> str:
        places = [
            f"{rank} of {self.world_size}"
            + (f" ({self._seen[rank][0].place})" if rank in self._seen else "")
            for rank in ranks
        ]
        return f"process{'es' if len(ranks) > 1 else ''} {', '.join(places)}"

    def _key(self, name: int | str) -> str:
        # The store outlives a restart of all processes by torchrun.
        return f"omnisparse/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{name}"


def _have(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def job_store() -> Any:
    """A connection of its own to the store of this job; None for one process."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return None
    store: Any = distributed.distributed_c10d._get_default_store()
    # Its connection is locked while another thread waits in it.
    return store.clone()
