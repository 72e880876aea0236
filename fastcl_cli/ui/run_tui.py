"""A run as a live panel: where in the plan it is, how fast, and how the loss moves."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

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
from fastcl_cli.ui.plan_strip import strip
from fastcl_cli.ui.run_words import (
    Forecast,
    closing,
    compression,
    decided,
    duration,
    gradient_error,
    opening,
    usage,
)

REDRAWS_PER_SECOND = 4
BARS = " ▁▂▃▄▅▆▇█"
HISTORY = 400
"""Figures that a sparkline is made of."""


class Tui:
    """A `rich.live` panel that is redrawn from the events seen so far.

    What should stay on the terminal (opening lines, notices, the result) is printed above it.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(
            console=self._console, refresh_per_second=REDRAWS_PER_SECOND, transient=True
        )
        self._started: RunStarted | None = None
        self._forecast: Forecast | None = None
        self._last: StepLogged | None = None
        self._measuring: Measuring | None = None
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._accuracies: deque[float] = deque(maxlen=HISTORY)
        self._saved = ""

    def __enter__(self) -> Tui:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._started = event
                self._forecast = Forecast(event.plan, event.stop_step)
                self._last, self._measuring, self._saved = None, None, ""
                self._losses.clear()
                self._accuracies.clear()
                self._print(opening(event))
            case StepLogged():
                self._last, self._measuring = event, None
                self._losses.append(event.metrics["loss"])
                if "knn" in event.metrics:
                    self._accuracies.append(event.metrics["knn"]["top1"])
                if self._forecast is not None:
                    self._forecast.take(event.metrics)
            case CheckpointSaved():
                self._saved = f"checkpoint {event.path.name}"
            case Measuring():
                self._measuring = event
            case Decided():
                assert self._forecast is not None
                self._forecast.plan, self._measuring = event.plan, None
                self._print([decided(event)])
            case Packing():
                self._live.update(
                    Group(
                        f"packing: {event.done:,} of {event.total:,} images",
                        bar(event.done, event.total),
                    )
                )
                return
            case Notice():
                self._print([event.text])
            case RunFinished():
                self._live.update("")
                self._print(closing(event))
                return
        self._live.update(self._panel())

    def _print(self, lines: list[str]) -> None:
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _panel(self) -> RenderableType:
        started, last = self._started, self._last
        if started is None or self._forecast is None:
            return ""
        width = max(20, self._console.width - 4)
        step = last.metrics["step"] if last else started.step
        rows: list[RenderableType] = [
            strip(self._forecast.plan, width, step),
            bar(step, started.stop_step),
        ]
        if last is not None:
            rows.append(self._figures(last, width))
        if self._measuring is not None:
            done, total = self._measuring.done, self._measuring.total
            rows += [f"measuring gradients: {done:,} of {total:,}", bar(done, total)]
        return Panel(Group(*rows), title=started.title, title_align="left")

    def _figures(self, last: StepLogged, width: int) -> Table:
        assert self._started is not None and self._forecast is not None
        m = last.metrics
        left = self._forecast.seconds_left()
        wait = m["data_wait_s"] / m["step_s"]
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        table.add_row(
            "step",
            f"{m['step']:,} of {self._started.stop_step:,}, epoch {m['epoch']:.2f}"
            + (f", {duration(left)} left" if left is not None else ""),
        )
        table.add_row("online", compression(m["online"]))
        table.add_row("target", compression(m["target"]))
        table.add_row(
            "speed",
            f"{m['images_per_s']:,.0f} img/s, {m['step_s'] * 1000:,.0f} ms/step, "
            f"data wait {wait:.1%}",
        )
        used = usage(m)
        if used:
            table.add_row("device", used)
        table.add_row(
            "cost",
            f"{m['sample_cost']:.3f} of an uncompressed image now, "
            f"{m['speedup']:.2f}x fewer operations so far",
        )
        table.add_row("loss", f"{m['loss']:.4f}  {sparkline(list(self._losses), width - 22)}")
        if self._accuracies:
            history = sparkline(list(self._accuracies), width - 22)
            table.add_row("k-NN", f"{self._accuracies[-1]:.1%}  {history}")
        table.add_row("lr", f"{m['lr']:.3e}")
        error = gradient_error(m)
        if error is not None:
            table.add_row("error", error)
        if self._saved:
            table.add_row("saved", self._saved)
        return table


def bar(done: int, total: int) -> Table:
    """A progress bar on a line of its own (alone it would not end its line)."""
    line = Table.grid(expand=True)
    line.add_row(ProgressBar(total=max(total, 1), completed=done))
    return line


def sparkline(values: list[float], width: int) -> str:
    """``values`` as at most ``width`` bars, each the mean of its share, scaled to their range."""
    width = min(width, len(values))
    if width < 2:
        return ""
    cuts = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 2) / (high - low) if high > low else 0.0
    return "".join(BARS[1 + round((mean - low) * scale)] for mean in means)
