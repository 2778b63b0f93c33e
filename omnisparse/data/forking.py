"""Locks that a forked process may take, whoever held them in its parent.

Processes that read in advance are forked. A lock that another thread of the parent holds at that
moment would stay locked in the child for ever: the thread that would give it back does not exist
there. soundfile has one around every opening of a file, so a thread that reads is enough.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

L = TypeVar("L")


def renewed_by_fork(lock: L) -> L:
    """Have ``lock`` unlocked in every process that is forked from now on; returns it.

    Args:
        lock: A ``threading.Lock`` or ``RLock``.
    """
    # As Python's own logging and threading do; neither exists where there is no fork.
    renew: Any = getattr(lock, "_at_fork_reinit", None)
    if renew is not None and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return lock
