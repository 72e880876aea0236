"""Decoded images in a given order, through FFCV's compiled threads.

FFCV compiles for a second or more for every loader, and hangs or crashes where its input surprises
it. `DecodedLoader` compiles once in a process, changes side, batch size and order in place, serves
several streams at a time, and never waits for a thread that has ended.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.data.beton import Beton
from fastcl_cli.data.ffcv_library import load_ffcv
from fastcl_cli.errors import DataError, RunFailedError, UsageError

_POLL_S = 0.2
_LOOK_S = 1.0
"""How often the files are looked at while they are read."""


@dataclass(frozen=True)
class Decoded:
    """One batch of B images squashed to S x S.

    Attributes:
        images: uint8 (B, S, S, 3), RGB; FFCV's own buffer (pinned where there is a GPU), which is
            **overwritten after the next batch has been asked for**: use it, copy it, or send it to
            a device with a blocking copy before that.
        indices: int64 (B,), which image of the file each one is; yours to keep.
    """

    images: Tensor
    indices: Tensor


class DecodedLoader:
    """Decodes a beton's images, each one once, to squares of ``side`` pixels.

    The pixels depend on nothing but the file and ``side``: not on the number of workers, the batch
    size or the place in the order. True heights and widths are in the `Beton`.

    Args:
        beton: the checked file.
        side: S; may be set anew between streams.
        workers: decoding threads, at most the cores that this process may use.

    Attributes:
        decoded: how many images have been handed out so far.
    """

    def __init__(self, beton: Beton, side: int, workers: int) -> None:
        self.beton = beton
        self.decoded = 0
        self._open = 0
        load_ffcv()
        import numba.core.config

        from fastcl_cli.data.decoder import Files

        threads: int = numba.core.config.NUMBA_NUM_THREADS
        limit = min(threads, len(os.sched_getaffinity(0)))
        if workers < 1:
            raise UsageError(f"{workers} decoding threads: at least 1 is needed")
        self._files = Files(beton, side, min(workers, limit))

    @property
    def side(self) -> int:
        """S, the side of the decoded squares in pixels."""
        return int(self._files.side)

    @side.setter
    def side(self, side: int) -> None:
        assert self._open == 0, "the side may change between streams only"
        assert side >= 1
        self._files.side = side

    @contextmanager
    def stream(
        self, indices: NDArray[np.int64], batch_size: int
    ) -> Generator[Iterator[Decoded], None, None]:
        """Decode the images of ``indices``, in that order, ``batch_size`` at a time.

        The whole list is served: the last batch is smaller where ``batch_size`` does not divide
        its length. Indices may repeat. Leaving the context early is fine: the threads end. Other
        streams may be open, with buffers of their own.

            with loader.stream(order, 256) as batches:
                for batch in batches:
                    ...

        Raises (while iterating):
            DataError: an image of the file is damaged, or the file was changed meanwhile.
            RunFailedError: a decoding thread ended for another reason.
        """
        order = np.ascontiguousarray(indices, np.int64)
        assert order.ndim == 1 and batch_size >= 1
        if order.size and not 0 <= order.min() <= order.max() < self.beton.images:
            raise DataError(
                f"{self.beton.path}: holds the images 0 to {self.beton.images - 1}; "
                f"asked for {order.min()} to {order.max()}"
            )
        if not order.size:
            yield iter(())
            return
        from fastcl_cli.data.decoder import Iterator as Thread

        self._files.check_files()
        self._open += 1
        try:
            self._files.batch_size = batch_size  # the thread looks at it as it is made
            thread = Thread(self._files, order)
            try:
                yield self._batches(thread, order, batch_size)
            finally:
                _end(thread)
        finally:
            self._open -= 1

    def _batches(self, thread: Any, order: NDArray[np.int64], batch_size: int) -> Iterator[Decoded]:
        looked = time.monotonic()
        for start in range(0, len(order), batch_size):
            if time.monotonic() - looked > _LOOK_S:
                self._files.check_files()
                looked = time.monotonic()
            chosen = order[start : start + batch_size]
            squares, status = self._next(thread)
            assert len(squares) == len(chosen)
            if status.any():
                bad = int((status != 0).argmax())
                self._refuse(int(chosen[bad]), int(status[bad]))
            self.decoded += len(chosen)
            yield Decoded(torch.from_numpy(squares), torch.from_numpy(chosen.copy()))

    def _next(self, thread: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The next batch: FFCV's own ``next`` would wait for ever for a thread that has ended."""
        while True:
            ended = thread.ended.is_set()
            try:
                item = thread.output_queue.get(timeout=_POLL_S)
                break
            except Empty:
                if ended:
                    cause = thread.failure
                    raise RunFailedError(
                        f"{self.beton.path}: a decoding thread ended: "
                        f"{type(cause).__name__}: {cause}",
                        "start again; if that repeats, pack the data again",
                    ) from cause
        assert item is not None, "FFCV ended its list of batches early"
        return item[1]  # type: ignore[no-any-return]

    def _refuse(self, index: int, status: int) -> NoReturn:
        from fastcl_cli.data.decoder import CHANGED, OTHER_SIZE

        what = {
            OTHER_SIZE: "has not the size in its record",
            CHANGED: "is not what was packed",
        }.get(status, "cannot be decoded")
        raise DataError(
            f"{self.beton.place(index)} is damaged: its JPEG data {what}",
            "pack the data again; if that repeats, check the disk",
        )


def _end(thread: Any) -> None:
    """End FFCV's thread, whatever it is doing, and wait for it: none may be left behind.

    It may be waiting for room in the queue, in its last step without looking at the signal to
    end; so the queue is emptied until the thread is gone. Where the interpreter itself is ending,
    the thread has been stopped for good and will not answer.
    """
    thread.close()
    while not thread.ended.is_set():
        if sys.is_finalizing():
            return
        try:
            thread.output_queue.get(timeout=0.01)
        except Empty:
            continue
    thread.join()
