"""A forked process reads sound files whatever a thread of its parent was doing."""

import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnisparse.data import decoding
from omnisparse.data.decoding import read_stretch

LOCKS = {
    "soundfile's": soundfile.SoundFile._sf_error_lock,
    "of the files kept": decoding._Kept._lock,
    "of the error stream": decoding._quiet_lock,
}


@pytest.mark.parametrize("lock", LOCKS.values(), ids=list(LOCKS))
def test_a_lock_held_by_a_thread_does_not_stop_a_forked_process(
    lock: threading.Lock, tmp_path: Path
) -> None:
    path = tmp_path / "tone.mp3"
    soundfile.write(path, np.sin(np.arange(8000) / 9) / 2, 16000)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        child = multiprocessing.get_context("fork").Process(
            target=read_stretch, args=(path, 100, 200)
        )
        child.start()
        child.join(60)
        hangs = child.is_alive()
        child.kill()
        child.join()
    finally:
        done.set()
        thread.join()
    assert not hangs
    assert child.exitcode == 0
