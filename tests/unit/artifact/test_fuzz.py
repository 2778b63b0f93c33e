"""Damaged and forged files: a typed error or the right tensors, in bounded time and memory.

Every case is held to :data:`MAX_EXPANSION` bytes of allocations per byte of file (traced, which
covers numpy), a whole run to the same in resident memory (which covers torch), and every case to
:data:`CPU_SECONDS`: a hang is a failure.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omnisparse.artifact import inspect_artifact, read_artifact
from omnisparse.errors import FormatError
from omnisparse.nested import NestedFile, inspect_nested, read_nested, write_nested
from omnisparse.nested.format import MAX_EXPANSION, PREAMBLE_BYTES, max_tensors
from omnisparse.sparsity.budget import Budget

FILES = ("config.json", "model.safetensors", "tokenizer.model", "tokens.txt")
SLACK_BYTES = 8_000_000
"""What reading costs whatever the file: parsed headers, chunks, the interpreter's own."""

RESIDENT_SLACK_BYTES = 96_000_000
"""What a run of cases adds to resident memory whatever the files: arenas, caches, reports."""

RESIDENT_IS_KNOWN = os.access("/proc/self/clear_refs", os.W_OK)
"""Linux; elsewhere traced memory is all there is."""

CPU_SECONDS = 5.0
WALL_SECONDS = 120.0
"""Limits of one case; it takes milliseconds. CPU time does not depend on what else is running."""

NUMBERS = (-1, 0, 1, 7, 8, 255, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, 1e308)
JUNK = (*NUMBERS, None, True, "", "F32", "I8", "\x00", [], {}, [2**40, 2**40], [1, [2, [3]]])


def flip(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 16))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncate(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def extend(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 8, 4096)))


def overwrite(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 8, 64))) + data[at + 8 :]


def mutate_json(value: Any, chance: random.Random) -> Any:
    """The same document with one node replaced, removed, renamed or repeated."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        action = chance.random()
        rest = {name: item for name, item in value.items() if name != key}
        if action < 0.1:
            return rest
        if action < 0.2:
            return {**rest, chance.choice(["", "x", key + "_", "__metadata__"]): value[key]}
        return {**value, key: mutate_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        action = chance.random()
        if action < 0.1:
            return value[:at] + value[at + 1 :]
        if action < 0.2:
            return [*value, value[at]]
        return [*value[:at], mutate_json(value[at], chance), *value[at + 1 :]]
    if type(value) is int and chance.random() < 0.6:
        return value + chance.choice((-8, -1, 1, 8, 2**32))
    return chance.choice(JUNK)


def forge_header(data: bytes, chance: random.Random) -> bytes:
    """A safetensors header rewritten, its length kept true."""
    length = int.from_bytes(data[:8], "little")
    text = json.dumps(mutate_json(json.loads(data[8 : 8 + length]), chance)).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def forge_nested(data: bytes, chance: random.Random) -> bytes:
    """A nested header rewritten under a true checksum; or a section forged likewise."""
    length = int.from_bytes(data[12:16], "little")
    header = json.loads(data[PREAMBLE_BYTES : PREAMBLE_BYTES + length])
    body = bytearray(data[PREAMBLE_BYTES + length :])
    if chance.random() < 0.5:
        header = mutate_json(header, chance)
    else:
        at = chance.randrange(len(body))
        body[at : at + 1] = chance.randbytes(1)
        start = 0
        for section in header["sections"]:
            section[2] = hashlib.sha256(body[start : start + section[1]]).hexdigest()
            start += section[1]
    text = json.dumps(header).encode()
    numbers = data[:12] + len(text).to_bytes(4, "little")
    return numbers + hashlib.sha256(text).digest() + text + bytes(body)


def seal(folder: Path) -> None:
    """Give a forged artifact checksums that fit, so that the checks behind them are reached."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        ours = config["omnisparse"]
        for name in FILES[1:]:
            ours["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        ours["config_sha256"] = "0" * 64
        text = json.dumps(config)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (folder / "config.json").write_text(text.replace("0" * 64, digest))
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # the config itself is what was damaged


class Hang(BaseException):
    """A case took longer than its limit; no code under test catches it."""


@contextmanager
def limited_time(cpu: float = CPU_SECONDS, wall: float = WALL_SECONDS) -> Iterator[None]:
    """Fails what takes longer than ``cpu`` seconds of processor time, or ``wall`` seconds."""

    def stop(number: int, _: object) -> None:
        raise Hang(f"stopped by {signal.Signals(number).name}")

    clocks = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, stop) for number in clocks}
    try:
        signal.setitimer(signal.ITIMER_PROF, cpu)
        signal.setitimer(signal.ITIMER_REAL, wall)
        yield
    finally:
        for number, clock in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


