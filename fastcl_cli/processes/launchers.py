"""Where a process stands among those that torchrun, or Slurm's srun, started together."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from fastcl_cli.errors import UsageError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_DEFAULT_PORT, _FIRST_PORT, _PORTS = 29500, 20000, 10000


@dataclass(frozen=True, slots=True)
class Place:
    """One of ``size`` processes, ``local_size`` of them on this machine.

    ``host`` and ``port`` are where process 0 can be reached; ``machine`` is this machine's name,
    ``hosts`` those of all of them, where the launcher tells.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    machine: str
    hosts: tuple[str, ...] = ()


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """This process's place; None where no launcher started it.

    torchrun's variables win over Slurm's, which are set below `srun torchrun`, too.

    Raises:
        UsageError: a variable is missing, or is not what it should be.
    """
    variables = _Variables(os.environ if environment is None else environment)
    if "RANK" in variables.all and "WORLD_SIZE" in variables.all:
        return _torchrun(variables)
    return _srun(variables)


@dataclass(frozen=True, slots=True)
class _Variables:
    all: Mapping[str, str]

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of some variables that is set."""
        name = next((name for name in names if self.all.get(name)), None)
        if name is None and default is not None:
            return default
        text = "" if name is None else self.all[name]
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise UsageError(
                f"environment variable {name or names[0]} is {text or 'not set'!r}, not a number",
                "start the processes with torchrun, srun or `fastcl run --gpus N`",
            )
        return int(text)

    def text(self, *names: str) -> str:
        return next((value for name in names if (value := self.all.get(name))), "")


def _torchrun(variables: _Variables) -> Place:
    size = variables.number("WORLD_SIZE")
    if size > 1:
        for name in _TORCHRUN:
            if not variables.text(name):
                raise UsageError(
                    f"environment variable {name} is not set, but WORLD_SIZE is {size}",
                    f"set {', '.join(_TORCHRUN)} for each process, as torchrun does",
                )
    rank = variables.number("RANK")
    return _checked(
        Place(
            rank,
            size,
            variables.number("LOCAL_RANK", default=rank),
            variables.number("LOCAL_WORLD_SIZE", default=size),
            variables.text("MASTER_ADDR"),
            variables.number("MASTER_PORT", default=_DEFAULT_PORT),
            socket.gethostname(),
        )
    )


def _srun(variables: _Variables) -> Place | None:
    """A task of a job step. One task alone may start processes of its own."""
    if "SLURM_PROCID" not in variables.all or _is_outside_of_steps(variables):
        return None
    size = variables.number("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", default=1)
    if size == 1:
        return None
    nodes = variables.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = host_names(nodes)
    first = hosts[0] if hosts else ""
    if not (host := variables.text("MASTER_ADDR") or first):
        raise UsageError(
            "Slurm names no nodes: SLURM_NODELIST is not set",
            "start the processes with srun, or set MASTER_ADDR",
        )
    shares = _tasks_per_node(variables.text("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    node = variables.number("SLURM_NODEID", default=0)
    even = -(-size // max(1, len(hosts)))
    job = variables.number("SLURM_JOB_ID", "SLURM_JOBID", default=0)
    job += variables.number("SLURM_STEP_ID", default=0)
    return _checked(
        Place(
            variables.number("SLURM_PROCID"),
            size,
            variables.number("SLURM_LOCALID"),
            shares[node] if node < len(shares) else even,
            host,
            # Jobs that share a machine get ports of their own.
            variables.number("MASTER_PORT", default=_FIRST_PORT + job % _PORTS),
            variables.text("SLURMD_NODENAME") or socket.gethostname(),
            hosts,
        )
    )


def _is_outside_of_steps(variables: _Variables) -> bool:
    """Whether this is a job's batch script, or salloc's shell, where no srun started anything."""
    return bool(variables.text("SLURM_JOB_ID")) and not variables.text("SLURM_STEP_ID")


def _checked(found: Place) -> Place:
    if found.rank >= found.size:
        raise UsageError(
            f"process {found.rank} of {found.size}: they are counted from 0",
            "start the processes with torchrun, srun or `fastcl run --gpus N`",
        )
    return found


def host_names(nodes: str) -> tuple[str, ...]:
    """Slurm's compact list of nodes, spelled out: ``a[01-03,7]-x,b`` names five.

    Raises:
        UsageError: it is not such a list.
    """
    # Commas divide names, but not within brackets.
    items = re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodes)
    if ",".join(items) != nodes:
        raise _not_nodes(nodes)
    names: list[str] = []
    for item in items:
        grown = [""]
        for text, inside in re.findall(r"([^\[\]]+)|\[([^\[\]]*)\]", item):
            parts = [text] if text else _numbers(inside, nodes)
            grown = [name + part for name in grown for part in parts]
        names += grown
    return tuple(names)


def _numbers(ranges: str, nodes: str) -> list[str]:
    """``01-03,7`` is 01, 02, 03, 7: leading zeros stay."""
    numbers: list[str] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
        if match is None or (last := int(match[2] or match[1])) - int(match[1]) > 100_000:
            raise _not_nodes(nodes)
        width = len(match[1])
        numbers += [f"{number:0{width}}" for number in range(int(match[1]), last + 1)]
    return numbers


def _not_nodes(text: str) -> UsageError:
    return UsageError(f"{text!r} is not a list of nodes as Slurm writes them")


def _tasks_per_node(text: str) -> list[int]:
    """``2(x3),1`` is 2, 2, 2, 1."""
    found = re.findall(r"([0-9]{1,9})(?:\(x([0-9]{1,6})\))?", text)
    return [int(tasks) for tasks, nodes in found for _ in range(int(nodes or 1))]
