"""One training step: views -> loss -> backward -> update -> average."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from fastcl_cli.errors import NumericalError
from fastcl_cli.methods.base import Input, Loss, Method, Teacher
from fastcl_cli.model.ema import update_average
from fastcl_cli.plan import View
from fastcl_cli.processes import distributed
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import Batch, InputMaker, Prepared
from fastcl_cli.train.optim import clip_each, gradient_norm, set_values
from fastcl_cli.train.recorded import Differentiated, recorder_for
from fastcl_cli.train.schedules import Schedules, Values
from fastcl_cli.train.sharding import is_sharded


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did: the global batch's loss and the norm of its gradient before clipping, both
    scalars on the device, the values it ran with, and of this process's rows the features of the
    first view, (b, D), and the teacher's output (`Loss`)."""

    loss: Tensor
    gradient_norm: Tensor
    values: Values
    features: Tensor
    teacher: Teacher | None


class _LossModule(nn.Module):
    """A method's loss as a forward pass, which is what DDP wraps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(
        self, online: Sequence[Input], target: Sequence[Input], epochs: float | Tensor
    ) -> Loss:
        return self.method.loss(online, target, epochs)


def data_parallel(method: Method) -> Callable[..., Loss]:
    """``method.loss``, whose backward pass leaves the mean gradient of all processes."""
    if is_sharded(method):
        return method.loss
    module = _LossModule(method)
    if distributed.size() == 1:
        return module
    with warnings.catch_warnings():
        # Newest torch gives `broadcast_buffers` another name, which older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            module, broadcast_buffers=False, gradient_as_bucket_view=True
        )


class Trainer:
    """The moving parts of a run. Everything that changes is in ``method`` and ``optimizer``."""

    def __init__(
        self,
        method: Method,
        optimizer: AdamW,
        schedules: Schedules,
        inputs: InputMaker,
        device: Device,
        clip: float | None,
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.schedules = schedules
        self.inputs = inputs
        self.device = device
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.differentiated = Differentiated(
            data_parallel(method), parameters, device, recorder_for(device)
        )
        self.clip = clip
        self._verdict = _Verdict(device.device)

    def step(self, step: int, views: Sequence[View], batch: Batch | Prepared) -> StepResult:
        """Run the update numbered ``step`` on a batch seen as ``views``.

        Raises:
            NumericalError: the loss or a gradient is not finite. On the CPU nothing was updated. A
                GPU is not waited for: a step *before* is meant, and `confirm` judges the last ones.
        """
        online, target = self.inputs(step, views, batch)
        values = self.schedules.at(step)
        loss = self.differentiated(online, target, values.epochs)
        norm = gradient_norm(self.method.online.parameters())
        whole = distributed.average(loss.value)
        self._verdict.of(step, whole, norm)
        self.update(values, loss)
        return StepResult(whole, norm, values, loss.features, loss.teacher)

    def update(self, values: Values, loss: Loss) -> None:
        """Clip the gradients of ``loss``, update the weights with them, average the target."""
        if self.clip is not None:
            clip_each(self.method.online.parameters(), self.clip)
        for parameter in self.method.frozen(values.epochs):
            parameter.grad = None
        set_values(self.optimizer, values)
        self.optimizer.step()
        if self.method.target is not None:
            assert values.momentum is not None
            update_average(self.method.target, self.method.online, values.momentum)
        if loss.statistics is not None:
            self.method.absorb(loss.statistics)

    def confirm(self) -> None:
        """Make sure that what has been trained so far may be kept.

        Raises:
            NumericalError: a step's loss or gradient was not finite.
        """
        self._verdict.confirm()


class _Verdict:
    """Whether steps are finite. Waiting for a GPU's answer would leave it idle until the next step
    is in its queue, so answers are read when they are there; nothing is kept before (`confirm`)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()

    def of(self, step: int, loss: Tensor, norm: Tensor) -> None:
        if self._device.type == "cpu":
            _refuse_unless_finite(step, float(loss), float(norm))
            return
        figures = torch.stack([loss, norm.to(loss.dtype)])
        copy = torch.empty(2, dtype=loss.dtype, pin_memory=True).copy_(figures, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._open.append((step, copy, arrived))
        while self._open and self._open[0][2].query():  # type: ignore[no-untyped-call]
            self._judge()

    def confirm(self) -> None:
        while self._open:
            self._open[0][2].synchronize()
            self._judge()

    def _judge(self) -> None:
        step, figures, _ = self._open.popleft()
        _refuse_unless_finite(step, *figures.tolist())


def _refuse_unless_finite(step: int, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NumericalError(
            f"step {step}: loss {loss}, gradient norm {norm}; the update was refused",
            "lower `lr`, lengthen `warmup`, or use `precision float32`",
        )