@contextmanager
def limited_memory() -> Iterator[list[int]]:
    """Fails if resident memory grows by more than the files (listed by the body) may cost."""
    largest = [0]
    if not RESIDENT_IS_KNOWN:
        yield largest
        return

    def resident(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(key))
        return int(line.split()[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    yield largest
    grown = resident("VmHWM") - before
    assert grown <= MAX_EXPANSION * max(largest) + RESIDENT_SLACK_BYTES


def check(read: Callable[[], dict[str, Tensor]], original: dict[str, Tensor], files: int) -> bool:
    """Whether reading gave the original tensors; anything but that or FormatError fails."""
    tracemalloc.reset_peak()
    try:
        with limited_time():
            state = read()
    except FormatError as error:
        message = str(error)
        state = None
    peak = tracemalloc.get_traced_memory()[1]
    assert peak <= MAX_EXPANSION * files + SLACK_BYTES
    if state is None:
        assert "\n" not in message
        return False
    for name, tensor in state.items():
        assert not tensor.is_floating_point() or tensor.isfinite().all(), name
    return state.keys() == original.keys() and all(
        torch.equal(state[name], original[name]) for name in original
    )


def read_state(folder: Path) -> dict[str, Tensor]:
    return read_artifact(folder).state


def inspect(path: Path) -> dict[str, Tensor]:
    inspect_artifact(path) if path.is_dir() else inspect_nested(path)
    return {}


def read_size(path: Path, size: int) -> dict[str, Tensor]:
    try:
        return read_nested(path, size).state
    except ValueError as error:
        if "out of range" not in str(error):
            raise
        # The forged net is smaller than the size asked for.
        raise FormatError(str(error)) from None


def fuzz_artifacts(tmp_path: Path, net_with: Callable[..., Any], cases: int, seed: int) -> None:
    with limited_memory() as largest:
        _fuzz_artifacts(tmp_path, net_with, cases, seed, largest)


def _fuzz_artifacts(
    tmp_path: Path, net_with: Callable[..., Any], cases: int, seed: int, largest: list[int]
) -> None:
    chance = random.Random(seed)
    variants = [
        {"precision": "fp32"},
        {"precision": "fp16", "block": (8, 1)},
        {"precision": "int8"},
        {"precision": "bf16", "format": "dense"},
    ]
    tracemalloc.start()
    for case in range(cases):
        if case % max(1, cases // len(variants)) == 0:
            options = variants[case // max(1, cases // len(variants)) % len(variants)]
            folder = tmp_path / f"artifact{case}"
            net_with(block=options.get("block", (1, 1))).write(folder, **options)
            original = read_artifact(folder).state
            sound = {name: (folder / name).read_bytes() for name in FILES}
        name = chance.choice((*FILES, "model.safetensors", "config.json"))
        damages = [flip, truncate, extend, overwrite]
        if name == "model.safetensors":
            damages.append(forge_header)
        if name == "config.json":
            damages.append(
                lambda data, chance: json.dumps(mutate_json(json.loads(data), chance)).encode()
            )
        damaged = chance.choice(damages)(sound[name], chance)
        (folder / name).write_bytes(damaged)
        sealed = chance.random() < 0.7
        if sealed:
            seal(folder)
        files = sum((folder / file).stat().st_size for file in FILES)
        largest[0] = max(largest[0], files)
        intact = check(partial(read_state, folder), original, files)
        # Behind a false seal another sound net may stand; without one, nothing damaged passes.
        assert sealed or intact == (damaged == sound[name])
        check(partial(inspect, folder), {}, files)
        for file, data in sound.items():
            (folder / file).write_bytes(data)
    tracemalloc.stop()


def fuzz_nested(tmp_path: Path, net_with: Callable[..., Any], cases: int, seed: int) -> None:
    with limited_memory() as largest:
        _fuzz_nested(tmp_path, net_with, cases, seed, largest)


def _fuzz_nested(
    tmp_path: Path, net_with: Callable[..., Any], cases: int, seed: int, largest: list[int]
) -> None:
    chance = random.Random(seed)
    keys = ("model", "tokenizer", "tokens_txt", "features", "prunable", "source", "buffers")
    precisions = ("fp32", "fp16", "int8")
    path = tmp_path / "damaged"
    tracemalloc.start()
    for case in range(cases):
        if case % max(1, cases // len(precisions)) == 0:
            precision = precisions[case // max(1, cases // len(precisions)) % len(precisions)]
            net = net_with(sparsity=0.0)
            contents = {key: net.contents[key] for key in keys}
            write_nested(tmp_path / "sound", state=net.state, precision=precision, **contents)
            sound = (tmp_path / "sound").read_bytes()
            nested = NestedFile(tmp_path / "sound")
            sizes = [band.nonzero for band in nested.bands] + [nested.bands[0].nonzero + 99]
            originals = {size: nested.read(size).state for size in sizes}
        damage = chance.choice((flip, truncate, extend, overwrite, forge_nested, forge_nested))
        damaged = damage(sound, chance)
        path.write_bytes(damaged)
        size = chance.choice(sizes)
        used = nested.prefix_bytes(size)
        largest[0] = max(largest[0], len(damaged))
        intact = check(partial(read_size, path, size), originals[size], len(damaged))
        assert damage is forge_nested or intact == (damaged[:used] == sound[:used])
        check(partial(inspect, path), {}, len(damaged))
    tracemalloc.stop()


def test_a_hang_would_be_seen():
    def endless() -> dict[str, Tensor]:
        while True:
            hashlib.sha256(b"x")

    with pytest.raises(Hang, match="SIGPROF"), limited_time(cpu=0.05):
        endless()
    with pytest.raises(Hang, match="SIGALRM"), limited_time(wall=0.05):
        time.sleep(10)


def test_too_much_memory_would_be_seen():
    def hungry() -> dict[str, Tensor]:
        return {"x": torch.from_numpy(np.ones(2_000_000))}

    tracemalloc.start()
    with pytest.raises(AssertionError):
        check(hungry, {}, 1000)
    tracemalloc.stop()


@pytest.mark.skipif(not RESIDENT_IS_KNOWN, reason="resident memory cannot be read here")
def test_too_much_resident_memory_would_be_seen():
    with pytest.raises(AssertionError), limited_memory():
        torch.ones(RESIDENT_SLACK_BYTES // 4 + 10_000_000)  # numpy's tracer does not see it


def listing(num_tensors: int, padding: int = 0) -> bytes:
    """A nested file of nothing but a header that lists tensors of one weight each."""
    tensors = [[f"w{index}", "F32", [1]] for index in range(num_tensors)]
    header = {
        "model": {}, "features": {}, "source": {}, "precision": "fp32", "floor": 0.0,
        "tensors": tensors, "prunable": [name for name, *_ in tensors], "buffers": [],
        "tokenizer_bytes": 0, "tokens_bytes": 0,
        "sections": [[0, 0, "0" * 64], [num_tensors, 4 * num_tensors, "0" * 64]],
    }  # fmt: skip
    text = json.dumps(header).encode() + b" " * padding
    numbers = (1).to_bytes(4, "little") + len(text).to_bytes(4, "little")
    return b"OMNINEST" + numbers + hashlib.sha256(text).digest() + text


def test_a_header_lists_no_more_tensors_than_its_file_has_room_for(tmp_path):
    (tmp_path / "n").write_bytes(listing(100_000))
    with limited_time(), pytest.raises(FormatError, match="lists 100000 tensors"):
        NestedFile(tmp_path / "n")
    few = listing(256)
    (tmp_path / "n").write_bytes(few)
    assert max_tensors(len(few)) > 256
    assert len(NestedFile(tmp_path / "n").header.tensors) == 256


def test_as_many_equal_tensors_as_a_header_may_list_are_shared_out_in_time(tmp_path):
    """Every tensor wants the next weight as much as any other: the worst case of the sharing."""
    data = listing(4000, padding=1_000_000)
    (tmp_path / "n").write_bytes(data)
    with limited_time():
        budget = NestedFile(tmp_path / "n").budget
        assert sum(budget.allocate_uniform(4000).values()) == 4000
        two = Budget({f"w{index}": (2,) for index in range(4000)}, list(budget.prunable))
        assert sum(two.allocate_uniform(6001).values()) == 6001


def test_a_few_damaged_artifacts(tmp_path, net_with):
    fuzz_artifacts(tmp_path, net_with, 180, seed=1)


def test_a_few_damaged_nested_files(tmp_path, net_with):
    fuzz_nested(tmp_path, net_with, 120, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_damaged_artifacts(tmp_path, net_with, seed):
    fuzz_artifacts(tmp_path, net_with, 1500, seed=100 + seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_damaged_nested_files(tmp_path, net_with, seed):
    fuzz_nested(tmp_path, net_with, 1000, seed=200 + seed)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"{}",
        b"null",
        b'{"omnisparse": {"format_version": true}}',
        b'{"omnisparse": {"format_version": ' + b"1" * 6000 + b"}}",
        b'{"omnisparse": NaN}',
        b"\xff\xfe",
    ],
)
def test_hostile_json(tmp_path, net_with, text):
    net_with().write(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_bytes(text)
    with pytest.raises(FormatError) as error:
        read_artifact(tmp_path / "a")
    assert len(str(error.value)) < 500
    path = tmp_path / "a" / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError):
        read_artifact(tmp_path / "a")
