"""Starting several processes on CPUs, where accelerate's own launcher starts only one.

On a machine without accelerators, ``accelerate launch --num_processes 2`` runs the script only once
and prints no message (accelerate 1.x: only MPI starts more). So a recipe first calls
:func:`ensure_cpu_processes`, which in this case replaces the process with torchrun and the
requested number of processes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, DynamoBackend, InitProcessGroupKwargs
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import (  # a function hides the module of this name
    _env_rendezvous_handler,
    register_rendezvous_handler,
)

from omnisparse.errors import OmnisparseError
from omnisparse.training.fully_sharded import is_asked_for
from omnisparse.training.precision import Precision, choose_precision, has_bf16

DISTRIBUTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)
"""Supported distributed types; FSDP of version 2 (see `fully_sharded`)."""

_FURTHEST_LAUNCHER = 3
"""Generations above a process of a training in which its launcher is looked for."""

_LAUNCHER = re.compile(r"(^|/)(launch|accelerate-launch|launch\.py|accelerate\.commands\.launch)$")


def make_accelerator(precision: Precision | None = None) -> Accelerator:
    """Return the accelerator of this process; on machines without one, gloo on CPUs.

    Args:
        precision: ``training.precision``; None takes what the launcher says. Where the device has
            no bf16 the accelerator's is fp32: see :func:`precision_of`.

    Raises:
        OmnisparseError: If the launcher asks for a precision, an accumulation of gradients, a way
            to distribute or a compiler that this loop does not train with, or for another
            precision than the configuration.
    """
    # One process may render a corpus and compute its features for hours while the others wait.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=12), init_method=_meeting_place())
    on_cuda = torch.cuda.is_available()
    wanted = choose_precision(precision, launcher_says())
    if wanted == "bf16" and not has_bf16("cuda" if on_cuda else "cpu"):
        wanted = "fp32"
    mixed = "bf16" if wanted == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # of another training of this process
    accelerator = Accelerator(
        cpu=not on_cuda,
        mixed_precision=mixed,
        kwargs_handlers=[patience],
    )
    _refuse_other_loops(accelerator)
    if on_cuda and wanted == "bf16":
        torch.backends.cuda.matmul.allow_tf32 = True  # for what stays float32
        torch.backends.cudnn.allow_tf32 = True
    return accelerator


def _meeting_place() -> str | None:
    """The ``init_method`` of this job; None for the usual one.

    torchrun keeps one store over all restarts (torch 2.11), and torch puts the addresses of the
    processes under the same names each time: a process that is started again may read the address
    of one that is dead, and never reach it. So each restart has names of its own.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restart == "0" or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None

    def after_restart(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
        usual = _env_rendezvous_handler(url, **options)
        for store, rank, world_size in usual:
            yield PrefixStore(f"restart-{restart}", store), rank, world_size

    with suppress(RuntimeError):  # of an earlier training of this process
        register_rendezvous_handler("restart", after_restart)  # type: ignore[no-untyped-call]
    return "restart://"


def wants_bf16(precision: Precision | None) -> bool:
    """Whether configuration or launcher ask for bf16, whatever the device can do."""
    return choose_precision(precision, launcher_says()) == "bf16"


def launcher_says() -> str | None:
    """What accelerate's launcher was asked for, in its own words; None where it says nothing.

    It hands on ``no`` whether it was asked for that or for nothing. So its command line is read;
    ``no`` of its configuration file, which is a default there, counts as nothing.
    """
    handed_on = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if handed_on != "no":
        return handed_on
    asked = launcher_options(_launcher_command()).get("mixed_precision")
    return None if asked is None else asked.lower()


def precision_of(accelerator: Accelerator) -> Precision:
    """The precision that an accelerator's forward passes have."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def _refuse_other_loops(accelerator: Accelerator) -> None:
    """Refuse settings of the launcher that this loop does not support or supports only partly."""
    steps = accelerator.gradient_accumulation_steps
    if steps != 1:  # accelerate would divide every gradient by it
        raise OmnisparseError(
            f"gradient accumulation over {steps} steps is not supported; legal: 1 (the "
            "size of a batch is data.batch_seconds)"
        )
    if accelerator.distributed_type not in DISTRIBUTED:
        raise OmnisparseError(
            f"distributed type {accelerator.distributed_type.value} is not supported; legal: "
            + ", ".join(kind.value for kind in DISTRIBUTED)
        )
    version = os.environ.get("FSDP_VERSION", "1")
    if is_asked_for() and version != "2":
        raise OmnisparseError(f"FSDP of version {version} is not supported; legal: 2")
    dynamo = accelerator.state.dynamo_plugin.backend
    if dynamo != DynamoBackend.NO:
        raise OmnisparseError(f"dynamo backend {dynamo.value} is not supported; legal: NO")


def ensure_cpu_processes() -> None:
    """Start the number of CPU processes requested from accelerate's launcher, if it did not."""
    if torch.cuda.is_available() or "WORLD_SIZE" in os.environ:
        return
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return  # not started by accelerate's launcher
    asked = requested_processes(_launcher_command())
    if asked < 2:
        return
    threads = os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // asked)))
    print(f"{asked} CPU processes of {threads} thread(s) each, through torchrun", file=sys.stderr)
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={asked}"]
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *arguments, *sys.argv])


def requested_processes(command: Sequence[str]) -> int:
    """Return the number of processes that an ``accelerate launch`` command line asks for.

    Args:
        command: The launcher's arguments; read up to the training script.
    """
    options = launcher_options(command)
    if not options:
        return 1
    asked = options.get("num_processes") or _from_file(options.get("config_file"))
    return int(asked) if asked.isdigit() else 1


def launcher_options(command: Sequence[str]) -> dict[str, str]:
    """Options of an ``accelerate launch`` command line, with underscores; empty for any other.

    Args:
        command: The launcher's arguments; read up to the training script.
    """
    launcher = [index for index, part in enumerate(command) if _LAUNCHER.search(part)]
    options: dict[str, str] = {}
    rest = list(command[launcher[0] + 1 :]) if launcher else []
    for index, argument in enumerate(rest):
        if argument.endswith(".py"):
            break  # the training script; its own arguments follow
        name, equals, value = argument.partition("=")
        following = rest[index + 1] if index + 1 < len(rest) else ""
        options[name.replace("-", "_").lstrip("_")] = value if equals else following
    return options


def _launcher_command() -> list[str]:
    """Command line of the accelerate launcher that started this process; empty if none did.

    Between the two may be torchrun, which :func:`ensure_cpu_processes` starts.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return []
    process: psutil.Process | None = psutil.Process()
    for _ in range(_FURTHEST_LAUNCHER):
        try:
            process = process.parent() if process is not None else None
            command = [] if process is None else process.cmdline()
        except psutil.Error:  # of another user, or gone
            return []
        if any(_LAUNCHER.search(part) for part in command):
            return command
    return []


def _from_file(path: str | None) -> str:
    """Return ``num_processes`` of accelerate's own YAML file, or an empty string."""
    if path is None:
        return ""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return ""
    return str(document.get("num_processes", "")) if isinstance(document, dict) else ""
