"""The C kernels of two compilers, under sanitizers, and those of 64-bit Arm under emulation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = {"deploy": "sparse_kernels.c", "models": "bf16_kernels.c"}
CHECKS = {
    "deploy": Path(__file__).with_name("kernel_check.c"),
    "models": ROOT / "tests" / "unit" / "models" / "bf16_kernel_check.c",
}
EXPECTED = {"deploy": "checks at levels up to", "models": "whole layers"}
FLAGS = ["-std=gnu11", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"]
FLAGS += [f"-I{ROOT / 'omnisparse' / room}" for room in ROOMS]
CROSS = "aarch64-linux-gnu-gcc"

pytestmark = pytest.mark.slow


def need(*programs: str) -> list[str]:
    found = [shutil.which(program) for program in programs]
    missing = [name for name, place in zip(programs, found, strict=True) if place is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    return [place for place in found if place is not None]


def run(*command: str | Path, **environment: str) -> str:
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    return found.stdout


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_compilers_have_nothing_to_say(name: str, room: str, tmp_path: Path) -> None:
    (compiler,) = need(name)
    strict = ["-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-O3"]
    run(
        compiler, *strict, *FLAGS, ROOT / "omnisparse" / room / ROOMS[room], "-o", tmp_path / "x.so"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_no_kernel_reads_or_writes_beyond_its_arrays(room: str, tmp_path: Path) -> None:
    (compiler,) = need("gcc")
    program = tmp_path / "check"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O2"]
    run(compiler, *sanitizers, *FLAGS, CHECKS[room], "-o", program, "-lm")
    assert EXPECTED[room] in run(program, "200")


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_kernels_compute_what_they_should(name: str, room: str, tmp_path: Path) -> None:
    """As they are shipped: a sanitizer changes what a compiler makes of them."""
    (compiler,) = need(name)
    program = tmp_path / "check"
    run(compiler, "-O3", *FLAGS, CHECKS[room], "-o", program, "-lm")
    assert EXPECTED[room] in run(program, "200")


@pytest.mark.parametrize("room", ROOMS)
def test_kernels_of_arm_compute_the_same(room: str, tmp_path: Path) -> None:
    compiler, emulator = need(CROSS, "qemu-aarch64")
    program = tmp_path / "check"
    run(compiler, "-static", "-O3", *FLAGS, CHECKS[room], "-o", program, "-lm")
    expected = {"deploy": "checks at levels up to 3", "models": "without whole layers"}[room]
    assert expected in run(emulator, program, "50")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_wheel_for_every_python(machine: str, tmp_path: Path) -> None:
    """Needs the build backend from the package index."""
    if machine == "aarch64":
        need(CROSS)
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "runs", "data", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    target = "wheel-aarch64" if machine == "aarch64" else "wheel-x86_64"
    run("make", "-C", source, target, f"BIN={Path(sys.executable).parent}")
    (wheel,) = (source / "dist").glob("*.whl")
    assert re.fullmatch(rf"omnisparse-.*-py3-none-manylinux_2_17_{machine}\.whl", wheel.name)
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    for name in ("deploy/_sparse_kernels.so", "models/_bf16_kernels.so"):
        library = (tmp_path / "wheel" / "omnisparse" / name).read_bytes()
        assert library[:4] == b"\x7fELF"
        assert library[18] == {"x86_64": 62, "aarch64": 183}[machine]
        versions = re.findall(rb"GLIBC_2\.(\d+)", library)
        assert all(int(version) <= 17 for version in versions), versions
