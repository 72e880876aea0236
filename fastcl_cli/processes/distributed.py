"""The processes that train together, and what they say to each other.

A run is one process, or several (`joining`), each with its own rows of every global batch. Where
there is one every function here is the one-process case: nothing is sent, and tensors come back as
they are.

The losses are written so that the *mean over processes* of what each of them differentiates is the
loss of the global batch, and the operations here pass gradients back across processes. So averaging
gradients, as DDP does, gives the gradient that one process would have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastcl_cli.errors import RunFailedError
from fastcl_cli.processes.launchers import Place

_PATIENCE = timedelta(days=7)
"""How long processes wait for the one that packs data, saves or writes. One that dies is noticed at
once, by its closed connections."""
_control: dist.ProcessGroup | None = None
"""Connects the processors: a word between processes does not wait for the GPUs' queues."""
_local_size = 1


def connect(backend: str, store: Any, place: Place) -> None:
    """Form the group of all processes; `leave` parts them."""
    global _control, _local_size
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(control, dist.ProcessGroup)
    _control, _local_size = control, place.local_size


def leave() -> None:
    """Part from the others when all have come here."""
    global _control, _local_size
    wait()
    _control, _local_size = None, 1
    dist.destroy_process_group()


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 leads: it alone writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_size() -> int:
    """Number of them on this machine, which share its cores."""
    return _local_size


def rows(batch: int) -> slice:
    """This process's rows of a global batch, which the number of processes divides."""
    assert batch % size() == 0
    share = batch // size()
    return slice(rank() * share, (rank() + 1) * share)


def gather(own: Tensor) -> Tensor:
    """Rows (b, ...) of all processes in the order of their ranks, (size·b, ...).

    Differentiable: a process's gradient is the sum of what all processes pass back for its rows.
    """
    if size() == 1:
        return own
    gathered: Tensor = _Gather.apply(own)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(size())]
        dist.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return total(upstream)[rows(len(upstream))]


def total(value: Tensor) -> Tensor:
    """The sum over processes, without gradient; the same bits on all of them."""
    if size() == 1:
        return value
    value = value.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(value)
    return value


def average(value: Tensor) -> Tensor:
    """The mean over processes, without gradient; the same bits on all of them."""
    return value if size() == 1 else total(value) / size()


def greatest(number: int) -> int:
    """The greatest of the processes' numbers. Waits for all of them."""
    if size() == 1:
        return number
    value = torch.tensor(number)
    dist.all_reduce(value, dist.ReduceOp.MAX, group=_control)
    return int(value)


def wait() -> None:
    """Go on when every process has come here."""
    greatest(0)


@contextmanager
def leader_first() -> Iterator[None]:
    """Run the body in process 0, then in the others."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def need_equal(value: str, what: str) -> None:
    """Make sure that every process has the same ``value``.

    Raises:
        RunFailedError: one has another.
    """
    if size() == 1:
        return
    # A digest, because torch would pickle the text.
    own = torch.tensor(list(hashlib.sha256(value.encode()).digest()), dtype=torch.uint8)
    digests = [torch.empty_like(own) for _ in range(size())]
    dist.all_gather(digests, own, group=_control)
    for other, theirs in enumerate(digests):
        if not torch.equal(theirs, digests[0]):
            raise RunFailedError(
                f"processes 0 and {other} do not agree on {what}",
                "give all of them the same schedule, options and data",
            )
