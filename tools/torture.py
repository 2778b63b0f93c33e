"""Kills, stops, fills the disk of and damages trainings, and checks that nothing is lost by it.

    python tools/torture.py --kills 50 --processes 1,2 --out /tmp/torture [--report FILE.md]

Every training is a process of its own, forked from this one after the imports, so that fifty of
them take minutes; it runs the verb ``train`` as the command line does. Two processes are two such
forks joined by gloo. A run is started, hurt and started again until it is done; then its last
checkpoint must equal that of a run which nothing disturbed, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer  # noqa: F401 - what the trainings import late costs every fork seconds
import sentencepiece  # noqa: F401
import torch
import torch._dynamo

from omnisparse.cli.main import verbs
from omnisparse.config import config_from_dict, config_to_yaml
from omnisparse.data.corpora import load_manifest  # noqa: F401 - before the forks
from omnisparse.errors import FormatError
from omnisparse.evaluation.evaluate import Decoder
from omnisparse.pipeline import training_parts
from omnisparse.pipeline.train import train  # noqa: F401 - before the forks
from omnisparse.synthetic.corpus import SyntheticConfig, prepare_synthetic
from omnisparse.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
)

CORPUS = SyntheticConfig(preset="assistant-easy", hours=0.02)
SAVE_EVERY = 4
PATIENCE = 120.0
PEER_SECONDS = 20.0
_PLACES = ("preparing", "evaluating")


def make_config(folder: Path, corpora: Path, *, steps: int) -> Path:
    """A net that trains in milliseconds; its configuration file."""
    document = {
        "name": "torture",
        "corpus": {
            "synthetic": {"preset": CORPUS.preset, "hours": CORPUS.hours}, "root": str(corpora)
        },
        "data": {"vocab_size": 40, "batch_seconds": 20, "max_batch_size": 6, "max_seconds": 15},
        "model": {
            "kind": "las", "encoder_layers": 2, "encoder_dim": 24, "embedding_dim": 8,
            "decoder_dim": 24, "attention_dim": 8, "attention_heads": 2,
        },
        "method": {
            "kind": "sandwich", "min_size": "40%", "warmup_fraction": 0.2, "shrink_fraction": 0.0,
            "refresh_every": 3,
        },
        "training": {
            "max_steps": steps, "checkpoint_every": SAVE_EVERY, "log_every": 3, "warmup_steps": 2,
            "ema": 0.9, "evaluate_every": 10, "evaluate_utterances": 4,
            "threads": 1, "timeout": 60,
        },
        "tracking": {"wandb": "off"},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(config_to_yaml(config_from_dict(document)), encoding="utf-8")
    return path


@dataclass
class Job:
    """The processes of one training.

    Args:
        config: Its configuration file.
        run: Its run directory.
        processes: How many.
        hurt: Called in each process before it begins, such as to set a limit; with its rank.
        overrides: ``key=value`` after the configuration.
    """

    config: Path
    run: Path
    processes: int = 1
    hurt: Callable[[int], None] = lambda rank: None
    overrides: Sequence[str] = ()
    pids: list[int] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What its processes said on stderr."""
        return self.run.with_name(f"{self.run.name}.log")

    def start(self) -> Job:
        """Fork."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.log.unlink(missing_ok=True)
        for rank in range(self.processes):
            pid = os.fork()
            if pid == 0:
                self._be(rank, port)
            self.pids.append(pid)
        return self

    def _be(self, rank: int, port: int) -> None:
        """Be one of its processes, to the end."""
        code = 70
        try:
            descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
            sys.__stderr__ = sys.stderr
            if self.processes > 1:
                os.environ |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                    "WORLD_SIZE": str(self.processes), "MASTER_PORT": str(port),
                    "LOCAL_WORLD_SIZE": str(self.processes),
                }  # fmt: skip
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            self.hurt(rank)
            words = ["train", str(self.config), "--out", str(self.run), *self.overrides]
            verbs(words, prog_name="omnisparse")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Exit codes of its processes, a signal as its negative number.

        Raises:
            TimeoutError: If one is still there; all are killed then.
        """
        codes = []
        end = time.monotonic() + seconds
        for pid in self.pids:
            while True:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes.append(os.waitstatus_to_exitcode(status))
                    break
                if time.monotonic() > end:
                    self.kill()
                    raise TimeoutError(f"a process is still there after {seconds} s")
                time.sleep(0.005)
        self.pids = []
        return codes

    def kill(self, rank: int | None = None) -> None:
        """``kill -9`` of one process, or of all."""
        for pid in self.pids if rank is None else [self.pids[rank]]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Wait for something; whether it came before the job ended."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end or not self.is_alive():
                return False
            time.sleep(0.001)
        return True

    def is_alive(self) -> bool:
        """Whether none of its processes has ended; none is waited for."""
        return all(
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            for pid in self.pids
        )


