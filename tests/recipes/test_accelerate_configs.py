"""The launcher's configurations are read by the installed accelerate, and do what they say."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from accelerate.utils import DistributedType

from omnisparse.training.fully_sharded import is_asked_for
from omnisparse.training.launch import requested_processes

FOLDER = Path(__file__).parents[2] / "recipes" / "configs" / "accelerate"
EXPECTED = {
    "cpu": (DistributedType.MULTI_CPU, 2, 1, "no"),
    "gpu": (DistributedType.NO, 1, 1, "bf16"),
    "gpus_8_ddp": (DistributedType.MULTI_GPU, 8, 1, "bf16"),
    "gpus_8_fsdp2": (DistributedType.FSDP, 8, 1, "bf16"),
    "nodes_2": (DistributedType.MULTI_GPU, 16, 2, "bf16"),
}


def test_every_file_is_known() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    kind, processes, machines, precision = EXPECTED[name]
    assert DistributedType(config.distributed_type) == kind
    assert (config.num_processes, config.num_machines) == (processes, machines)
    assert config.mixed_precision == precision
    assert config.use_cpu == (name == "cpu")


def launched(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, str]]:
    """What the launcher would give its processes; nothing is started."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), "train.py", "--config", "c.yaml"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    if EXPECTED[name][1] == 1:
        return args, prepare_simple_launcher_cmd_env(args)[1]
    return args, prepare_multi_gpu_env(args)


@pytest.mark.parametrize("name", ["gpu", "gpus_8_ddp", "gpus_8_fsdp2", "nodes_2"])
def test_processes_are_told_what_the_file_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [key for key in os.environ if key.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(variable)
    args, environment = launched(name, monkeypatch)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert args.num_processes == EXPECTED[name][1]
    sharded = name == "gpus_8_fsdp2"
    assert environment.get("ACCELERATE_USE_FSDP", "false") == str(sharded).lower()
    for key in ("ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        if key in environment:
            monkeypatch.setenv(key, environment[key])
    assert is_asked_for() == sharded
    assert not sharded or environment["FSDP_VERSION"] == "2"


def test_the_recipe_starts_the_processes_that_the_file_for_cpus_asks_for() -> None:
    command = ["accelerate", "launch", "--config_file", str(FOLDER / "cpu.yaml"), "train.py"]
    assert requested_processes(command) == 2


def test_the_batch_script_is_one_and_names_files_that_exist() -> None:
    script = FOLDER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --signal=TERM@300" in text
    for name in ("recipes/configs/accelerate/nodes_2.yaml", "recipes/train_supernet.py"):
        assert name in text
        assert (FOLDER.parents[2] / name).is_file()


def test_the_batch_script_asks_slurm_again_when_the_run_is_not_done(tmp_path: Path) -> None:
    """With a stand-in for each command of SLURM and for the launcher; their arguments are kept."""
    bins = tmp_path / "bin"
    bins.mkdir()
    log = tmp_path / "log"
    srun = '#!/bin/bash\nshift\nSLURM_NODEID=1 exec "$@"\n'
    scontrol = (
        f'#!/bin/bash\necho "scontrol $*" >> {log}\n[ "$1" = show ] && echo "n1\nn2"\nexit 0\n'
    )
    accelerate = f'#!/bin/bash\necho "accelerate $*" >> {log}\n[ -z "$SAVES" ] || mkdir -p $SAVES\n'
    accelerate += "exit ${CODE:-0}\n"
    for name, text in (("srun", srun), ("scontrol", scontrol), ("accelerate", accelerate)):
        (bins / name).write_text(text)
        (bins / name).chmod(0o755)
    environment = {
        **{"PATH": f"{bins}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[1-2]"},
        **{"SLURM_NNODES": "2", "SLURM_JOB_ID": "77"},
    }
    run = tmp_path / "run"
    for code, saves, again in ((0, "step-1", False), (1, "", False), (1, "step-2", True)):
        log.unlink(missing_ok=True)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        old = time.time() - 60
        for path in (run / "checkpoints", *(run / "checkpoints").iterdir()):
            os.utime(path, (old, old))
        done = subprocess.run(
            ["bash", str(FOLDER / "slurm.sbatch"), "c.yaml", str(run), "seed=3"],
            env={
                **environment,
                "CODE": str(code),
                "SAVES": str(run / "checkpoints" / saves) if saves else "",
            },
            check=False,
        )
        assert done.returncode == code
        text = log.read_text()
        assert "--machine_rank 1 --main_process_ip n1 --main_process_port 29500" in text
        assert "--num_processes 16" in text
        assert f"recipes/train_supernet.py --config c.yaml --out {run} seed=3" in text
        assert ("scontrol requeue 77" in text) == again
