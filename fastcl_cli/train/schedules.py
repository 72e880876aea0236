"""What varies over a run, each a pure function of the step.

Progress is counted in the plan's epochs, so a phase with another batch size changes how far a step
goes and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastcl_cli.config import Decay, Ramp, RunConfig
from fastcl_cli.plan import Plan


@dataclass(frozen=True, slots=True)
class Values:
    """What holds at one step: progress in epochs, and the optimizer's values; ``momentum`` is None
    without a target."""

    epochs: float
    lr: float
    weight_decay: float
    momentum: float | None


class Schedules:
    """Learning rate, weight decay and target momentum of a run.

    ``momentum_lead`` is the method's: how many steps ahead the momentum is read.
    """

    def __init__(self, config: RunConfig, plan: Plan, momentum_lead: int) -> None:
        self._config = config
        self._plan = plan
        self._lead = momentum_lead
        self._warmup = plan.in_epochs(config.warmup)

    def at(self, step: int) -> Values:
        """Values for the update numbered ``step`` (from 0)."""
        config, plan = self._config, self._plan
        epochs = plan.epochs_at(step)
        peak = config.lr.peak(plan.at(step).batch)
        momentum = None
        if config.momentum is not None:
            momentum = half_cosine(config.momentum, plan.epochs_at(step + self._lead) / plan.epochs)
        return Values(
            epochs=epochs,
            lr=warm_then_decay(epochs, plan.epochs, self._warmup, peak, config.decay),
            weight_decay=half_cosine(config.weight_decay, epochs / plan.epochs),
            momentum=momentum,
        )


def half_cosine(ramp: Ramp, progress: float) -> float:
    """``ramp.start`` at progress 0, ``ramp.end`` at 1: end - (end - start)·(1 + cos(pi·t))/2."""
    return ramp.end - (ramp.end - ramp.start) * (1 + math.cos(math.pi * progress)) / 2


def warm_then_decay(epochs: float, total: float, warmup: float, peak: float, decay: Decay) -> float:
    """Linear from 0 to ``peak`` over ``warmup`` epochs, then ``decay`` to its end at ``total``."""
    if epochs < warmup:
        return peak * epochs / warmup
    if decay.kind == "constant":
        return peak
    # A warm-up as long as the run leaves no room to decay in.
    t = (epochs - warmup) / (total - warmup) if total > warmup else 1.0
    share = (1 + math.cos(math.pi * t)) / 2 if decay.kind == "cosine" else (1 - t) ** decay.power
    return decay.to + (peak - decay.to) * share
