"""What a schedule costs on a device, and what of it fits into a budget, before spending it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from fastcl_cli.config import RunConfig
from fastcl_cli.cost import units_per_image
from fastcl_cli.errors import BudgetError, UsageError
from fastcl_cli.estimate.clocks import Clock, Source
from fastcl_cli.extras import is_processor
from fastcl_cli.plan import Segment, View, default_log_interval, default_save_interval
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.load import Loaded, ScheduleError, compile_text
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.schedule.taken import as_run
from fastcl_cli.units import Budget, plain_number, round_half_up, time_words, units_words


@dataclass(frozen=True, slots=True)
class SegmentTime:
    """One segment on all devices: ``seconds`` is wall-clock time, ``full_seconds`` that of the same
    images without compression; ``loader_bound`` says that the devices would take images faster
    than the loader delivers them."""

    segment: Segment
    seconds: float
    full_seconds: float
    source: Source
    loader_bound: bool

    @property
    def images(self) -> int:
        return self.segment.batch * self.steps

    @property
    def steps(self) -> int:
        return self.segment.end_step - self.segment.first_step

    def to_json(self) -> dict[str, Any]:
        described = self.segment.to_json()
        keep = ("start", "end", "batch", "online", "target", "sample_cost")
        return {
            **{key: described[key] for key in keep},
            "steps": self.steps,
            "ms_per_step": 1000 * self.seconds / self.steps,
            "images_per_s": self.images / self.seconds,
            "hours": self.seconds / 3600,
            "source": self.source,
            "loader_bound": self.loader_bound,
        }


@dataclass(frozen=True)
class Estimate:
    """One schedule on one or more devices.

    ``gpu_hours`` are those of all devices together; ``gpu_hours_full`` is for the same images
    without compression. ``units`` are uncompressed forward passes of the base model.
    ``epochs_in_budget`` and ``fits`` are None where there is no budget.
    ``overhead_hours`` of ``gpu_hours`` go into start-up, log lines, checkpoints and the first
    batches of epochs. ``ceiling`` is the loader's, in images a second, or None.
    """

    name: str
    epochs: float
    gpu_hours: float
    gpu_hours_full: float
    units: float
    epochs_in_budget: float | None
    fits: bool | None
    named: bool
    source: str
    overhead_hours: float
    ceiling: float | None
    segments: tuple[SegmentTime, ...]

    @property
    def speedup(self) -> float:
        return self.gpu_hours_full / self.gpu_hours

    @property
    def binds(self) -> int | None:
        """Index of the first segment that the loader binds."""
        return next((i for i, time in enumerate(self.segments) if time.loader_bound), None)

    def to_json(self) -> dict[str, Any]:
        loader = None
        if self.ceiling is not None:
            loader = {"images_per_s": self.ceiling, "binds": self.binds}
        return {
            "schedule": self.name,
            "epochs": self.epochs,
            "gpu_hours": self.gpu_hours,
            "gpu_hours_full": self.gpu_hours_full,
            "units": self.units,
            "speedup": self.speedup,
            "epochs_in_budget": self.epochs_in_budget,
            "fits": self.fits,
            "source": self.source,
            "overhead_hours": self.overhead_hours,
            "loader": loader,
            "segments": [time.to_json() for time in self.segments],
        }


def estimate(
    loaded: Loaded, budget: Budget | None, clock: Clock, named: bool, gpus: int = 1
) -> Estimate:
    """Cost of a schedule by a clock, on ``gpus`` devices that share every batch; and where there is
    a budget, how much of the schedule it pays for."""
    plan, config = loaded.plan, loaded.config
    full = full_views(config)
    times = tuple(_segment_time(config, segment, full, clock, gpus) for segment in plan.segments)
    streams = clock.fixed.stream_s * sum(map(plan.streams, plan.segments))
    once = _seconds_once(loaded, clock, gpus)
    hours, hours_full = (
        gpus * (sum(seconds) + streams + once) / 3600
        for seconds in ([t.seconds for t in times], [t.full_seconds for t in times])
    )
    units = plan.images_at(plan.steps) * units_per_image(config, full) * plan.mean_cost
    # What comes once comes first; the rest grows with the length.
    share = None if budget is None else _share(budget, hours, gpus * once / 3600, units)
    return Estimate(
        loaded.name,
        plan.epochs,
        hours,
        hours_full,
        units,
        None if share is None else plan.epochs * share,
        None if share is None else share >= 1,
        named,
        clock.source,
        gpus * (streams + once) / 3600,
        clock.ceiling,
        times,
    )


def _share(budget: Budget, hours: float, constant: float, units: float) -> float:
    """The part of a schedule's length that a budget pays for, ``constant`` of the hours being there
    whatever the length; above 1 where something is left."""
    amount = float(budget.amount)
    if budget.kind == "units":
        return amount / units
    return max(0.0, amount - constant) / (hours - constant)


def _segment_time(
    config: RunConfig, segment: Segment, full: tuple[View, ...], clock: Clock, gpus: int
) -> SegmentTime:
    images = segment.batch * (segment.end_step - segment.first_step)
    time = clock.image(config, segment.views, segment.batch, gpus)
    without = clock.image(config, full, segment.batch, gpus)
    # The loader's time for an image is hidden behind the devices', or the other way round.
    least = 0.0 if clock.ceiling is None else 1 / clock.ceiling
    return SegmentTime(
        segment,
        images * max(time.seconds / gpus, least),
        images * max(without.seconds / gpus, least),
        time.source,
        time.computing / gpus < least,
    )


def _seconds_once(loaded: Loaded, clock: Clock, gpus: int) -> float:
    """Start-up, and the log lines and checkpoints of a run with the default intervals: how many
    there are hardly depends on its length."""
    plan = loaded.plan
    logs = 0.0
    for segment in plan.segments:
        lines = (segment.end_step - segment.first_step) / default_log_interval(plan.steps)
        logs += lines * clock.image(loaded.config, segment.views, segment.batch, gpus).log
    saves = plan.steps / default_save_interval(plan.steps)
    return clock.fixed.start_s + logs + saves * clock.fixed.save_s


def check_device(budget: Budget, clock: Clock) -> None:
    """Refuse a budget of processor hours where times are a GPU's, and the other way round.

    Raises:
        UsageError: they are.
    """
    known = f"what is known are times of {clock.device}"
    if budget.of_processor and not is_processor(clock.device):
        raise UsageError(
            f"--budget '{budget.text}' is a processor's time, and {known}",
            "`fastcl bench FILE` measures this machine; gpuh, gpud and gpumin are a GPU's time",
        )
    if budget.kind == "gpu_hours" and not budget.of_processor and is_processor(clock.device):
        raise UsageError(
            f"--budget '{budget.text}' is a GPU's time, and {known}",
            "write cpuh, cpud or cpumin; `--gpu h100` counts for a GPU instead",
        )


def require_fit(estimates: Sequence[Estimate], budget: Budget) -> None:
    """Refuse a budget that a schedule named by the user does not fit.

    Raises:
        BudgetError: naming the schedule, what it needs and the budget.
    """
    for item in estimates:
        if item.named and not item.fits:
            needs = f"{units_words(item.units)}units"
            if budget.kind == "gpu_hours":
                needs = f"{time_words(3600 * item.gpu_hours)} of device time"
            raise BudgetError(
                f"{item.name} needs {needs}; the budget is {budget.text}",
                f"{item.epochs_in_budget:,.1f} of its {item.epochs:g} epochs fit; "
                "--write OUT.fcs makes a schedule that does",
            )


def fit(loaded: Loaded, budget: Budget, clock: Clock, gpus: int = 1) -> str:
    """The text of a schedule like ``loaded``, shortened to fit the budget (as it is if it fits).

    All ranges shrink by one factor, to whole epochs or steps, and so does the warm-up. It holds
    what ``--set`` replaced; only where the images lie stays as the file has it.

    Raises:
        BudgetError: not even one epoch (or step) per phase fits.
    """
    if loaded.config.images_source == "option":
        raise UsageError(
            "--write makes a file that stands alone, so --images cannot count for it",
            f"put `images {loaded.config.images};` into the schedule",
        )
    current = estimate(loaded, budget, clock, named=True, gpus=gpus)
    assert current.epochs_in_budget is not None
    if current.fits:
        return format_schedule(replace(loaded.schedule, statements=tuple(as_run(loaded))))
    total = loaded.plan.total
    if loaded.plan.unit == "percent":
        total = Fraction(loaded.plan.epochs)
    size = int(total * Fraction(current.epochs_in_budget / current.epochs))
    while size >= 1:
        tree = _scaled(loaded, Fraction(size) / total)
        if tree is None:
            break
        text = format_schedule(tree)
        try:
            shorter = compile_text(text, loaded.name, replace(loaded.request, overrides=()))
        except ScheduleError:
            # A phase or a stair without a step: it will not get better with fewer epochs.
            break
        if estimate(shorter, budget, clock, named=True, gpus=gpus).fits:
            head = f"# {loaded.name}, shortened to {float(size / total):.1%} to fit {budget.text}"
            auto = ", auto phases at their cheapest" if loaded.plan.is_auto else ""
            return f"{head} ({clock.words}{auto})\n\n{text}"
        size -= max(1, size // 200)
    raise BudgetError(
        f"{loaded.name} cannot be shortened to {budget.text}",
        "not even one epoch (or step) of each phase fits: use fewer phases or a larger budget",
    )


def _scaled(loaded: Loaded, factor: Fraction) -> ast.Schedule | None:
    """The tree with every range shortened by ``factor``, or None where a phase would vanish."""
    statements: list[ast.Statement] = []
    unit = loaded.plan.unit
    expected = Fraction(0)
    has_warmup = False
    for statement in as_run(loaded):
        if isinstance(statement, ast.Phase) and unit != "percent":
            end = Fraction(round_half_up(statement.end.value * factor))
            if end <= expected:
                return None
            statement = replace(
                statement,
                start=replace(statement.start, value=expected),
                end=replace(statement.end, value=end),
            )
            expected = end
        elif isinstance(statement, ast.Setting) and statement.name.text == "length":
            number = statement.values[0]
            assert isinstance(number, ast.Number)
            length = Fraction(round_half_up(number.value * factor))
            if length == 0:
                return None
            rest = statement.values[1:]
            statement = replace(statement, values=(replace(number, value=length), *rest))
        elif isinstance(statement, ast.Setting) and statement.name.text == "warmup":
            has_warmup = True
            statement = replace(statement, values=_warmup(loaded, statement))
        statements.append(statement)
    if not has_warmup and loaded.config.warmup.unit != "percent":
        first = loaded.schedule.phases[0]
        name = ast.Word("warmup", first.span)
        warmup = ast.Setting(name, (), first.span)
        statements.append(replace(warmup, values=_warmup(loaded, warmup)))
    return replace(loaded.schedule, statements=tuple(statements))


def _warmup(loaded: Loaded, setting: ast.Setting) -> tuple[ast.Value, ...]:
    """The warm-up as a share of the run, to a tenth of a per cent."""
    share = loaded.plan.in_epochs(loaded.config.warmup) / loaded.plan.epochs
    value = Fraction(round_half_up(Fraction(share) * 1000), 10)
    return (ast.Number(min(value, Fraction(100)), True, setting.span),)


def budget_json(budget: Budget) -> dict[str, Any]:
    return {"text": budget.text, budget.kind: plain_number(budget.amount)}
