"""What a run measures of its own gradients: the running error, and what `auto` phases decide by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import AdamW

from fastcl_cli.config import RunConfig
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.estimate.clocks import Clock
from fastcl_cli.gradient_error.paired import LEAST_UPDATES, PairedGradients, adam_scale
from fastcl_cli.gradient_error.running import RunningError, probe_batch
from fastcl_cli.methods.base import Method
from fastcl_cli.plan import Plan
from fastcl_cli.processes import distributed
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.train.auto import ClosedLoop, Decision, Policy, measured_costs
from fastcl_cli.train.device import Device


class Estimates:
    """Gradients of a run's network, measured aside: nothing of the run moves.

    Args:
        plan: before any decision.
        policy: how `auto` phases decide, for a plan.
        clock: tells κ of their settings; None counts operations.
        open_loader: gives the run's loader; asked for when images are first needed.

    Attributes:
        error: the estimate for the setting that trains, or None where nobody wants it.
        auto: the closed loop, or None without an `auto` phase.
    """

    def __init__(
        self,
        method: Method,
        optimizer: AdamW,
        config: RunConfig,
        plan: Plan,
        data: Beton,
        device: Device,
        seed: int,
        policy: Callable[[Plan], Policy],
        clock: Clock | None,
        open_loader: Callable[[], DecodedLoader],
    ) -> None:
        self._method = method
        self._optimizer = optimizer
        self._config = config
        self._planned = plan
        self._data = data
        self._device = device
        self._seed = seed
        self._policy = policy
        self._clock = clock
        self._open_loader = open_loader
        self.error: RunningError | None
        self.auto: ClosedLoop | None
        self.restore({}, {})

    def restore(self, error: Mapping[str, Any], auto: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint holds.

        Raises:
            TypeError, ValueError: it is of another run.
        """
        self.error = self._running_error(error)
        self.auto = self._closed_loop(auto)

    @property
    def plan(self) -> Plan:
        """With the moves so far."""
        return self._planned if self.auto is None else self.auto.plan

    def gradients(self, purpose: str, batch: int) -> PairedGradients:
        """Paired gradients with draws of their own for ``purpose``, from ``batch`` images each."""
        return PairedGradients(
            self._method,
            self._config,
            self._data,
            self._open_loader,
            self._device,
            self._seed,
            batch,
            purpose=purpose,
        )

    def decide(self, step: int, progress: Callable[[int, int], None]) -> Decision:
        """Let the closed loop decide before ``step``.

        Raises:
            RunFailedError: the processes have come to different decisions.
        """
        assert self.auto is not None
        adam = self.auto.policy.metric == "adam" and step >= LEAST_UPDATES
        scale = adam_scale(self._method, self._optimizer) if adam else None
        self.auto.gradients.precondition = scale
        decision = self.auto.decide(step, self.plan.epochs_at(step), progress)
        distributed.need_equal(repr(self.auto.state), "the decision")
        return decision

    def _running_error(self, carried: Mapping[str, Any]) -> RunningError | None:
        wanted = self._config.gradient_error
        if wanted is None:
            return None
        gradients = self.gradients("gradient error", self._probe_batch)
        interval = None if wanted == "auto" else wanted
        return RunningError(gradients, full_views(self._config), interval, carried)

    def _closed_loop(self, carried: Mapping[str, Any]) -> ClosedLoop | None:
        if not self._planned.is_auto:
            return None
        policy = self._policy(self._planned)
        gradients = self.gradients("decisions", policy.batch or self._probe_batch)
        costs = None if self._clock is None else measured_costs(self._clock, self._config)
        return ClosedLoop(gradients, self._config, self._planned, policy, carried, costs)

    @property
    def _probe_batch(self) -> int:
        least = min(segment.batch for segment in self._planned.segments)
        return probe_batch(least, self._data.images)
