"""A run as plain lines, for logs, pipes and terminals that cannot redraw."""

from __future__ import annotations

import os
import sys
import time

from fastcl_cli.events import (
    CheckpointSaved,
    Decided,
    Event,
    Measuring,
    Notice,
    Packing,
    RunFinished,
    RunStarted,
    StepLogged,
)
from fastcl_cli.ui.run_words import (
    Forecast,
    closing,
    compression,
    decided,
    duration,
    gradient_error,
    opening,
)

SECONDS_BETWEEN_LINES = 5.0


class Plain:
    """Prints what is worth saying, and the current figures every few seconds."""

    def __init__(self) -> None:
        self._printed_at = float("-inf")
        self._forecast: Forecast | None = None
        self._stop_step = 0
        self._compression = ""
        self._error: str | None = None
        self._tenth = 0

    def __call__(self, event: Event) -> None:
        try:
            for line in self._lines(event):
                print(line, flush=True)
        except BrokenPipeError:
            # Whoever read the lines has gone (`| head`); the run goes on, and its files tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _lines(self, event: Event) -> list[str]:
        match event:
            case RunStarted():
                self._forecast = Forecast(event.plan, event.stop_step)
                self._stop_step = event.stop_step
                return opening(event)
            case StepLogged():
                return self._step(event)
            case Notice():
                return [event.text]
            case RunFinished():
                return closing(event)
            case Packing():
                tenth = event.done * 10 // event.total
                before, self._tenth = self._tenth, tenth
                return [f"packed {event.done:,} of {event.total:,}"] if tenth > before else []
            case Decided():
                assert self._forecast is not None
                self._forecast.plan = event.plan
                return [decided(event)]
            case CheckpointSaved() | Measuring():
                return []

    def _step(self, event: StepLogged) -> list[str]:
        assert self._forecast is not None
        m = event.metrics
        lines = []
        self._forecast.take(m)
        due = time.monotonic() - self._printed_at >= SECONDS_BETWEEN_LINES
        if not due and m["step"] != self._stop_step and "knn" not in m:
            return []
        self._printed_at = time.monotonic()
        now = f"online {compression(m['online'])}, target {compression(m['target'])}"
        if now != self._compression:
            self._compression = now
            lines.append(f"-- {now}")
        left = self._forecast.seconds_left()
        lines.append(
            f"step {m['step']}/{self._stop_step}  epoch {m['epoch']:.2f}  loss {m['loss']:.4f}  "
            f"lr {m['lr']:.2e}  {m['images_per_s']:.0f} img/s  "
            f"data wait {m['data_wait_s'] / m['step_s']:.1%}  cost {m['sample_cost']:.3f} of full"
            + (f"  k-NN {m['knn']['top1']:.1%}" if "knn" in m else "")
            + (f"  {duration(left)} left" if left is not None else "")
        )
        error = gradient_error(m)
        if error is not None and error != self._error:
            lines.append(f"   gradient error: {error}")
        self._error = error
        return lines
