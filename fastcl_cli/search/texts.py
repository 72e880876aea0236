"""The schedules of a search: the one that it trains with, and the one that it finds. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any

from fastcl_cli.config import RunConfig
from fastcl_cli.errors import BudgetError
from fastcl_cli.plan import Plan
from fastcl_cli.schedule import Loaded, Request, compile_text
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.grid import on_grid, settings_text
from fastcl_cli.units import format_decimal, round_half_up

DEFAULT_DROPS = "0 0.25 0.5 0.75"
LEAST_GRID = 4
"""Tokens per side that the default grid's patches leave at least."""
_PLACES = 10**4


def default_grid(config: RunConfig) -> str:
    """Settings to try where nobody names them, as `choices` writes them."""
    own = config.model.patch
    sides = range(own, config.image // LEAST_GRID + 1)
    patches = [side for side in sides if config.image % side == 0] or [own]
    return f"drop {DEFAULT_DROPS} patch {' '.join(map(str, patches))}"


def length_of(base: Loaded) -> Fraction:
    """The run in epochs, to four decimals where its ranges are in steps."""
    plan = base.plan
    if plan.unit == "epochs":
        return plan.total
    if plan.length is not None:
        return plan.length
    return Fraction(round_half_up(Fraction(plan.epochs) * _PLACES), _PLACES)


def trial(base: Loaded, grid: str | None, length: Fraction) -> Loaded:
    """The schedule that a search trains with: the base's settings, one `auto` phase.

    Args:
        base: its phases say no more than how long a run is.
        grid: in place of its `choices`.
        length: epochs; where it is not the base's, the warm-up keeps its share of the run.

    Raises:
        UsageError: the grid is not valid.
        ScheduleError: the trial is too short.
    """
    grid = grid or _own_choices(base) or default_grid(base.config)
    if length == length_of(base):
        return on_grid(base, grid, length)
    share = base.plan.in_epochs(base.config.warmup) / base.plan.epochs
    percent = Fraction(round_half_up(Fraction(share) * 1000), 10)
    return on_grid(base, grid, length, min(percent, Fraction(100)))


def _own_choices(base: Loaded) -> str | None:
    choices = base.config.choices
    if choices is None:
        return None
    drops = " ".join(format_decimal(drop) for drop in choices.drop)
    return f"drop {drops} patch {' '.join(map(str, choices.patch))}"


def stage_bounds(stages: int) -> list[Fraction]:
    """Per cent at which the stages start, and 100: equal, to four decimals."""
    return [Fraction(round_half_up(Fraction(100 * s * _PLACES, stages)), _PLACES)
            for s in range(stages + 1)]  # fmt: skip


def stage_starts(plan: Plan, stages: int) -> tuple[int, ...]:
    """The first step of each stage.

    Raises:
        BudgetError: the run has not a step for each.
    """
    assert plan.length is not None
    starts = []
    for bound in stage_bounds(stages)[:-1]:
        place = float(bound * plan.length / 100)
        low, high = 0, plan.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if plan.epochs_at(middle) >= place else (middle + 1, high)
        starts.append(low)
    if len(set(starts)) < stages or starts[-1] >= plan.steps:
        raise BudgetError(
            f"a search of {plan.steps} steps has no {stages} stages",
            "use fewer stages, or a longer run",
        )
    return tuple(starts)


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a finished search: from ``start`` to ``end`` per cent, trained with ``drop`` and
    ``patch``; ``record`` is what was measured before it."""

    start: Fraction
    end: Fraction
    drop: str
    patch: int
    record: Mapping[str, Any]

    @property
    def words(self) -> str:
        return setting({"drop": self.drop, "patch": self.patch})


def stages_of(records: Sequence[Mapping[str, Any]], stages: int) -> list[Stage]:
    """The stages of a search from its run's decisions, one for each."""
    bounds = stage_bounds(stages)
    assert len(records) == stages
    made = []
    for (start, end), record in zip(pairwise(bounds), records, strict=True):
        row = next(row for row in record["settings"] if setting(row) == record["to"])
        made.append(Stage(start, end, row["drop"], row["patch"], record))
    return made


def setting(row: Mapping[str, Any]) -> str:
    """The setting that a row of a record is of, in the language's words."""
    return f"drop {row['drop']} patch {row['patch']}"


def found_schedule(base: Loaded, stages: Sequence[Stage], head: Sequence[str]) -> str:
    """The text of the schedule that a search found, with the tables that it was chosen from."""
    lines = [*head, "#"]
    for stage in stages:
        lines += _stage_comment(stage)
    lines += ["", settings_text(base, {"length", "choices"}).rstrip()]
    lines.append(f"length {format_decimal(length_of(base))} epochs;")
    own = base.config.model.patch
    phases = []
    for _, group in groupby(stages, lambda stage: stage.words):
        same = list(group)
        parts = [f"drop {same[0].drop}"] if same[0].drop != "0" else []
        parts += [f"patch {same[0].patch}"] if same[0].patch != own else []
        span = f"{format_decimal(same[0].start)}%-{format_decimal(same[-1].end)}%"
        phases.append(f"{span}: {' '.join(parts) or 'full'};")
    text = "\n".join([*lines, "", *phases]) + "\n"
    return format_schedule(compile_text(text, base.name, _plain(base.request)).schedule)


def _plain(request: Request) -> Request:
    """The request without overrides: the text holds what they said."""
    return replace(request, overrides=())


def _stage_comment(stage: Stage) -> Iterator[str]:
    span = f"{format_decimal(stage.start)}%-{format_decimal(stage.end)}%"
    yield f"# {span}: {stage.words}:"
    yield f"# {stage.record['why']}"
    rows = stage.record["settings"]
    known = all(row["relative"]["ca_mse"] is not None for row in rows)
    unit = "/‖g‖²" if known else ""
    yield (
        f"#   {'drop':<6} {'patch':<7} {'cost':<6} "
        + " ".join(f"{name + unit:<14}" for name in ("bias²", "variance", "CA-MSE")).rstrip()
    )
    for row in rows:
        source = row["relative"] if known else row
        figures = " ".join(f"{source[name]:<14.3g}" for name in ("bias2", "variance", "ca_mse"))
        mark = "<" if setting(row) == stage.words else ""
        yield f"#   {row['drop']:<6} {row['patch']:<7} {row['cost']:<6.3f} {figures}{mark}".rstrip()
