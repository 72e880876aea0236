"""A plan on the screen: its strip, and a table of its segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastcl_cli.config import RunConfig
from fastcl_cli.files import is_pattern
from fastcl_cli.plan import Compression, Plan, Segment, Tokens
from fastcl_cli.ui.plan_strip import shade, strip
from fastcl_cli.units import plain_number, short_number

MAX_ROWS = 60


def print_plan(console: Console, name: str, plan: Plan, config: RunConfig) -> None:
    """The plan of a valid schedule."""
    console.print(Text(f"{name}: {_summary(plan, config)}"), soft_wrap=True)
    console.print(Text.assemble("  ", strip(plan, min(72, console.width - 4))))
    console.print(_table(plan))
    console.print(
        Text("  after the colon: patch tokens kept, of all where some are dropped", "dim")
    )
    if plan.is_auto:
        note = "auto (~): decided while it runs; counted here at the cheapest choice"
        console.print(Text(f"  {note}", "dim"))
    if config.val is not None and config.knn is not None and _is_missing(config.val):
        console.print(Text(f"  val: no {config.val} here", "dim"), soft_wrap=True)
    cost = f"mean sample cost {plan.mean_cost:.3f}: {plan.speedup:.2f}x fewer operations than full"
    console.print(Text(f"  {cost}", "bold"), soft_wrap=True)


def _summary(plan: Plan, config: RunConfig) -> str:
    source = {
        "data": "of the data",
        "setting": "as the file says",
        "option": "as --images says",
        "imagenet-1k": f"of ImageNet-1k, assumed{_why_assumed(config.data)}",
    }[config.images_source]
    options = "".join(f" {key}={value}" for key, value in config.model.options)
    return (
        f"{config.method}, {config.model.name}{options}, image {config.image}, "
        f"{plan.images:,} images ({source}), {plan.epochs:,.4g} epochs, {plan.steps:,} steps"
    )


def _why_assumed(data: str | None) -> str:
    if data is None:
        return ""
    return f"; no {data} here" if _is_missing(data) else f"; {data} is counted when it is read"


def _is_missing(data: str) -> bool:
    """Whether there is no such file or folder; the name of a set may be one of a download."""
    is_path = bool(Path(data).suffix) or "/" in data
    return is_path and not is_pattern(data) and not Path(data).exists()


def _table(plan: Plan) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    shown = _Shown(
        batch=len({segment.batch for segment in plan.segments}) > 1,
        target=plan.segments[0].target is not None,
        locals=len(plan.segments[0].views) > 1,
    )
    table.add_column(plan.unit if plan.unit != "percent" else "%", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    if shown.batch:
        table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("online" if shown.target else "encoder", no_wrap=True)
    if shown.target:
        table.add_column("target", no_wrap=True)
    if shown.locals:
        view = plan.segments[0].views[1]
        table.add_column(f"{view.count} x {view.side} px", justify="right", no_wrap=True)
    for name in ("cost", "% steps", "% cost"):
        table.add_column(name, justify="right", no_wrap=True)
    total = plan.mean_cost * plan.images_at(plan.steps)
    for segment in plan.segments[:MAX_ROWS]:
        table.add_row(*_row(segment, plan, total, shown))
    hidden = len(plan.segments) - MAX_ROWS
    if hidden > 0:
        table.add_row(f"… {hidden:,} more")
    return table


@dataclass(frozen=True, slots=True)
class _Shown:
    """Columns that only some plans need."""

    batch: bool
    target: bool
    locals: bool


def _row(segment: Segment, plan: Plan, total: float, shown: _Shown) -> list[str | Text]:
    view = segment.views[0]
    steps = segment.end_step - segment.first_step
    row: list[str | Text] = [
        f"{short_number(segment.start)}-{short_number(segment.end)}",
        f"{steps:,}",
    ]
    if shown.batch:
        row.append(f"{segment.batch:,}")
    auto = "auto: " if segment.auto else ""
    row.append(auto + encoder_words(segment.online, view.online))
    if shown.target:
        assert segment.target is not None
        assert view.target is not None
        row.append(encoder_words(segment.target, view.target))
    if shown.locals:
        row.append(_tokens(segment.views[1].online))
    row += [
        Text(f"{segment.sample_cost:.3f}", shade(segment)[1]),
        f"{100 * steps / plan.steps:.1f}",
        f"{100 * segment.sample_cost * steps * segment.batch / total:.1f}",
    ]
    return row


def encoder_words(compression: Compression, tokens: Tokens) -> str:
    """What one encoder sees of a view, e.g. ``drop 0.5 patch 32: 25/49``."""
    drop = plain_number(compression.drop)
    shown = f"drop {drop:.3g} " if drop else ""
    return f"{shown}patch {tokens.patch}: {_tokens(tokens)}"


def _tokens(tokens: Tokens) -> str:
    """Patch tokens kept, of how many."""
    whole = tokens.grid**2
    return f"{whole}" if tokens.kept == whole else f"{tokens.kept}/{whole}"
