"""Commands that several processes share: one that starts them, or one of them."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

from fastcl_cli.errors import UsageError
from fastcl_cli.extras import need_train
from fastcl_cli.launchers import place


def must_launch(gpus: int | None, schedule: str) -> bool:
    """Whether several processes are wanted that no launcher has started yet.

    Raises:
        UsageError: a launcher has started another number, or they could not all read ``schedule``.
    """
    already = place()
    if gpus is not None and already is not None and already.size != gpus:
        raise UsageError(
            f"--gpus {gpus}, but a launcher has started {already.size} processes",
            "leave --gpus out under torchrun and srun",
        )
    must = already is None and gpus is not None and gpus > 1
    if must and schedule == "-":
        raise UsageError("several processes cannot read one standard input", "name a file")
    return must


def processes() -> AbstractContextManager[None]:
    """Joins the other processes, if there are any."""
    own = place()
    if own is None or own.size == 1:
        return nullcontext()
    need_train()
    # torch's own account of a connection that breaks is a page, beside the line that says it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from fastcl_cli import joining

    return joining.processes(own)
