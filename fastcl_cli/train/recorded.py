"""A GPU's work for the loss and its gradient, recorded once for a phase and given to it whole.

The forward and backward passes of a step are well over a thousand kernels. Where compression is
strong each takes some microseconds, and the processor takes longer to launch them one by one than
the GPU to run them. A phase's shapes never change, so its third step is recorded as a CUDA graph,
and the steps after it copy their inputs to where the recording reads them and launch it in one
call.

What is recorded is what would have run: the same kernels on the same weights. A step that cannot be
recorded, or not within the memory that is left, runs as it stands, and so do all that follow.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from fastcl_cli.errors import RunFailedError, UsageError
from fastcl_cli.methods.base import Input, Loss
from fastcl_cli.processes import distributed
from fastcl_cli.train.device import Device
from fastcl_cli.transfer import map_tensors

LossFunction: TypeAlias = "Callable[[Sequence[Input], Sequence[Input], float | Tensor], Loss]"
Work: TypeAlias = "Callable[[], tuple[Loss, Gradients]]"
Gradients: TypeAlias = "tuple[Tensor | None, ...]"
Shapes: TypeAlias = "tuple[tuple[tuple[int, ...], ...], ...]"

CUDA_GRAPHS = "FASTCL_CUDA_GRAPHS"
"""The environment variable that switches recording off."""
PLAIN_STEPS = 2
"""Of a phase, before one is recorded: what is compiled or made at its first use must be there."""


alone = Lock()
"""Held while a step is recorded, and by another thread while that gives the GPU work."""


class Recorder(Protocol):
    """How steps are recorded."""

    def watch(self) -> AbstractContextManager[None]:
        """The context of a step that is not, from which to learn what one needs."""

    def record(self, work: Work) -> tuple[Callable[[], object], tuple[Loss, Gradients]]:
        """What does ``work`` again, into the same tensors, and those tensors.

        Raises:
            RuntimeError: it cannot be recorded.
            RunFailedError: nor can anything else be done any more.
        """


@dataclass(frozen=True, eq=False)
class _Recording:
    """``online``, ``target`` and ``epochs`` are read by ``replay``, which writes the others."""

    online: tuple[Input, ...]
    target: tuple[Input, ...]
    epochs: Tensor
    replay: Callable[[], object]
    loss: Loss
    gradients: Gradients


class Differentiated:
    """Computes a method's loss and leaves its gradient in the parameters' ``grad``.

    Args:
        loss: a `Method.loss`, of which a backward pass leaves the gradient.
        parameters: that get gradients.

    Attributes:
        recorder: how steps are recorded; None: each runs as it stands.
    """

    def __init__(
        self,
        loss: LossFunction,
        parameters: Sequence[nn.Parameter],
        device: Device,
        recorder: Recorder | None,
    ) -> None:
        self._loss, self._parameters, self._device = loss, parameters, device
        self.recorder = recorder
        self._shapes: Shapes | None = None
        self._plain = 0
        self._recording: _Recording | None = None

    @property
    def settling(self) -> int:
        """Steps after a change of shapes until one takes as long as those that follow it."""
        return 1 if self.recorder is None else PLAIN_STEPS + 1

    def __call__(self, online: Sequence[Input], target: Sequence[Input], epochs: float) -> Loss:
        """The loss of a batch (`Method.loss`), without what its gradient was computed from."""
        if self.recorder is None:
            return self._run(online, target, epochs)
        shapes = (_shapes(online), _shapes(target))
        if shapes != self._shapes:
            # The memory of the last one's activations is needed for those to come.
            self._recording, self._shapes, self._plain = None, shapes, 0
        if self._plain < PLAIN_STEPS:
            self._plain += 1
            with self.recorder.watch():
                # In a tensor, as it will be recorded: what is compiled for it is then.
                return self._run(online, target, self._scalar(epochs))
        if self._recording is None:
            try:
                self._recording = self._record(self.recorder, online, target, epochs)
            except RuntimeError as error:
                self.recorder = None
                warnings.warn(
                    f"steps are launched kernel by kernel, slower: {_cause(error)}", stacklevel=2
                )
                return self._run(online, target, epochs)
        return self._replay(self._recording, online, target, epochs)

    def _run(
        self, online: Sequence[Input], target: Sequence[Input], epochs: float | Tensor
    ) -> Loss:
        with self._device.autocast():
            loss = self._loss(online, target, epochs)
        for parameter in self._parameters:
            parameter.grad = None
        loss.value.backward()  # type: ignore[no-untyped-call]
        detached: Loss = map_tensors(Tensor.detach, loss)
        return detached

    def _record(
        self, recorder: Recorder, online: Sequence[Input], target: Sequence[Input], epochs: float
    ) -> _Recording:
        # A view that both encoders see is one tensor.
        kept: dict[int, Tensor] = {}

        def own(tensor: Tensor) -> Tensor:
            return kept.setdefault(id(tensor), tensor.clone(memory_format=torch.contiguous_format))

        held: tuple[tuple[Input, ...], tuple[Input, ...]]
        held = map_tensors(own, (tuple(online), tuple(target)))
        progress = self._scalar(epochs)

        def work() -> tuple[Loss, Gradients]:
            loss = self._run(*held, progress)
            return loss, tuple(parameter.grad for parameter in self._parameters)

        replay, (loss, gradients) = recorder.record(work)
        return _Recording(*held, progress, replay, loss, gradients)

    def _replay(
        self,
        recording: _Recording,
        online: Sequence[Input],
        target: Sequence[Input],
        epochs: float,
    ) -> Loss:
        for own, given in zip(
            _distinct((recording.online, recording.target)),
            _distinct((tuple(online), tuple(target))),
            strict=True,
        ):
            own.copy_(given)
        recording.epochs.fill_(epochs)
        recording.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        # The next step writes into the recording's own.
        copied: Loss = map_tensors(Tensor.clone, recording.loss)
        return copied

    def _scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device.device)


def recorder_for(device: Device) -> Recorder | None:
    """What records a process's steps on ``device``: a single GPU's only, unless `CUDA_GRAPHS` is 0.

    Raises:
        UsageError: it is neither 0 nor 1.
    """
    text = os.environ.get(CUDA_GRAPHS, "1")
    if text not in ("0", "1"):
        raise UsageError(f"environment variable {CUDA_GRAPHS} is {text!r}, not 0 or 1")
    if device.device.type == "cpu" or distributed.size() > 1 or text == "0":
        return None
    return CudaGraphs()


class CudaGraphs:
    """Records steps as CUDA graphs, whose memory is their own."""

    def __init__(self) -> None:
        self._needed = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        self._needed = torch.cuda.max_memory_allocated() - before

    def record(self, work: Work) -> tuple[Callable[[], object], tuple[Loss, Gradients]]:
        with alone:
            # What is left of steps before holds memory, and the stream that they ran on.
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            if _MARGIN * self._needed > free:
                raise RuntimeError(
                    f"it needs {self._needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
                )
            try:
                return self._record(work)
            except RuntimeError as error:
                if not _settled():
                    raise RunFailedError(
                        f"the GPU works no more since recording a step failed: {_cause(error)}",
                        f"resume with {CUDA_GRAPHS}=0 in the environment: nothing is recorded then",
                    ) from error
                raise

    def _record(self, work: Work) -> tuple[Callable[[], object], tuple[Loss, Gradients]]:
        graph = torch.cuda.CUDAGraph()
        # A recording that fails leaves its own stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream()):
            collects = gc.isenabled()
            gc.disable()  # nothing of the GPU's may be given back in between
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    made = work()
            finally:
                if collects:
                    gc.enable()
        return graph.replay, made


_MARGIN = 1.1
"""Memory that must be free for a recording, over what a step was seen to need."""
_ERRORS = 4


def _settled() -> bool:
    """Whether the GPU works, once the errors that a failed recording has left behind are told."""
    for _ in range(_ERRORS):
        try:
            there = torch.zeros(1, device="cuda")
            torch.empty(1, pin_memory=True).copy_(there, non_blocking=True)
            torch.cuda.synchronize()
            return True
        except RuntimeError:
            continue
    return False


def _cause(error: BaseException) -> str:
    """What ended a recording, rather than that it has ended, in a line."""
    return str(error.__context__ or error).strip().partition("\n")[0]


def _shapes(inputs: Sequence[Input]) -> tuple[tuple[int, ...], ...]:
    shapes: list[tuple[int, ...]] = []
    map_tensors(lambda tensor: shapes.append(tuple(tensor.shape)), tuple(inputs))
    return tuple(shapes)


def _distinct(tree: Any) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    map_tensors(lambda tensor: found.setdefault(id(tensor), tensor), tree)
    return list(found.values())