def newest_step(run: Path) -> int:
    """Step of the newest whole checkpoint; -1 for none."""
    for path in reversed(list_checkpoints(run / "checkpoints")):
        with suppress(FormatError):
            return load_checkpoint(path).step
    return -1


def differences(run: Path, reference: Path) -> list[str]:
    """What differs between the last checkpoints of two runs, and between their records."""
    one, other = (load_newest(path / "checkpoints") for path in (run, reference))
    assert one is not None
    assert other is not None
    found = [] if one.step == other.step else [f"step {one.step}, not {other.step}"]
    for stem, tensors in other.tensors.items():
        mine = one.tensors.get(stem, {})
        found += [f"{stem}: other names"] if mine.keys() != tensors.keys() else [
            f"{stem}/{name}" for name, tensor in tensors.items()
            if not torch.equal(tensor, mine[name])
        ]  # fmt: skip
    lines = [
        [
            {key: value for key, value in json.loads(line).items() if not key.endswith("_seconds")}
            for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for path in (run, reference)
    ]
    return found + (["metrics.jsonl"] if lines[0] != lines[1] else [])


class Torture:
    """Tortures trainings of one number of processes.

    Args:
        folder: For everything; emptied.
        corpora: Folder of the embedded corpus.
        processes: Of each training.
        steps: Of each training, at least 12.
        seed: Of what is done when.
    """

    def __init__(
        self, folder: Path, corpora: Path, *, processes: int, steps: int, seed: int
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.processes = folder, processes
        self.config = make_config(folder, corpora, steps=steps)
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lost: list[int] = []
        self.failures: list[str] = []
        self.run = folder / "run"
        self.reference = folder / "reference"
        started = time.monotonic()
        codes = self._job(self.reference).start().wait()
        self.seconds = time.monotonic() - started
        assert codes == [0] * processes, self._job(self.reference).log.read_text()

    def _job(self, run: Path | None = None, **options: Any) -> Job:
        return Job(self.config, run or self.run, self.processes, **options)

    def _fail(self, what: str, job: Job) -> None:
        said = job.log.read_text(errors="replace")[-1500:] if job.log.exists() else ""
        self.failures.append(f"{what}: {said}")

    # -- what is done ------------------------------------------------------------------------

    def kills(self, number: int) -> None:
        """``kill -9`` in training and in saving, by turns, until there were ``number``."""
        while self.counts["kills"] < number:
            is_saving = self.counts["kills"] % 2 == 1
            job = self._job().start()
            before = newest_step(self.run)
            victim = self.random.randrange(self.processes)
            if is_saving:
                skipped = self.random.randrange(4)
                met = job.until(lambda s=skipped, j=job: self._saves_again(j, s))
                if met:
                    time.sleep(self.random.uniform(0, 0.004))
            else:
                end = time.monotonic() + self.random.uniform(0, self.seconds)
                met = job.until(lambda e=end: time.monotonic() > e)
            if not met:
                self._finish(job)
                continue
            reached = self._last_line()
            job.kill(victim)
            if not job.log.exists() or not job.log.stat().st_size:
                job.kill()  # they have not met yet: only a launcher can end the others
            self.counts["kills"] += 1
            self.counts["kills in saving" if is_saving else "kills in training"] += 1
            try:
                job.wait(PEER_SECONDS)  # the others must not wait for it
            except TimeoutError:
                self._fail(f"the peers of process {victim} did not end", job)
                job.wait()
            after = newest_step(self.run)
            if after < before:
                self._fail(f"step {before} was saved, {after} is left", job)
            self.lost.append(max(0, reached - max(after, 0)))
            if self.lost[-1] > SAVE_EVERY:
                self._fail(f"{self.lost[-1]} steps are lost", job)
        self.settle()

    def _saves_again(self, job: Job, skipped: int) -> bool:
        """Whether a save is going on, after ``skipped`` others in this start."""
        seen = getattr(job, "seen", None)
        partial = {path.name for path in (self.run / "checkpoints").glob(".step-*.partial")}
        if seen is None:
            seen = job.seen = set(partial)  # type: ignore[attr-defined]
            job.saves = 0  # type: ignore[attr-defined]
            return False
        if partial - seen:
            seen |= partial
            job.saves += 1  # type: ignore[attr-defined]
            return bool(job.saves > skipped)  # type: ignore[attr-defined]
        return False

    def _last_line(self) -> int:
        """The last step of which the run speaks."""
        with suppress(OSError, ValueError, IndexError):
            text = (self.run / "metrics.jsonl").read_text(encoding="utf-8")
            return int(json.loads(text.splitlines()[-1])["step"])
        return 0

    def flips(self, number: int) -> None:
        """One flipped bit in the newest checkpoint: the run goes on from the one before."""
        for _ in range(number):
            shutil.rmtree(self.run, ignore_errors=True)
            job = self._job().start()
            checkpoints = self.run / "checkpoints"
            enough = f"step-{SAVE_EVERY * (2 + self.random.randrange(2)):08d}"
            job.until(lambda c=checkpoints, n=enough: newest_name(c) >= n)
            job.kill()
            job.wait()
            newest, before = list_checkpoints(checkpoints)[-1], list_checkpoints(checkpoints)[-2]
            file = self.random.choice(sorted(newest.iterdir()))
            content = bytearray(file.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            file.write_bytes(content)
            self.counts["flipped bytes"] += 1
            job = self._job()
            self._finish(job.start())
            told = job.log.read_text(errors="replace")
            if told.count("passed over") != 1 or f"{before.name} is the newest" not in told:
                self._fail(f"{file.name} of {newest.name} flipped, and not told once", job)
            self._compare(job)

    def full_disk(self) -> None:
        """The disk is full when a checkpoint is to be written; later there is room again."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir()
        mounted = os.geteuid() == 0 and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "torture", str(self.run)],
            capture_output=True, check=False,
        ).returncode == 0  # fmt: skip
        self.counts["full disks (tmpfs)" if mounted else "full disks (limit on files)"] += 1
        try:
            job = self._job().start()
            job.until(lambda: newest_name(self.run / "checkpoints") >= f"step-{SAVE_EVERY:08d}")
            job.kill()
            job.wait()
            whole = newest_step(self.run)
            hurt: Callable[[int], None] = lambda rank: None  # noqa: E731
            filler = self.run / "filler"
            if mounted:
                self._fill(filler)
            else:
                hurt = limit_files
            job = self._job(hurt=hurt).start()
            codes = job.wait()
            if 1 not in codes:
                self._fail(f"a full disk ended with {codes}", job)
            if "Traceback" in job.log.read_text(errors="replace"):
                self._fail("a full disk ended with a traceback", job)
            if newest_step(self.run) < whole:
                self._fail("a full disk destroyed a checkpoint", job)
            filler.unlink(missing_ok=True)
            self.settle()
        finally:
            if mounted:
                subprocess.run(["umount", str(self.run)], check=False)

    def _fill(self, filler: Path) -> None:
        """Leave room for a few lines, and for less than a checkpoint."""
        size = sum(file.stat().st_size for file in list_checkpoints(
            self.run / "checkpoints")[-1].iterdir())  # fmt: skip
        free = shutil.disk_usage(self.run).free
        filler.write_bytes(bytes(free - size // 2))

    def stops(self) -> None:
        """SIGTERM while preparing, and while evaluating."""
        for place in _PLACES:
            shutil.rmtree(self.run, ignore_errors=True)
            flag = self.folder / "here"
            flag.unlink(missing_ok=True)
            job = self._job(hurt=lambda rank, p=place, f=flag: pause_in(p, f)).start()
            if not job.until(flag.exists):
                self._fail(f"never {place}", job)
            for pid in job.pids:  # as a scheduler does
                os.kill(pid, signal.SIGTERM)
            codes = job.wait()
            self.counts[f"SIGTERM while {place}"] += 1
            if set(codes) != {143}:
                self._fail(f"SIGTERM while {place} ended with {codes}", job)
            if place == "evaluating" and newest_step(self.run) != 10:
                self._fail(f"step {newest_step(self.run)} is saved, not 10", job)
            self.settle()

    def stalls(self) -> None:
        """Of two processes, one hangs in its reader, is stopped by a signal, or is killed."""
        if self.processes < 2:
            return
        seconds = 4.0
        what = {
            "reading its batch for": lambda rank: hang_in_reader() if rank == 1 else None,
            "not answered for": lambda rank: None,
            "has gone at step": lambda rank: None,
        }
        for said, hurt in what.items():
            shutil.rmtree(self.run, ignore_errors=True)
            job = self._job(hurt=hurt, overrides=[f"training.timeout={seconds:g}"]).start()
            if not job.until(lambda: newest_step(self.run) >= SAVE_EVERY):
                self._fail("no checkpoint", job)
            victim, started = job.pids[1], time.monotonic()
            if said.startswith("not"):
                os.kill(victim, signal.SIGSTOP)
            elif said.startswith("has"):
                job.kill(1)
            job.until(lambda: False, 5 * seconds + PEER_SECONDS)  # until one has ended
            survivor = job.pids[0]
            while os.waitid(os.P_PID, survivor, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                if time.monotonic() - started > 5 * seconds + PEER_SECONDS:
                    self._fail(f"{said}: process 0 is still there", job)
                    break
                time.sleep(0.01)
            job.kill(1)
            codes = job.wait()
            lines = [
                line for line in job.log.read_text(errors="replace").splitlines()
                if line.startswith("omnisparse: error: process 1 of 2 (pid") and said in line
            ]  # fmt: skip
            if codes[0] != 1 or len(lines) != 1:
                self._fail(f"{said}: {len(lines)} lines, codes {codes}", job)
            self.counts[f"{said} ..."] += 1
            self.settle()

    # -- what must hold ----------------------------------------------------------------------

    def settle(self) -> None:
        """Let the run end, undisturbed, and compare it with the reference."""
        if self.run.exists():
            self._finish(self._job().start(), keep=True)
            for path in self.run.iterdir():  # it may be a mount
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _finish(self, job: Job, *, keep: bool = False) -> None:
        codes = job.wait()
        if codes != [0] * self.processes:
            self._fail(f"started again, it ended with {codes}", job)
        else:
            self._compare(job)
        if not keep:
            shutil.rmtree(self.run, ignore_errors=True)

    def _compare(self, job: Job) -> None:
        if not self.run.exists():
            return
        self.counts["runs compared"] += 1
        found = differences(self.run, self.reference)
        if found:
            self._fail(f"differs from the undisturbed run in {', '.join(found[:4])}", job)


def newest_name(checkpoints: Path) -> str:
    """Name of the newest checkpoint, which sorts by its step; empty for none."""
    found = list_checkpoints(checkpoints)
    return found[-1].name if found else ""


def limit_files(rank: int) -> None:
    """A disk that takes only small files, where none can be mounted."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def pause_in(place: str, flag: Path) -> None:
    """Say when this process is at ``place``, and stay there for some time."""
    if place == "evaluating":
        run = Decoder.run

        def slow(self: Decoder, *arguments: Any) -> Any:
            flag.touch()
            time.sleep(1)
            return run(self, *arguments)

        Decoder.run = slow  # type: ignore[method-assign]
        return
    source = training_parts.frame_source

    def slow_store(*arguments: Any) -> Any:
        flag.touch()
        time.sleep(2)
        return source(*arguments)

    training_parts.frame_source = slow_store


def hang_in_reader() -> None:
    """Let the reader of this process give a few batches and then no more."""
    from omnisparse.data.batching import TrainingBatches

    batches = TrainingBatches.__iter__

    def few(self: TrainingBatches) -> Iterator[Any]:
        for number, batch in enumerate(batches(self)):
            if number > SAVE_EVERY:
                time.sleep(1000)
            yield batch

    TrainingBatches.__iter__ = few


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the whole torture; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="for each number of processes")
    parser.add_argument("--flips", type=int, default=5)
    parser.add_argument("--parts", default="kills,flips,full_disk,stops,stalls")
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpora", type=Path, help="folder that holds the embedded corpus")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(given.out)
    corpora = given.corpora or given.out / "corpora"
    prepare_synthetic(CORPUS, corpora / f"{CORPUS.preset}-{CORPUS.hours:g}h-{CORPUS.seed}")
    rows, failures = [], []
    for processes in map(int, given.processes.split(",")):
        started = time.monotonic()
        torture = Torture(
            given.out / f"{processes}",
            corpora,
            processes=processes,
            steps=given.steps,
            seed=given.seed,
        )
        for part in given.parts.split(","):
            number = {"kills": [given.kills], "flips": [given.flips]}.get(part, [])
            getattr(torture, part)(*number)
        rows.append({
            "processes": processes, **torture.counts,
            "most_steps_lost": max(torture.lost, default=0),
            "failures": len(torture.failures), "seconds": round(time.monotonic() - started, 1),
        })  # fmt: skip
        failures += torture.failures
    print(json.dumps({"rows": rows, "save_every": SAVE_EVERY, "steps": given.steps}))
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
