"""Preparing a step's batch while the step before it runs.

On a GPU a step's random draws, and bringing them and the images there, would leave it idle in
between; so a thread does that for the step to come. All of it is a function of the step's number,
so it makes no difference to what comes out. On the CPU there is nothing to gain: the step itself
uses every core.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeAlias

import torch
from torch import Tensor

from fastcl_cli.plan import Segment
from fastcl_cli.train.inputs import Batch, InputMaker, Prepared
from fastcl_cli.train.recorded import alone
from fastcl_cli.transfer import map_tensors

Source: TypeAlias = Generator[tuple[int, Segment, Batch], None, None]
Step: TypeAlias = tuple[int, Segment, "Batch | Prepared"]

_AHEAD = 1
"""Batches that wait, besides the one that is made and the one that is used."""
_POLL_S = 0.1


@contextmanager
def prepared_ahead(source: Source, inputs: InputMaker) -> Iterator[Iterator[Step]]:
    """The steps of ``source``, with their batches prepared where that is done ahead.

    Leaving the context closes ``source``, whatever is under way. What it raises is raised where its
    step would have come.
    """
    if inputs.device.type != "cuda":
        with closing(source):
            yield source
        return
    with Ahead(source, inputs) as steps:
        yield steps


class Ahead:
    """The thread, and the queue that it fills; entering gives the steps, leaving ends it."""

    def __init__(self, source: Source, inputs: InputMaker) -> None:
        self._source, self._inputs = source, inputs
        self._queue: Queue[Step | BaseException | None] = Queue(_AHEAD)
        self._stopping = Event()
        self._stream = _stream(inputs.device)
        self._thread = Thread(target=self._work, name="batches ahead", daemon=True)

    def __enter__(self) -> Iterator[Step]:
        self._thread.start()
        return self._steps()

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _steps(self) -> Iterator[Step]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            # It was allocated for the thread's stream, and must not be reused before this one is
            # done with it.
            map_tensors(_used_here, item[2])
            yield item

    def _work(self) -> None:
        # The draws are small: more threads would only wait for each other.
        torch.set_num_threads(1)
        end: BaseException | None = None
        try:
            # A null stream leaves the current one; each thread has a current device of its own.
            with closing(self._source), torch.cuda.stream(self._stream):
                while (item := self._prepared()) is not None and self._put(item):
                    pass
        except BaseException as error:
            end = error
        self._put(end)

    def _prepared(self) -> Step | None:
        with alone:
            if (item := next(self._source, None)) is None:
                return None
            step, segment, batch = item
            return step, segment, self._inputs.prepare(step, segment.views, batch)

    def _put(self, item: Step | BaseException | None) -> bool:
        """Whether there was room before the context was left."""
        while not self._stopping.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return True
            except Full:
                continue
        return False


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    """A queue of its own for what a thread gives a GPU to do."""
    if device.type == "cpu":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _used_here(tensor: Tensor) -> Tensor:
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream())
    return tensor
