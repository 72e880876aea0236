"""Images, read and encoded as they will be stored, by processes of their own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastcl_cli.data.images import BadImageError, ImageSet, load_rgb
from fastcl_cli.errors import DataError, UsageError

MAX_SIDE = 384
QUALITY = 90
_GROUP = 16
"""Images per task sent to a process."""


@dataclass(frozen=True)
class Settings:
    """How images are stored and read.

    Attributes:
        max_side: longest side stored, in pixels; larger images are resized (bicubic, antialiased).
        quality: of the JPEGs, 1 to 100.
        workers: processes that read images.
        strict: fail on the first unreadable image instead of leaving it out.
    """

    max_side: int = MAX_SIDE
    quality: int = QUALITY
    workers: int = 1
    strict: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UsageError(f"quality {self.quality}: allowed is 1 to 100")
        if not 8 <= self.max_side <= 16384:
            raise UsageError(f"longest side {self.max_side}: allowed is 8 to 16384 pixels")
        if self.workers < 1:
            raise UsageError(f"{self.workers} workers: at least 1 is needed")


@dataclass(frozen=True)
class Encoded:
    """One image as it will be stored; ``jpeg`` is empty where ``reason`` says why not."""

    jpeg: bytes
    height: int
    width: int
    reason: str


def encode(image: Path | NDArray[np.uint8], settings: Settings) -> Encoded:
    try:
        rgb = load_rgb(image, settings.max_side)
    except BadImageError as error:
        return Encoded(b"", 0, 0, str(error))
    buffer = BytesIO()
    rgb.save(buffer, "JPEG", quality=settings.quality)
    return Encoded(buffer.getvalue(), rgb.height, rgb.width, "")


def _encode_group(images: Sequence[Path | NDArray[np.uint8]], settings: Settings) -> list[Encoded]:
    return [encode(image, settings) for image in images]


def encode_all(images: ImageSet, settings: Settings) -> Generator[Encoded, None, None]:
    """Every image of the set, in order.

    Raises:
        DataError: a process died.
    """
    count = len(images.files)
    groups = [range(start, min(start + _GROUP, count)) for start in range(0, count, _GROUP)]
    if settings.workers == 1 or len(groups) == 1:
        for row in range(count):
            yield encode(images.image(row), settings)
        return
    # New interpreters, not forks: a fork of a process with torch's threads may hang.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(min(settings.workers, len(groups)), context, _start_worker)
    waiting: deque[tuple[str, Future[list[Encoded]]]] = deque()
    try:
        for group in groups:
            wanted = [images.image(row) for row in group]
            with interrupts_held():
                future = pool.submit(_encode_group, wanted, settings)
            waiting.append((images.files[group[0]], future))
            if len(waiting) >= 4 * settings.workers:
                yield from _result(*waiting.popleft())
        while waiting:
            yield from _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interrupts_held(*more: signal.Signals) -> Iterator[None]:
    """Hold back Ctrl-C, SIGUSR1 and ``more`` for a moment: a process started meanwhile never sees
    them (so not SIGTERM, by which a pool ends its processes), this one does."""
    held = {signal.SIGINT, signal.SIGUSR1, *more}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """End with the parent, however it ends."""
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _result(first: str, future: Future[list[Encoded]]) -> list[Encoded]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        time.sleep(0.2)  # a signal to the whole group ends this process in its own way
        raise DataError(
            f"a process that reads images died, at or after {first}",
            "look for an image there that crashes its decoder, or for too little memory",
        ) from error
