"""One training step: views -> loss -> backward -> update -> average."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from fastcl_cli import distributed
from fastcl_cli.errors import NumericalError
from fastcl_cli.methods.base import Input, Loss, Method, Teacher
from fastcl_cli.model.ema import update_average
from fastcl_cli.plan import View
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import Batch, InputMaker
from fastcl_cli.train.optim import clip_each, gradient_norm, set_values
from fastcl_cli.train.schedules import Schedules, Values


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did: the global batch's loss, the norm of its gradient before clipping, the
    values it ran with, and of this process's rows the features of the first view, (b, D), and the
    teacher's output (`Loss`)."""

    loss: float
    gradient_norm: float
    values: Values
    features: Tensor
    teacher: Teacher | None


class _LossModule(nn.Module):
    """A method's loss as a forward pass, which is what DDP wraps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, online: Sequence[Input], target: Sequence[Input], epochs: float) -> Loss:
        return self.method.loss(online, target, epochs)


def data_parallel(method: Method) -> nn.Module:
    """``method.loss``, whose backward pass leaves the mean gradient of all processes."""
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
        self._loss = data_parallel(method)
        self.clip = clip

    def step(self, step: int, views: Sequence[View], batch: Batch) -> StepResult:
        """Run the update numbered ``step`` on a batch seen as ``views``.

        Raises:
            NumericalError: the loss or a gradient is not finite; nothing was updated.
        """
        online, target = self.inputs(step, views, batch)
        values = self.schedules.at(step)
        with self.device.autocast():
            loss: Loss = self._loss(online, target, values.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]

        norm = gradient_norm(self.method.online.parameters())
        if self.clip is not None:
            clip_each(self.method.online.parameters(), self.clip)
        whole = distributed.average(loss.value.detach())
        result = StepResult(float(whole), float(norm), values, loss.features, loss.teacher)
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            raise NumericalError(
                f"step {step}: loss {result.loss}, gradient norm {result.gradient_norm}; "
                "the update was refused",
                "lower `lr`, lengthen `warmup`, or use `precision float32`",
            )
        for parameter in self.method.frozen(values.epochs):
            parameter.grad = None
        set_values(self.optimizer, values)
        self.optimizer.step()

        if self.method.target is not None:
            assert values.momentum is not None
            update_average(self.method.target, self.method.online, values.momentum)
        if loss.statistics is not None:
            self.method.absorb(loss.statistics)
        return result
