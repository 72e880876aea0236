"""What a schedule costs on a device, and what of it fits into a budget, before spending it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from fastcl_cli.cost import forward_flops, units_per_image
from fastcl_cli.devices import Device
from fastcl_cli.errors import BudgetError, UsageError
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.load import Loaded, ScheduleError, compile_text
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.units import Budget, plain_number, round_half_up


@dataclass(frozen=True)
class Estimate:
    """One schedule on one device.

    ``gpu_hours`` are those of all devices together; ``gpu_hours_full`` is for the same images
    without compression. ``units`` are uncompressed forward passes of the base model.
    """

    name: str
    epochs: float
    gpu_hours: float
    gpu_hours_full: float
    units: float
    epochs_in_budget: float
    fits: bool
    named: bool

    @property
    def speedup(self) -> float:
        return self.gpu_hours_full / self.gpu_hours

    def to_json(self) -> dict[str, Any]:
        return {
            "schedule": self.name,
            "epochs": self.epochs,
            "gpu_hours": self.gpu_hours,
            "gpu_hours_full": self.gpu_hours_full,
            "units": self.units,
            "speedup": self.speedup,
            "epochs_in_budget": self.epochs_in_budget,
            "fits": self.fits,
        }


def gpu_seconds(flops: float, device: Device) -> float:
    return flops / (device.peak * 1e12 * device.utilisation)


def estimate(loaded: Loaded, budget: Budget, device: Device, named: bool) -> Estimate:
    """Cost of a schedule by the analytic model (`fastcl_cli.cost`) at the device's utilisation."""
    plan, config = loaded.plan, loaded.config
    full = full_views(config)
    flops, flops_full = 0, 0
    flops_of: dict[object, int] = {}
    for segment in plan.segments:
        images = segment.batch * (segment.end_step - segment.first_step)
        for views in (segment.views, full):
            if (views, segment.batch) not in flops_of:
                each = forward_flops(config, views, segment.batch).training
                flops_of[views, segment.batch] = each
        flops += images * flops_of[segment.views, segment.batch]
        flops_full += images * flops_of[full, segment.batch]
    units = plan.images_at(plan.steps) * units_per_image(config, full) * plan.mean_cost
    hours = gpu_seconds(flops, device) / 3600
    spent = hours if budget.kind == "gpu_hours" else units
    share = float(budget.amount) / spent
    return Estimate(
        loaded.name,
        plan.epochs,
        hours,
        gpu_seconds(flops_full, device) / 3600,
        units,
        plan.epochs * share,
        share >= 1,
        named,
    )


def require_fit(estimates: Sequence[Estimate], budget: Budget) -> None:
    """Refuse a budget that a schedule named by the user does not fit.

    Raises:
        BudgetError: naming the schedule, what it needs and the budget.
    """
    for item in estimates:
        if item.named and not item.fits:
            needs = f"{item.gpu_hours:,.1f} GPU-hours"
            if budget.kind == "units":
                needs = f"{item.units / 1e6:,.1f} million units"
            raise BudgetError(
                f"{item.name} needs {needs}; the budget is {budget.text}",
                f"{item.epochs_in_budget:,.1f} of its {item.epochs:g} epochs fit; "
                "--write OUT.fcs makes a schedule that does",
            )


def fit(loaded: Loaded, budget: Budget, device: Device) -> str:
    """The text of a schedule like ``loaded``, shortened to fit the budget (as it is if it fits).

    All ranges shrink by one factor, to whole epochs or steps, and so does the warm-up.

    Raises:
        BudgetError: not even one epoch (or step) per phase fits.
    """
    if loaded.config.images_source == "option":
        raise UsageError(
            "--write makes a file that stands alone, so --images cannot count for it",
            f"put `images {loaded.config.images};` into the schedule",
        )
    current = estimate(loaded, budget, device, named=True)
    if current.fits:
        return format_schedule(loaded.schedule)
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
            shorter = compile_text(text, loaded.name)
        except ScheduleError:
            # A phase or a stair without a step: it will not get better with fewer epochs.
            break
        if estimate(shorter, budget, device, named=True).fits:
            head = f"# {loaded.name}, shortened to {float(size / total):.1%} to fit {budget.text}"
            device_words = f"{device.name} at {device.utilisation:.0%} of {device.peak:g} TFLOP/s"
            auto = ", auto phases at their cheapest" if loaded.plan.is_auto else ""
            return f"{head} ({device_words}, analytic{auto})\n\n{text}"
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
    for statement in loaded.schedule.statements:
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
