"""Estimates on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastcl_cli.estimate.estimate import Estimate
from fastcl_cli.ui.plan_table import MAX_ROWS, encoder_words
from fastcl_cli.units import Budget, time_words, units_words


def print_estimates(
    console: Console,
    estimates: Sequence[Estimate],
    budget: Budget | None,
    assumptions: Sequence[str],
    gpus: int,
    price: float | None,
) -> None:
    """One row for each schedule, and what the figures rest on."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("schedule", no_wrap=True)
    time = "time" if gpus == 1 else "device time"
    for name in ("epochs", time, "without compression", "speed-up", "units"):
        table.add_column(name, justify="right")
    if gpus > 1:
        table.add_column(f"time on {gpus}", justify="right")
    if price is not None:
        table.add_column("price", justify="right")
    if budget is not None:
        table.add_column(f"epochs in {budget.text}", justify="right")
        table.add_column("fits")
    for item in estimates:
        row: list[str | Text] = [
            item.name,
            f"{item.epochs:g}",
            time_words(3600 * item.gpu_hours),
            time_words(3600 * item.gpu_hours_full),
            f"{item.speedup:.2f}x",
            units_words(item.units),
        ]
        if gpus > 1:
            row.append(time_words(3600 * item.gpu_hours / gpus))
        if price is not None:
            row.append(f"{item.gpu_hours * price:,.2f}")
        if item.epochs_in_budget is not None:
            row.append(f"{item.epochs_in_budget:,.1f}")
            row.append(Text("yes", "green") if item.fits else Text("no", "red"))
        table.add_row(*row)
    console.print(table)
    for item in estimates:
        if item.named:
            _print_segments(console, item, gpus)
    for line in assumptions:
        console.print(Text(f"  {line}", "dim"), soft_wrap=True)


def _print_segments(console: Console, item: Estimate, gpus: int) -> None:
    """Where a schedule's time goes, and what the loader has to do with it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("segment", justify="right")
    for name in ("steps", "batch"):
        table.add_column(name, justify="right")
    table.add_column("online", no_wrap=True)
    for name in ("ms/step", "images/s", "time", "% of time"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    hours = item.gpu_hours / gpus
    for index, time in enumerate(item.segments[:MAX_ROWS]):
        segment = time.segment
        table.add_row(
            f"{index + 1}",
            f"{time.steps:,}",
            f"{segment.batch:,}",
            encoder_words(segment.online, segment.views[0].online),
            f"{1000 * time.seconds / time.steps:,.4g}",
            f"{time.images / time.seconds:,.0f}",
            time_words(time.seconds),
            f"{time.seconds / 36 / hours:.1f}",
            ", ".join(
                ["loader-bound"] * time.loader_bound + [time.source] * (time.source == "scaled")
            ),
        )
    if len(item.segments) > MAX_ROWS:
        table.add_row(f"… {len(item.segments) - MAX_ROWS:,} more")
    console.print(Text(f"\n{item.name}"), soft_wrap=True)
    console.print(table)
    if item.overhead_hours:
        console.print(
            f"  start-up, epochs' first batches, log lines, checkpoints: "
            f"{item.overhead_hours / item.gpu_hours:.1%} of the time"
        )
    if item.ceiling is not None:
        bound = "binds no segment"
        if item.binds is not None:
            bound = f"binds from segment {item.binds + 1} on, where it is the time that counts"
        console.print(f"  the loader delivers at most {item.ceiling:,.0f} images/s: {bound}")
