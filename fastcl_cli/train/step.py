"""One training step: views -> loss -> backward -> update -> average."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import AdamW

from fastcl_cli.data.loader import Decoded
from fastcl_cli.errors import NumericalError
from fastcl_cli.methods.base import Method
from fastcl_cli.model.ema import update_average
from fastcl_cli.plan import Segment
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import InputMaker
from fastcl_cli.train.optim import clip_each, gradient_norm, set_values
from fastcl_cli.train.schedules import Schedules, Values


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did: its loss, the norm of its gradient before clipping, and the values it
    ran with."""

    loss: float
    gradient_norm: float
    values: Values


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
        self.clip = clip

    def step(self, step: int, segment: Segment, decoded: Decoded) -> StepResult:
        """Run the update numbered ``step``.

        Raises:
            NumericalError: the loss or a gradient is not finite; nothing was updated.
        """
        online, target = self.inputs(step, segment, decoded)
        values = self.schedules.at(step)
        with self.device.autocast():
            loss = self.method.loss(online, target, values.epochs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.value.backward()  # type: ignore[no-untyped-call]

        norm = gradient_norm(self.method.online.parameters())
        if self.clip is not None:
            clip_each(self.method.online.parameters(), self.clip)
        result = StepResult(float(loss.value.detach()), float(norm), values)
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
