"""SIGINT (Ctrl-C), SIGTERM and SIGUSR1 as a request: the training ends after a complete step.

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
    """A signal ended the training early; its checkpoint is written.

    Args:
        number: The signal.
        step: Optimizer steps done.
        max_steps: Optimizer steps of the whole run.
        checkpoint: The folder of the checkpoint.
    """

    on_every_process = True

    def __init__(self, number: int, step: int, max_steps: int, checkpoint: Path) -> None:
        self.exit_code = 128 + number
        launcher = "; what follows is the launcher's" if _is_launched() else ""
        super().__init__(
            f"stopped by {signal.Signals(number).name} at step {step} of {max_steps}: the "
            f"checkpoint {checkpoint} is whole, the same command continues from there{launcher}"
        )


class StopSignals:
    """Records the first signal within :meth:`caught`, and reports it at once.

    A second Ctrl-C ends at once, without waiting for the step or a checkpoint.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

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
        signal is expected any more.
        """
        try:
            previous = {number: signal.signal(number, self._remember) for number in STOPPING}
        except ValueError:  # not the main thread
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                if isinstance(handler, _Echo):  # of a training that was stopped just before
                    handler = handler.previous
                late = self.number is not None and self._is_echo()
                signal.signal(number, _Echo(self, handler) if late else handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
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


def _is_launched() -> bool:
    """Whether accelerate's launcher or torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
