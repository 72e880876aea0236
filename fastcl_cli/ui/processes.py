"""Commands that several processes share: one that starts them, or one of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

from fastcl_cli.errors import InterruptError, RequeueError, UsageError
from fastcl_cli.extras import need_train
from fastcl_cli.processes.launchers import place


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


def need_several(gpus: int | None) -> None:
    """Make sure that there are processes to share a model out to.

    Raises:
        UsageError: this one is, and will be, alone.
    """
    already = place()
    if (already.size if already is not None else gpus or 1) == 1:
        raise UsageError(
            "--shard shares a model out to several processes, and here is one",
            "start several, with --gpus N, torchrun or srun; or leave --shard out",
        )


def processes() -> AbstractContextManager[None]:
    """Joins the other processes, if there are any."""
    own = place()
    if own is None or own.size == 1:
        return nullcontext()
    need_train()
    # torch's own account of a connection that breaks is a page, beside the line that says it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from fastcl_cli.processes import joining

    return joining.processes(own)


@contextmanager
def requeued() -> Iterator[None]:
    """Say of a run that is told to stop while it does not train yet, but packs or opens its data,
    that it can be started again.

    What the handlers raise may come out as another exception: libraries in C that call Python do
    that. So whatever ends the body after a signal counts as the signal.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except BaseException:
        if not came:
            raise
        interrupted = came[0] == signal.SIGINT
        word, kind = ("interrupted", InterruptError) if interrupted else ("stopped", RequeueError)
        raise kind(
            f"{word} before training: there is nothing to save yet", "start the same command again"
        ) from None
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # `Stop` may have made this process deaf
                signal.signal(number, handler)
