"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1 as a request: the training ends after a complete step.

While there is no step to complete (reading data, computing features, decoding hypotheses of a
teacher) it ends at once: what is prepared so far is kept or left out as a whole. An evaluation on
the dev split is given up, and done again by the run that continues.

One stop may arrive as several signals: ``timeout -s INT`` signals its child and then the process
group of both, and torchrun forwards to every process a signal that the terminal has already sent.
So signals that follow the first one within a short time count as the same stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from omnisparse.errors import OmnisparseError

STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
"""Signals that ask a training to stop: a person, a scheduler, a scheduler's early warning."""

SAME_PRESS_SECONDS = 2.0
"""A signal that follows the first one within this time counts as the same stop."""
SAME_PRESS_SECONDS_LAUNCHED = 10.0
"""The same under torchrun, which handles a signal only when it next checks its processes."""


class InterruptedTrainingError(OmnisparseError):
    """A signal ended the training early; what was trained is in a checkpoint.

    Args:
        number: The signal.
        step: Optimizer steps done.
        max_steps: Optimizer steps of the whole run.
        checkpoint: The folder of the checkpoint.
    """

    on_every_process = True

    def __init__(self, number: int, step: int, max_steps: int, checkpoint: Path) -> None:
        self.exit_code = 128 + number
        self.number = number
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step} of {max_steps}: the "
            f"checkpoint {checkpoint} is whole, the same command continues from there"
            + _launchers_words()
        )


class InterruptedPreparationError(InterruptedTrainingError):
    """A signal ended the training before it took a step.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number, self.exit_code = number, 128 + number
        OmnisparseError.__init__(
            self,
            f"stopped by {signal.Signals(number).name} while preparing: no trained step is lost, "
            "the same command continues" + _launchers_words(),
        )


class EvaluationAbandonedError(OmnisparseError):
    """A signal arrived during an evaluation, which is given up."""


class _StopNow(KeyboardInterrupt):
    """Raised by the handler.

    No ``Exception``: a library that takes any of these for a bad recording must not take this for
    one.
    """


class StopSignals:
    """Records the first signal within :meth:`caught`, and reports it at once.

    A second Ctrl-C ends at once, without waiting for the step or a checkpoint.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._owner = os.getpid()
        self._is_caught = False
        self._is_at_once = False

    @property
    def flags(self) -> list[float]:
        """1 for the signal that arrived, 0 for the others; to be added over processes."""
        return [float(number == self.number) for number in STOPPING]

    @staticmethod
    def first_of(flags: Sequence[float]) -> int | None:
        """The signal in flags that were summed over processes; None if there is none."""
        return next((n for n, flag in zip(STOPPING, flags, strict=True) if flag > 0), None)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals; outside the main thread, signal handlers are not changed.

        After a signal, the handlers of the caller are restored only when no repetition of that
        signal is expected any more. Within itself it changes nothing.
        """
        if self._is_caught:
            yield
            return
        self._is_caught = True
        try:
            previous = {number: signal.signal(number, self._remember) for number in STOPPING}
        except ValueError:  # not the main thread
            previous = {}
        try:
            yield
        finally:
            self._is_caught = False
            for number, handler in previous.items():
                if isinstance(handler, _Echo):  # of a training that was stopped just before
                    handler = handler.previous
                late = self.number is not None and self._is_echo()
                signal.signal(number, _Echo(self, handler) if late else handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within :meth:`caught`: a signal ends the body where it is, but see :meth:`after_step`.

        Raises:
            InterruptedPreparationError: If one arrives.
        """
        self._is_at_once = True
        try:
            yield
        except _StopNow:
            assert self.number is not None
            raise InterruptedPreparationError(self.number) from None
        finally:
            self._is_at_once = False

    @contextmanager
    def after_step(self) -> Iterator[None]:
        """Within :meth:`at_once`: a signal is only recorded, and the body must ask for it."""
        before, self._is_at_once = self._is_at_once, False
        try:
            yield
        finally:
            self._is_at_once = before

    def abandon_evaluation(self) -> None:
        """What an evaluation calls after every part of its work.

        Raises:
            EvaluationAbandonedError: If a signal has arrived.
        """
        if self.number is not None:
            raise EvaluationAbandonedError("the evaluation is given up: a signal arrived")

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker that was forked: nothing here is its to save
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if self._is_at_once:
                raise _StopNow
            name = signal.Signals(number).name
            _say(
                "saving; press again to abandon" if name == "SIGINT" else f"saving: {name} arrived"
            )
        elif number == signal.SIGINT and not self._is_echo():
            raise KeyboardInterrupt("abandoned: the checkpoint before stays the newest")

    def _is_echo(self) -> bool:
        """Whether a signal that arrives now counts as the first one."""
        torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        seconds = SAME_PRESS_SECONDS_LAUNCHED if torchrun else SAME_PRESS_SECONDS
        return time.monotonic() - self._since < seconds


class _Echo:
    """Ignores repetitions of the first signal and passes all others on to the caller's handler.

    Args:
        signals: The record of the first signal.
        previous: The caller's handler.
    """

    def __init__(self, signals: StopSignals, previous: signal._HANDLER) -> None:
        self.signals, self.previous = signals, previous

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.signals._is_echo():
            signal.signal(number, self.previous)
            os.kill(os.getpid(), number)


def _say(text: str) -> None:
    """Write one line at once; a handler must not use Python's buffers, which it may interrupt."""
    if os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):
        start = "\r\x1b[2K" if os.isatty(2) else ""  # a progress bar, and the ^C of the terminal
        os.write(2, f"{start}omnisparse: {text}\n".encode())


def _launchers_words() -> str:
    """Where accelerate's launcher or torchrun started this process, whose the lines below are."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    return "; what follows is the launcher's" if launched else ""
