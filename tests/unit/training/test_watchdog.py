"""Jobs that stand still: who is named, what is forgiven, what is told while data is prepared."""

from __future__ import annotations

import time
from typing import Any

import pytest

from omnisparse.training.watchdog import (
    ENDED,
    OTHER,
    PREPARING,
    READING,
    STEPPING,
    WAITING,
    Beat,
    LostProcessError,
    Watchdog,
    stalled,
)


def beats(*given: tuple[str, int, float]) -> dict[int, Beat]:
    return {rank: Beat(1, "pid 1 on here", *one) for rank, one in enumerate(given)}


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([(STEPPING, 5, 11.0), (READING, 5, 11.0)], [1]),  # its reader hangs
        ([(STEPPING, 5, 11.0), (STEPPING, 4, 11.0)], [1]),  # a step behind
        ([(READING, 6, 11.0), (STEPPING, 5, 2.0)], [1]),
        ([(STEPPING, 5, 11.0), (STEPPING, 5, 11.0)], [0, 1]),  # each waits for the other
        ([(STEPPING, 5, 9.0), (READING, 5, 9.0)], []),
        ([(WAITING, 5, 99.0), (OTHER, 5, 99.0)], []),  # evaluating has no limit
        ([(STEPPING, 5, 99.0), (OTHER, 5, 99.0)], []),
        ([(PREPARING, 0, 99.0), (PREPARING, 0, 99.0)], []),
        ([(STEPPING, 5, 11.0), (ENDED, 5, 99.0)], [0]),
    ],
)
def test_the_process_that_the_others_wait_for_is_named(
    given: list[tuple[str, int, float]], named: list[int]
) -> None:
    assert stalled(beats(*given), 10.0) == named


class Store:
    """What a job's store does for its processes."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> Any:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def add(self, key: str, value: int) -> int:
        self.values[key] = self.values.get(key, 0) + value
        return int(self.values[key])


def test_a_reader_that_hangs_ends_both_processes_by_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    store, codes = Store(), []
    dogs = [
        Watchdog(timeout=0.3, rank=rank, world_size=2, store=store, every=0.05, end=codes.append)
        for rank in range(2)
    ]
    dogs[0].at(STEPPING, 7)
    dogs[1].at(READING, 7)
    with dogs[0].running(), dogs[1].running():
        deadline = time.monotonic() + 20
        while len(codes) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert codes == [1, 1]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("omnisparse: error: process 1 of 2 (pid ")
    assert "has been reading its batch for 0.3 s after step 7 (training.timeout)" in line


def test_a_process_that_does_not_answer_is_named_even_while_data_is_prepared(
    capfd: pytest.CaptureFixture[str],
) -> None:
    store, codes = Store(), []
    silent = Watchdog(timeout=0.3, rank=1, world_size=2, store=store)
    silent._say()
    alive = Watchdog(timeout=0.3, rank=0, world_size=2, store=store, every=0.05, end=codes.append)
    with alive.running():
        deadline = time.monotonic() + 20
        while not codes and time.monotonic() < deadline:
            time.sleep(0.02)
    assert codes == [1]
    assert "process 1 of 2 (pid" in (line := capfd.readouterr().err)
    assert "has not answered for 0 s (step 0)" in line
    with pytest.raises(LostProcessError, match=r"process 1 of 2 \(pid .*\) has gone at step 0"):
        alive.raise_if_lost(RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"))
    alive.raise_if_lost(RuntimeError("shapes differ"))


def test_a_process_that_stops_while_others_wait_in_a_step_is_named_and_not_they(
    capfd: pytest.CaptureFixture[str],
) -> None:
    store, codes = Store(), []
    Watchdog(timeout=9.0, rank=1, world_size=2, store=store)._say()
    alive = Watchdog(timeout=1.0, rank=0, world_size=3, store=store, every=0.05, end=codes.append)
    alive.at(STEPPING, 4)
    with alive.running():
        deadline = time.monotonic() + 20
        while not codes and time.monotonic() < deadline:
            time.sleep(0.02)
    line = capfd.readouterr().err
    # The third was never heard of.
    assert "processes 1 of 3 (pid" in line
    assert "2 of 3 have not answered for 1 s (step 4)" in line


def test_preparing_has_no_limit_and_tells_that_it_goes_on() -> None:
    told: list[str] = []
    codes: list[int] = []
    dog = Watchdog(
        timeout=0.1, tell=told.append, every=0.02, seconds_between_lines=0.1, end=codes.append
    )
    dog.stage("features of 300 utterances")
    with dog.running():
        deadline = time.monotonic() + 20
        while len(told) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
    assert codes == []
    assert told[0] == "features of 300 utterances"
    assert all(line.startswith("still preparing after 0.") for line in told[1:3])
    assert all(line.endswith("s (features of 300 utterances)") for line in told[1:3])


def test_what_stood_still_as_a_whole_is_forgiven() -> None:
    codes: list[int] = []
    dog = Watchdog(timeout=0.5, every=0.05, end=codes.append)
    dog.at(STEPPING, 3)
    look = dog._judge
    stops = [1.0]

    def stop_then_look(now: float) -> None:
        if stops:
            time.sleep(stops.pop())  # as SIGSTOP of the whole process
        look(now)

    dog._judge = stop_then_look  # type: ignore[method-assign]
    with dog.running():
        time.sleep(1.3)
        assert codes == []
        deadline = time.monotonic() + 20
        while not codes and time.monotonic() < deadline:
            time.sleep(0.02)
    assert codes == [1]
