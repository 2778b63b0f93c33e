"""Damaged and forged files: a typed error or the right tensors, and no more memory than stated."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnisparse.artifact import (
    NestedFile,
    inspect_artifact,
    read_artifact,
    read_nested,
    write_nested,
)
from omnisparse.artifact.nested_format import PREAMBLE_BYTES
from omnisparse.errors import FormatError

FILES = ("config.json", "model.safetensors", "tokenizer.model", "tokens.txt")
MAX_EXPANSION = 512
SLACK_BYTES = 8_000_000
"""What reading costs whatever the file: parsed headers, chunks, the interpreter's own."""

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


def check(read: Callable[[], dict[str, Tensor]], original: dict[str, Tensor], files: int) -> bool:
    """Whether reading gave the original tensors; anything but that or FormatError fails."""
    tracemalloc.reset_peak()
    try:
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


def inspect(folder: Path) -> dict[str, Tensor]:
    inspect_artifact(folder)
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
        intact = check(partial(read_state, folder), original, files)
        # Behind a false seal another sound net may stand; without one, nothing damaged passes.
        assert sealed or intact == (damaged == sound[name])
        check(partial(inspect, folder), {}, files)
        for file, data in sound.items():
            (folder / file).write_bytes(data)
    tracemalloc.stop()


def fuzz_nested(tmp_path: Path, net_with: Callable[..., Any], cases: int, seed: int) -> None:
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
        intact = check(partial(read_size, path, size), originals[size], len(damaged))
        assert damage is forge_nested or intact == (damaged[:used] == sound[:used])
    tracemalloc.stop()


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
