"""The gradient error of the current setting, estimated while a run goes on.

Every so many steps two small pairs are measured: one group, whose statistic is a handful of
numbers. The last groups of the same setting are the running estimate and its interval. When to
measure follows from the plan, so a resumed run measures at the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from fastcl_cli.gradient_error.estimators import GradientError
from fastcl_cli.gradient_error.paired import PairedGradients, Views, measure
from fastcl_cli.plan import Segment
from fastcl_cli.processes import distributed

PAIRS = 2
"""K of each group: the least that an unbiased estimate needs."""
WINDOW = 32
"""Groups of one setting that the estimate is made of: weights move, and old ones mislead."""
SHARE = 0.01
"""Share of a run's operations that measuring may take. Small batches make it dearer on the clock
than in operations, hence half of the 2 % that it may cost there."""
LEAST_BATCH, GREATEST_BATCH = 16, 64


def probe_batch(batch: int, images: int) -> int:
    """Images of a probe batch for training with ``batch``: a sixteenth of it, within 16 and 64,
    and shared evenly by all processes."""
    wanted = min(max(batch // 16, LEAST_BATCH), GREATEST_BATCH, batch, images)
    size = distributed.size()
    return max(wanted // size, 1) * size


class RunningError:
    """Measures at fixed steps and keeps what the metrics need.

    Args:
        full: the views without compression.
        interval: steps between measurements; None for the least that keeps to `SHARE`.
        carried: ``state`` of the checkpoint that the run goes on from, or nothing.

    Raises:
        TypeError, ValueError: ``carried`` is no such state.
    """

    def __init__(
        self,
        gradients: PairedGradients,
        full: Views,
        interval: int | None,
        carried: Mapping[str, Any],
    ) -> None:
        self._gradients = gradients
        self._full = full
        self._interval = interval
        self._views: str = carried.get("views", "")
        self._groups = [[float(b), float(v), float(s)] for b, v, s in carried.get("groups", ())]
        self.seconds = 0.0

    @property
    def state(self) -> dict[str, Any]:
        """Goes into every checkpoint: the groups so far, and the setting that they are of."""
        return {"views": self._views, "groups": self._groups}

    def interval(self, segment: Segment) -> int:
        """Steps between measurements in a segment."""
        if self._interval is not None:
            return self._interval
        gradients = 1 if segment.views == self._full else 1 + segment.sample_cost
        cost = PAIRS * self._gradients.batch * gradients
        return math.ceil(cost / (SHARE * segment.batch * segment.sample_cost))

    def due(self, done: int, segment: Segment) -> bool:
        """Whether to measure after ``done`` updates."""
        return done % self.interval(segment) == 0

    def measure(self, done: int, segment: Segment, epochs: float) -> None:
        """Take one group with the weights after ``done`` updates."""
        began = time.perf_counter()
        views = repr(segment.views)
        if views != self._views:
            self._views, self._groups = views, []
        (error,) = measure(
            self._gradients, self._full, [segment.views], epochs,
            groups=1, pairs=PAIRS, first=PAIRS * done,
        )  # fmt: skip
        self._groups.append([error.bias2[0], error.variance[0], error.signal[0]])
        del self._groups[:-WINDOW]
        self.seconds += time.perf_counter() - began

    def fields(self, segment: Segment) -> dict[str, Any]:
        """What a metrics line says: ``grad_error`` (`GradientError.record`), null before the first
        group of the segment's setting, and the seconds spent measuring since the last line."""
        seconds, self.seconds = self.seconds, 0.0
        return {"grad_error": self._record(segment), "grad_error_s": seconds}

    def _record(self, segment: Segment) -> dict[str, Any] | None:
        if not self._groups or repr(segment.views) != self._views:
            return None
        bias2, variance, signal = zip(*self._groups, strict=True)
        error = GradientError(bias2, variance, signal, self._gradients.batch, PAIRS)
        return error.record(segment.sample_cost, segment.batch)
