"""Grids of compression, as the setting `choices` writes them:
``drop 0 0.5 0.75 patch 16 28 32 56``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from fastcl_cli.errors import UsageError
from fastcl_cli.plan import Compression, Segment
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.load import Loaded, ScheduleError, compile_text
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.schedule.source import clip
from fastcl_cli.schedule.taken import as_run
from fastcl_cli.units import format_decimal


@dataclass(frozen=True)
class Grid:
    """Every combination of some drops with some patches.

    ``drops`` and ``patches`` are in rising order; ``cells`` holds a segment for each, drops
    varying first. Each clause is for its default encoders, at the schedule's own batch.
    """

    drops: tuple[str, ...]
    patches: tuple[str, ...]
    cells: tuple[Segment, ...]


def parse_grid(text: str, loaded: Loaded) -> Grid:
    """The cells of a grid, under a schedule's settings.

    Raises:
        UsageError: ``text`` is no grid, or a value does not suit the model or the image.
    """
    tried = on_grid(loaded, text, Fraction(1))
    choices, config = tried.config.choices, tried.config
    assert choices is not None
    rungs = {(rung.online.drop, rung.online.patch): rung for rung in ladder(config, config.batch)}
    first_segment = replace(tried.plan.segments[0], auto=False)
    cells = []
    for patch in choices.patch:
        for drop in choices.drop:
            rung = rungs[drop, patch]
            cells.append(
                replace(
                    first_segment,
                    online=rung.online,
                    target=rung.target,
                    views=rung.views,
                    sample_cost=rung.sample_cost,
                )
            )
    drops = tuple(format_decimal(drop) for drop in choices.drop)
    return Grid(drops, tuple(map(str, choices.patch)), tuple(cells))


def on_grid(loaded: Loaded, grid: str, length: Fraction, warmup: Fraction | None = None) -> Loaded:
    """A schedule's settings with one `auto` phase over a grid.

    Args:
        loaded: its phases are left out.
        length: of the run, in epochs.
        warmup: in per cent of it, in place of the schedule's own.

    Raises:
        UsageError: ``grid`` is no grid, or a value does not suit the model or the image.
        ScheduleError: no step fits into the length.
    """
    without = {"length", "choices"} | ({"warmup"} if warmup is not None else set())
    lines = [settings_text(loaded, without), f"length {format_decimal(length)} epochs;"]
    if warmup is not None:
        lines.append(f"warmup {format_decimal(warmup)}%;")
    request = replace(loaded.request, overrides=(f"choices={grid}",))
    try:
        return compile_text("\n".join([*lines, "0%-100%: auto;"]) + "\n", loaded.name, request)
    except ScheduleError as error:
        first = next(d for d in error.diagnostics if d.severity == "error")
        if first.file != "--set choices":
            raise
        raise UsageError(f"--grid '{clip(grid)}': {first.message}", first.help) from None


def settings_text(loaded: Loaded, without: set[str]) -> str:
    """The settings that a schedule was loaded with, those of the command line in place, as text:
    no comments, no phases, none of ``without``."""
    plain: list[ast.Statement] = [
        replace(statement, remarks=ast.Remarks())
        for statement in as_run(loaded)
        if isinstance(statement, ast.Setting) and statement.name.text not in without
    ]
    return format_schedule(replace(loaded.schedule, statements=tuple(plain), closing=()))


def to_measure(loaded: Loaded, grid: Grid | None) -> tuple[Segment, ...]:
    """One segment for every way of taking a step that differs in views or batch: those of the
    grid, else of the schedule, and no compression at each of their batches."""
    config = loaded.config
    segments = list(grid.cells if grid is not None else loaded.plan.segments)
    full, patch = full_views(config), Compression(Fraction(0), config.model.patch)
    target = None if full[0].target is None else patch
    for batch in dict.fromkeys(segment.batch for segment in segments):
        without = replace(segments[0], batch=batch, online=patch, target=target)
        segments.append(replace(without, views=full, sample_cost=1.0))
    distinct: dict[object, Segment] = {}
    for segment in segments:
        distinct.setdefault((segment.views, segment.batch), segment)
    return tuple(distinct.values())
