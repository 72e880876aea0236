"""Words and figures that both screens of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcl_cli.config import IMAGENET_MEAN, IMAGENET_STD
from fastcl_cli.events import Decided, RunFinished, RunStarted
from fastcl_cli.plan import Plan, Segment


def compression(encoder: Mapping[str, Any] | None) -> str:
    """One encoder's compression as a metrics line holds it, e.g. ``25 of 49 tokens of 32 px``."""
    if encoder is None:
        return "none"
    total = encoder["grid"] ** 2
    return f"{encoder['tokens']} of {total} tokens of {encoder['patch']} px"


def short(segment: Segment) -> str:
    """A segment's online compression in a few characters, e.g. ``25 tok`` or ``auto 25 tok``."""
    return f"{'auto ' * segment.auto}{segment.views[0].online.kept} tok"


def duration(seconds: float) -> str:
    """``42 s``, ``3:07 min``, ``2:05 h``, ``3.2 d``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{whole / 86400:.1f} d"


def opening(event: RunStarted) -> list[str]:
    """The lines that say what is about to run."""
    plan = event.plan
    auto = ", auto phases counted at their cheapest" if plan.is_auto else ""
    segments = len(plan.segments)
    return [
        f"{event.title}: {plan.method}, {event.images:,} images, {plan.epochs:g} epochs, "
        f"{plan.steps:,} steps in {segments} segment{'s' if segments > 1 else ''}",
        f"{event.parameters:,} trained parameters in {event.precision} on {event.device}",
        f"planned cost {plan.mean_cost:.3f} of full ({plan.speedup:.2f}x fewer operations){auto}; "
        f"writing {event.folder}",
    ]


def closing(event: RunFinished) -> list[str]:
    """The lines that say what came out, and how to use it."""
    steps = "step" if event.step == 1 else "steps"
    lines = [
        f"done after {event.step:,} {steps} in {duration(event.seconds)}: "
        f"{event.folder / 'backbone.safetensors'}",
        f"load it:  {event.load_line}",
        f"          for images normalised by mean {IMAGENET_MEAN} and std {IMAGENET_STD}",
    ]
    if left := event.steps - event.step:
        lines.append(
            f"not the whole schedule: {left:,} of its {event.steps:,} steps are left; "
            f"the same command goes on with `--resume auto --out {event.folder}`, without "
            "`--max-steps`"
        )
    return lines


def decided(event: Decided) -> str:
    """What an `auto` phase decided, and why."""
    if not event.why:
        return f"step {event.step:,}: stays with {event.setting}"
    return f"step {event.step:,}: {event.setting}: {event.why}"


def gradient_error(metrics: Mapping[str, Any]) -> str | None:
    """The running estimate of a metrics line, over the squared length of the mean gradient, with
    half its 95 % interval from the second group on: estimates are unbiased, so a small one may lie
    below 0, and then the interval says that it is noise."""
    error = metrics.get("grad_error")
    if error is None:
        return None
    known = error["relative"]["bias2"] is not None and error["signal"] > 0
    unit = error["signal"] if known else 1.0
    figures = []
    for name, word in {"bias2": "bias²", "variance": "variance", "ca_mse": "CA-MSE"}.items():
        interval = error["interval"][name]
        half = "" if interval is None else f"±{(interval[1] - interval[0]) / 2 / unit:.1g}"
        figures.append(f"{word} {error[name] / unit:.2g}{half}")
    groups = error["groups"]
    return (
        f"{', '.join(figures)}{' of ‖g‖²' if known else ''} "
        f"({groups} group{'' if groups == 1 else 's'})"
    )


def usage(metrics: Mapping[str, Any]) -> str | None:
    """What a metrics line says of the device."""
    parts = []
    if metrics.get("tflops") is not None:
        tflops = metrics["tflops"]
        parts.append(f"{tflops:.3g} TFLOP/s" if tflops >= 1 else f"{1000 * tflops:.3g} GFLOP/s")
    if metrics.get("mfu") is not None:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if metrics.get("memory") is not None:
        parts.append(f"{metrics['memory'] / 1e9:.1f} GB at most")
    return ", ".join(parts) or None


class Forecast:
    """Time left, following the remaining plan. ``plan`` may be replaced when an `auto` phase has
    decided.

    Steps that cost as much as some before take as long as those did. Others take what a line
    through the dearest and the cheapest of those says, for not all of a step's work grows with its
    tokens; where all so far cost the same, time grows with cost. Times are of the log lines, all
    but the first: the steps that it covers hold what happens once (compiling, warming up).
    """

    def __init__(self, plan: Plan, stop_step: int) -> None:
        self.plan = plan
        self._stop_step = stop_step
        self._step: int | None = None
        self._taken: dict[float, tuple[int, float]] = {}
        """Steps and their seconds, by what a step costs."""

    def take(self, metrics: Mapping[str, Any]) -> None:
        """Count a log line."""
        step, before = metrics["step"], self._step
        self._step = step
        if before is None or step <= before:
            return
        count = step - before
        cost = _rounded((self.plan.cost_at(step) - self.plan.cost_at(before)) / count)
        steps, seconds = self._taken.get(cost, (0, 0.0))
        seconds += count * metrics["step_s"] + metrics.get("grad_error_s", 0.0)
        self._taken[cost] = (steps + count, seconds)

    def seconds_left(self) -> float | None:
        """Seconds from the last line to the end, or None before anything was measured."""
        if self._step is None or not self._taken:
            return None
        left = 0.0
        for segment in self.plan.segments:
            steps = min(segment.end_step, self._stop_step) - max(segment.first_step, self._step)
            if steps > 0:
                left += steps * self._step_seconds(_rounded(segment.batch * segment.sample_cost))
        return left

    def _step_seconds(self, cost: float) -> float:
        means = {known: seconds / steps for known, (steps, seconds) in self._taken.items()}
        if cost in means:
            return means[cost]
        low, high = min(means), max(means)
        slope = means[high] / high
        if low < high:
            # Neither a step that takes less the more it costs, nor work that takes less than none.
            slope = min(max((means[high] - means[low]) / (high - low), 0.0), slope)
        return means[high] + slope * (cost - high)


def _rounded(cost: float) -> float:
    """The same number for costs that differ by rounding alone."""
    return round(cost, 6)
