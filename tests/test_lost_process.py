"""Whole runs of two processes: by torchrun itself, and with each of them killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_distributed import SCHEDULE
from test_run import STEPS, cli, metrics, wait_for_step, weights, without_clock

OPTIONS = ["--log-every", "1", "--save-every", "4"]
END_S = 60
"""How soon a run must be over once one of its processes is gone."""


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schedule") / "test.fcs"
    path.write_text(SCHEDULE)
    return path


@pytest.fixture(scope="module")
def whole(schedule: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by plain torchrun that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "fastcl_cli", "run", str(schedule), "--out", str(out), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", 2 processes") == done.stdout.count("done after 24 steps") == 1
    return out


def kill(launcher: subprocess.Popen[str], rank: int) -> None:
    """SIGKILL for one of the processes that a launcher started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    (process,) = (
        int(child)
        for child in children
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )
    os.kill(process, signal.SIGKILL)


def test_a_run_that_loses_each_of_its_processes_ends_as_torchruns(
    schedule: Path, whole: Path, tmp_path: Path
) -> None:
    """Process 0, which writes, then process 1; the launcher says so at once, and the run goes on
    to the same bytes as the undisturbed one of another launcher."""
    out = tmp_path / "run"
    command = ["run", str(schedule), "--gpus", "2", "--out", str(out), "--resume", "auto", *OPTIONS]
    for rank, step in ((0, 5), (1, 10)):
        process = cli(*command)
        wait_for_step(process, out, step)
        kill(process, rank)
        began = time.monotonic()
        _, stderr = process.communicate(timeout=2 * END_S)
        assert time.monotonic() - began < END_S
        assert process.returncode == 1
        assert stderr.startswith(f"error: process {rank} of 2 was killed by SIGKILL\nhelp: ")
        assert "`--resume auto`" in stderr and stderr.count("\n") == 2
        assert step <= len(metrics(out)) < STEPS
    process = cli(*command)
    stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    assert f"resumed from {out / 'checkpoints' / 'step-0000'}" in stdout
    assert weights(out) == weights(whole)
    assert without_clock(metrics(out)) == without_clock(metrics(whole))
