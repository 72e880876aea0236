"""Estimates on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastcl_cli.estimate import Estimate
from fastcl_cli.units import Budget


def print_estimates(
    console: Console,
    estimates: Sequence[Estimate],
    budget: Budget,
    assumptions: Sequence[str],
    gpus: int,
    price: float | None,
) -> None:
    """One row for each schedule, and what the figures rest on."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("schedule", no_wrap=True)
    for name in ("epochs", "GPU-hours", "without compression", "speed-up", "Munits"):
        table.add_column(name, justify="right")
    if gpus > 1:
        table.add_column(f"hours on {gpus}", justify="right")
    if price is not None:
        table.add_column("price", justify="right")
    table.add_column(f"epochs in {budget.text}", justify="right")
    table.add_column("fits")
    for item in estimates:
        row: list[str | Text] = [
            item.name,
            f"{item.epochs:g}",
            _hours(item.gpu_hours),
            _hours(item.gpu_hours_full),
            f"{item.speedup:.2f}x",
            f"{item.units / 1e6:,.1f}",
        ]
        if gpus > 1:
            row.append(_hours(item.gpu_hours / gpus))
        if price is not None:
            row.append(f"{item.gpu_hours * price:,.2f}")
        row.append(f"{item.epochs_in_budget:,.1f}")
        row.append(Text("yes", "green") if item.fits else Text("no", "red"))
        table.add_row(*row)
    console.print(table)
    for line in assumptions:
        console.print(Text(f"  {line}", "dim"), soft_wrap=True)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"
