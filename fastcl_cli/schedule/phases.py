"""Checks of a file's phases: ranges that follow each other, clauses that mean something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from fastcl_cli.plan import Unit
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.check import Settings
from fastcl_cli.schedule.clauses import Clauses, PhaseSpec
from fastcl_cli.schedule.diagnostics import Collector, FaultError, did_you_mean
from fastcl_cli.schedule.patch_sides import valid_patches
from fastcl_cli.schedule.source import Span, clip
from fastcl_cli.schedule.words import CLAUSES, UNITS
from fastcl_cli.units import format_decimal


@dataclass(slots=True)
class Phases:
    unit: Unit
    specs: list[PhaseSpec]


def check_phases(schedule: ast.Schedule, settings: Settings, faults: Collector) -> Phases | None:
    """The phases of a file, or None where they are not all without fault."""
    before = len(faults.found)
    statements = [s for s in schedule.statements if not isinstance(s, ast.Setting)]
    has_phase = any(isinstance(s, ast.Phase) or s.is_phase for s in statements)
    if not has_phase and not any(d.code == "FCS002" for d in faults.found):
        end = max(0, len(schedule.span.source.text) - 1)
        place = Span(schedule.span.source, end, end + 1)
        faults.add("FCS013", place, "the schedule has no phase", "add `epochs 0-100: full;`")
    unit = _check_ranges(statements, faults)
    _check_length(unit, statements, settings, faults)
    _check_auto(statements, settings, faults)
    specs = []
    for statement in statements:
        if isinstance(statement, ast.Phase):
            spec = Clauses(statement, settings, faults).spec()
            if spec is not None:
                specs.append(spec)
    if unit is None or any(d.severity == "error" for d in faults.found[before:]):
        return None
    return Phases(unit, specs)


def _unit(phase: ast.Phase) -> Unit:
    """The unit of one range.

    Raises:
        FaultError: FCS016 where it has none.
    """
    percents = (phase.start.percent, phase.end.percent)
    span = phase.range_span
    if phase.unit is not None:
        word = phase.unit.text
        if word not in UNITS:
            help = did_you_mean(word, UNITS, "units")
            message = f"`{clip(word)}` is not a unit of a range"
            raise FaultError("FCS016", phase.unit.span, message, help)
        if any(percents):
            message = f"a range is in {word} or in per cent, not both"
            raise FaultError("FCS016", span, message, f"remove `{word}` or `%`")
        return "epochs" if word == "epochs" else "steps"
    if all(percents):
        return "percent"
    if any(percents):
        help = f"write `{phase.start.text.rstrip('%')}%-{phase.end.text.rstrip('%')}%:`"
        raise FaultError("FCS016", span, "one end of the range is in per cent", help)
    start, end = format_decimal(phase.start.value), format_decimal(phase.end.value)
    help = f"write `epochs {start}-{end}:`, `steps {start}-{end}:` or `{start}%-{end}%:`"
    raise FaultError("FCS016", span, "the range has no unit", help)


def _check_ranges(statements: Sequence[ast.Phase | ast.Broken], faults: Collector) -> Unit | None:
    """Check that ranges are in one unit and follow each other from 0; return the unit."""
    common: Unit | None = None
    # Where the next range must start; None after a statement that could not be read.
    expected: Fraction | None = Fraction(0)
    for statement in statements:
        if isinstance(statement, ast.Broken):
            expected = None
            continue
        start, end = statement.start, statement.end
        try:
            unit = _unit(statement)
        except FaultError as fault:
            faults.keep(fault.diagnostic)
            expected = None
            continue
        if common is None:
            common = unit
        elif unit != common:
            message = f"this range is in {unit}, the ones before it in {common}"
            faults.add("FCS016", statement.range_span, message, f"write it in {common}")
            expected = None
            continue
        _check_bounds(statement, unit, faults)
        if expected is not None and start.value != expected and start.value < end.value:
            _report_gap(statement, expected, faults)
        if end.value <= start.value:
            message = f"the range from {start.text} to {end.text} is empty"
            help = "a range ends after it starts; its end is not included"
            faults.add("FCS015", statement.range_span, message, help)
            expected = None
        else:
            expected = end.value
    return common


def _report_gap(phase: ast.Phase, expected: Fraction, faults: Collector) -> None:
    sign = "%" if phase.start.percent else ""
    right = format_decimal(expected) + sign
    if expected == 0:
        message = f"the first range starts at {phase.start.text}, not at 0"
    elif phase.start.value > expected:
        message = f"nothing is said from {right} to {phase.start.text}"
    else:
        message = f"the range starts at {phase.start.text}, but the one before it ends at {right}"
    unit = f"{phase.unit.text} " if phase.unit else ""
    faults.add("FCS014", phase.start.span, message, f"write `{unit}{right}-{phase.end.text}:`")


def _check_bounds(phase: ast.Phase, unit: Unit, faults: Collector) -> None:
    for bound in (phase.start, phase.end):
        if unit == "steps" and bound.value.denominator != 1:
            faults.add("FCS010", bound.span, f"step {bound.text} is not whole", "steps are whole")
        if unit == "percent" and bound.value > 100:
            faults.add("FCS010", bound.span, f"{bound.text} is more than all", "0% to 100%")


def _check_length(
    unit: Unit | None,
    statements: Sequence[ast.Phase | ast.Broken],
    settings: Settings,
    faults: Collector,
) -> None:
    given = settings.nodes.get("length")
    if unit is None:
        return
    if unit != "percent":
        if given is not None:
            message = f"`length` has no effect: the ranges are in {unit}"
            faults.add("FCS017", given.name.span, message, "remove it, or write ranges in per cent")
        return
    phases = [s for s in statements if isinstance(s, ast.Phase)]
    if given is None and "length" not in settings.damaged:
        message = "ranges in per cent need the length of the run"
        faults.add("FCS017", phases[0].range_span, message, "add `length 100 epochs;`")
    last = statements[-1]
    if isinstance(last, ast.Phase) and last.end.value < 100:
        message = f"the last range ends at {last.end.text}"
        faults.add("FCS017", last.end.span, message, "it must end at 100%")


def _check_auto(
    statements: Sequence[ast.Phase | ast.Broken], settings: Settings, faults: Collector
) -> None:
    """Check that there are `choices` for `auto` phases, and `auto` phases for `choices`."""
    given = settings.nodes.get("choices")
    clauses = [c for s in statements if isinstance(s, ast.Phase) for c in s.clauses]
    auto = next((clause for clause in clauses if clause.name.text == "auto"), None)
    if auto is not None and given is None and "choices" not in settings.damaged:
        message = "an `auto` phase needs settings to choose from"
        faults.add("FCS028", auto.span, message, f"add `{_choices(settings)};`")
    # A phase that could not be read, or a misspelt clause, may have been meant as `auto`.
    readable = all(isinstance(s, ast.Phase) for s in statements) and all(
        clause.name.text in CLAUSES for clause in clauses
    )
    if given is not None and auto is None and clauses and readable:
        message = "`choices` has no effect: no phase is `auto`"
        faults.add("FCS028", given.name.span, message, "remove it, or write `auto` in a phase")


def _choices(settings: Settings) -> str:
    """A statement that is valid for the file's image and model."""
    image, model = settings.values.get("image"), settings.values.get("model")
    sides: Sequence[int] = ()
    if image is not None and model is not None:
        sides = valid_patches(image, model.patch)[:4]
    return f"choices drop 0 0.5 0.75 patch {' '.join(map(str, sides or (16, 32)))}"
