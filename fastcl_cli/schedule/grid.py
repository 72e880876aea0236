"""Grids of compression, in the language's words: ``drop 0 0.5 0.75 patch 16 28 32 56``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from fastcl_cli.errors import UsageError
from fastcl_cli.plan import Compression, Segment
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.load import Loaded, Request, ScheduleError, compile_text
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.schedule.source import clip

MAX_CELLS = 400
_NUMBER = re.compile(r"[0-9.]+%?")
_HELP = "such as --grid 'drop 0 0.5 0.75 patch 16 32'"


@dataclass(frozen=True)
class Grid:
    """Every combination of some drops with some patches.

    ``drops`` and ``patches`` are as they were written; ``cells`` holds a segment for each, drops
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
    values = _values(text)
    drops, patches = values["drop"], values["patch"]
    pairs = [(drop, patch) for patch in patches for drop in drops]
    if len(pairs) > MAX_CELLS:
        raise UsageError(f"--grid: {len(pairs):,} cells are more than {MAX_CELLS}", "name fewer")
    phases = "".join(
        f"steps {i}-{i + 1}: drop {drop} patch {patch};\n" for i, (drop, patch) in enumerate(pairs)
    )
    try:
        plan = compile_text(_settings(loaded) + phases, "--grid", _request(loaded)).plan
    except ScheduleError as error:
        first = next(d for d in error.diagnostics if d.severity == "error")
        raise UsageError(f"--grid '{clip(text)}': {first.message}", first.help) from None
    return Grid(drops, patches, plan.segments)


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


def _values(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in text.split():
        if word in ("drop", "patch") and word not in found:
            current = found[word] = []
        elif current is None or not _NUMBER.fullmatch(word):
            raise UsageError(f"--grid '{clip(text)}': unexpected `{clip(word)}`", _HELP)
        elif word in current:
            raise UsageError(f"--grid '{clip(text)}': `{word}` stands twice", "remove one of them")
        else:
            current.append(word)
    for name in ("drop", "patch"):
        if not found.get(name):
            raise UsageError(f"--grid '{clip(text)}': names no `{name}`", _HELP)
    return {name: tuple(words) for name, words in found.items()}


_OF_LENGTH = ("length", "warmup")
"""Settings that speak of the schedule's own ranges."""


def _settings(loaded: Loaded) -> str:
    """The schedule's settings without its phases, as text."""
    statements: Sequence[ast.Statement] = [
        s
        for s in loaded.schedule.statements
        if isinstance(s, ast.Setting) and s.name.text not in _OF_LENGTH
    ]
    return format_schedule(replace(loaded.schedule, statements=tuple(statements), closing=()))


def _request(loaded: Loaded) -> Request:
    request = loaded.request
    kept = (o for o in request.overrides if o.partition("=")[0].strip() not in _OF_LENGTH)
    return replace(request, overrides=tuple(kept))
