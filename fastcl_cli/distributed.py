"""The processes that train together, and what they say to each other.

A run is one process, or ``WORLD_SIZE`` of them, each with its own rows of every global batch. What
starts them (torchrun, or `launch`) sets torch's environment variables. Without them every function
here is the one-process case: nothing is sent, and tensors come back as they are.

The losses are written so that the *mean over processes* of what each of them differentiates is the
loss of the global batch, and the operations here pass gradients back across processes. So averaging
gradients, as DDP does, gives the gradient that one process would have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous

from fastcl_cli.errors import FastclError, RunFailedError, UsageError

STATUS_FILE = "FASTCL_STATUS_FILE"
"""Environment variable: where the process that reports an error leaves its exit status."""
_PATIENCE = timedelta(days=7)
"""How long processes wait for the one that packs data, saves or writes. One that dies is noticed at
once, by its closed connections."""
_CLOSED = "Connection closed by peer"
_control: dist.ProcessGroup | None = None
"""Connects the processors: a word between processes does not wait for the GPUs' queues."""


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 leads: it alone writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_size() -> int:
    """Number of them on this machine, which share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size())) if dist.is_initialized() else 1


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


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes that a launcher started.

    Of the errors that end them the first one leaves this context; the other processes end without
    a word, with the exit status of their own error.

    Raises:
        UsageError: there is no GPU for this process.
        RunFailedError: the others cannot be reached, or one of them was lost.
    """
    try:
        store = _join()
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunFailedError(f"cannot join the other processes: {_first_line(error)}") from error
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        status = error.exit_code if isinstance(error, FastclError) else 1
        status = 130 if isinstance(error, KeyboardInterrupt) else status
        if not _speaks(store, status):
            raise SystemExit(status) from None
        if _is_loss(error):
            closed = _CLOSED in str(error)
            raise RunFailedError(
                f"another of the {size()} processes "
                + ("ended without a word" if closed else f"was lost: {_first_line(error)}"),
                "see what ended it (often memory), then `--resume auto`",
            ) from error
        raise
    _leave()


def _join() -> Any:
    """Connect to the others; returns the store that all of them share."""
    global _control
    backend = "gloo"
    if torch.cuda.is_available():
        device, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if device >= devices:
            raise UsageError(
                f"{local_size()} processes on this machine, which has {devices} GPUs",
                f"start {devices}",
            )
        torch.cuda.set_device(device)
        backend = "nccl"
    store, own, count = next(iter(rendezvous("env://")))
    dist.init_process_group(backend, store=store, rank=own, world_size=count)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(control, dist.ProcessGroup)
    _control = control
    return store


def _leave() -> None:
    global _control
    wait()
    _control = None
    dist.destroy_process_group()


def _speaks(store: Any, status: int) -> bool:
    """Whether this process is the first to end with an error, and so the one to report it."""
    try:
        first: bool = store.add("fastcl/errors", 1) == 1
    except RuntimeError:  # the store has gone with the process that kept it, which has spoken
        return False
    if first and STATUS_FILE in os.environ:
        Path(os.environ[STATUS_FILE]).write_text(str(status))
    return first


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that a connection to another process broke."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "NCCL", _CLOSED))
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
