"""`run --gpus N`: N processes of the same command on this machine, by torchrun's elastic agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fastcl_cli.errors import RunFailedError, UsageError
from fastcl_cli.processes.joining import STATUS_FILE

_GRACE_S = 600
"""How long the processes may take, once told to stop, to finish a step and to save."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run ``fastcl ARGUMENTS`` in so many processes and wait for them.

    The process that fails first reports its error itself. SIGTERM and SIGINT are passed on.

    Returns:
        the exit status: 0, or that of the process that reported an error.

    Raises:
        UsageError: there are fewer GPUs.
        KeyboardInterrupt: interrupted before training began.
        RunFailedError: a process ended without a report.
    """
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        devices = torch.cuda.device_count()
        raise UsageError(f"--gpus {processes}: this machine has {devices}", f"--gpus {devices}")
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(_GRACE_S)
    # The agent's account of a failure is a page long, and the process has said why in a line.
    logging.disable(logging.ERROR)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    with tempfile.TemporaryDirectory(prefix="fastcl-") as folder:
        status = Path(folder) / "status"
        os.environ[STATUS_FILE] = str(status)
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "fastcl_cli", *arguments)
        except ChildFailedError as error:
            if status.exists():
                return int(status.read_text())
            rank, code = min(((r, f.exitcode) for r, f in error.failures.items()), key=_cause)
            raise RunFailedError(
                f"process {rank} of {processes} {_ending(code)}",
                "see what ended it (often memory), then `--resume auto`",
            ) from error
        except SignalException as stop:
            if status.exists():
                return int(status.read_text())
            if stop.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            return 128 + stop.sigval
        finally:
            del os.environ[STATUS_FILE]
    return 0


def _cause(ended: tuple[int, int]) -> tuple[bool, bool, int]:
    """Orders ranks and exit statuses: the first is why the others ended. Those fail because they
    lost it, or the agent sent them SIGTERM."""
    rank, code = ended
    return code == -signal.SIGTERM, code >= 0, rank


def _ending(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended without a word, with exit status {code}"
