"""README's `torchrun` lines and its Slurm script, run as they stand: two processes on this machine,
a small network, a few images.

Slurm itself is played by scripts of the names that the script calls.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import SLURM, commands
from test_readme_tour import NETWORK, images

from fastcl_cli.data.pack import pack

TINY = shlex.join([*NETWORK, "--set", "batch=8", "--set", "knn=none", "--ui", "plain"])
SRUN = """#!/bin/bash
# Two tasks on one node, with the variables of Slurm 22.05; ends as the worse of them.
export SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost \\
    SLURM_STEP_TASKS_PER_NODE=2 SLURM_NODEID=0 SLURMD_NODENAME=localhost
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
for task in "${tasks[@]}"; do wait $task || worst=$?; done
exit ${worst:-0}
"""
SCONTROL = '#!/bin/bash\necho "$@" >> requeued\n'


def free_port(low: int) -> int:
    """One of ten thousand from ``low`` on that nothing listens at."""
    for port in range(low + os.getpid() % 5000, low + 10_000):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", port)):
                return port
    raise AssertionError("no port is free")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    images(tmp_path / "photos", ["cats", "dogs"], 12)
    (tmp_path / "shared").mkdir()
    for folder in (tmp_path, tmp_path / "shared"):
        pack(tmp_path / "photos", folder / "photos.beton")
    return tmp_path


def here(text: str, place: Path, options: str) -> str:
    """The commands of a text for this machine: its folder, its address, a run that is small."""
    text = text.replace("/shared/", f"{place}/shared/")
    text = text.replace("gpu1:29500", f"localhost:{free_port(30_000)}")
    small, count = re.subn(r" run moco_opt\b", rf"\g<0> {TINY} {options}", text)
    assert count == 1
    return small


def environment(place: Path) -> dict[str, str]:
    """The programs of this Python first, and before them those that a test has put into ``bin``."""
    programs = [str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(programs), "SLURM_JOB_ID": job_of(place)}


def job_of(place: Path) -> str:
    """A job whose processes meet at a free port: 20000 and its number."""
    number = place / "job"
    if not number.exists():
        number.write_text(str(free_port(20_000) - 20_000))
    return number.read_text()


def shell(text: str, place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", "-c", text], cwd=place, env=environment(place), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_torchrun_on_one_machine(place: Path) -> None:
    """One process speaks, and a dry run writes nothing."""
    (line,) = [line for line in commands("torchrun") if "--nnodes" not in line]
    process = shell(here(line.replace("-node 8", "-node 2"), place, "--dry-run"), place)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert out.count(", 2 processes") == 1
    assert not (place / "runs").exists()


def test_torchrun_on_two_machines(place: Path) -> None:
    """Both machines are this one, each with one process."""
    (line,) = [line for line in commands("torchrun") if "--nnodes" in line]
    line = here(line.replace("-node 8", "-node 1"), place, "--dry-run")
    machines = [shell(line, place) for _ in range(2)]
    outputs = [machine.communicate(timeout=180) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert sum(out.count(", 2 processes") for out, _ in outputs) == 1
    assert sum(str(place / "shared" / "runs" / "first") in out for out, _ in outputs) == 1


def program(place: Path, name: str, text: str) -> None:
    path = place / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_the_slurm_script_runs(place: Path) -> None:
    program(place, "srun", SRUN)
    program(place, "scontrol", SCONTROL)
    process = shell(here(SLURM, place, "--max-steps 2"), place)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.count("done after 2 steps") == 1
    folder = place / "shared" / "runs" / "first"
    assert json.loads((folder / "config.json").read_text())["processes"] == 2
    assert (folder / "checkpoints" / "step-00000002.safetensors").exists()
    assert not (place / "requeued").exists()


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (0, False), (1, False), (130, False)])
def test_the_slurm_script_queues_what_was_stopped_again(
    status: int, requeued: bool, tmp_path: Path
) -> None:
    program(tmp_path, "srun", f"#!/bin/bash\nexit {status}\n")
    program(tmp_path, "scontrol", SCONTROL)
    process = shell(SLURM, tmp_path)
    assert process.wait() == status
    calls = tmp_path / "requeued"
    assert (calls.read_text() if calls.exists() else None) == (
        f"requeue {job_of(tmp_path)}\n" if requeued else None
    )


def test_the_slurm_script_asks_for_a_task_for_each_gpu() -> None:
    """And that what ends a task in time is what a run takes as a warning."""
    asked = dict(re.findall(r"--([\w-]+) (\S+)", "".join(re.findall("#SBATCH.*", SLURM))))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked["signal"].split("@")[0] == "TERM"
