"""Commands that several processes share: one that starts them, or one of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fastcl_cli.errors import RequeueError, UsageError
from fastcl_cli.extras import launched, need_train


def must_launch(gpus: int | None, schedule: str) -> bool:
    """Whether several processes are wanted that no launcher has started yet.

    Raises:
        UsageError: a launcher has started another number, or they could not all read ``schedule``.
    """
    already = launched()
    if gpus is not None and already is not None and already != gpus:
        raise UsageError(
            f"--gpus {gpus}, but a launcher has started {already} processes",
            "leave --gpus out under torchrun",
        )
    must = already is None and gpus is not None and gpus > 1
    if must and schedule == "-":
        raise UsageError("several processes cannot read one standard input", "name a file")
    return must


def processes() -> AbstractContextManager[None]:
    """Joins the other processes, if there are any."""
    if (launched() or 1) == 1:
        return nullcontext()
    need_train()
    from fastcl_cli import distributed

    return distributed.processes()


@contextmanager
def requeued() -> Iterator[None]:
    """Say of a run that is told to stop while it does not train, but packs or opens its data, that
    it can be started again: nothing is lost."""
    try:
        yield
    except SystemExit as stop:
        if stop.code != 128 + signal.SIGTERM:
            raise
        raise RequeueError(
            "stopped outside of training; what was written is whole",
            "start the same command again, with `--resume auto`",
        ) from None
