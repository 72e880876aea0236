"""The plain schedule of what the `auto` phases of a run did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import groupby

from fastcl_cli.plan import Plan, Segment
from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import Collector
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.load import Loaded, read_overrides
from fastcl_cli.schedule.source import Span, clip


def taken_schedule(loaded: Loaded, plan: Plan, run: str) -> str:
    """The canonical text of a schedule without `auto` that takes the same steps as ``plan``.

    Compiled for the same number of images it gives a plan with the same hash, and so the same
    learning rates. It holds what `--set` replaced; only where the images lie stays as the file has
    it. Comments stay, but for one that ends the line of `choices`.

    Args:
        loaded: the schedule as it was run.
        plan: its plan after the moves (`Plan.moved`).
        run: the run's name, for the comment at the top.
    """
    segments = {phase: list(group) for phase, group in groupby(plan.segments, lambda s: s.phase)}
    statements: list[ast.Statement] = []
    choices = ""
    orphans: tuple[ast.Comment, ...] = ()
    phase = 0
    for statement in as_run(loaded):
        if isinstance(statement, ast.Setting) and statement.name.text == "choices":
            choices = " ".join(["choices", *(value.text for value in statement.values)])
            orphans = statement.remarks.above
            continue
        remarks = replace(statement.remarks, above=orphans + statement.remarks.above)
        statement, orphans = replace(statement, remarks=remarks), ()
        if isinstance(statement, ast.Phase):
            group = segments[phase]
            phase += 1
            if group[0].auto:
                statements += _pieces(statement, group, loaded.config.model.patch)
                continue
        statements.append(statement)
    tree = replace(
        loaded.schedule, statements=tuple(statements), closing=orphans + loaded.schedule.closing
    )
    return f"{_head(plan, choices, run)}\n{format_schedule(tree)}"


def _head(plan: Plan, choices: str, run: str) -> str:
    lines = [
        f"# What the auto phases of {clip(run, 200)} took, of",
        f"# {choices};",
        f"# For {plan.images:,} images these are the same steps.",
    ]
    return "".join(f"{line}\n" for line in lines)


def as_run(loaded: Loaded) -> list[ast.Statement]:
    """The file's statements with those of the command line in their places, new ones before the
    first phase."""
    faults = Collector()
    overrides = {s.name.text: s.values for s in read_overrides(loaded.request, faults)}
    assert not faults.found
    statements: list[ast.Statement] = []
    for statement in loaded.schedule.statements:
        if isinstance(statement, ast.Setting) and statement.name.text in overrides:
            statement = replace(statement, values=overrides.pop(statement.name.text))
        statements.append(statement)
    first = next(i for i, s in enumerate(statements) if isinstance(s, ast.Phase))
    place = statements[first].span
    statements[first:first] = [
        ast.Setting(ast.Word(name, place), values, place) for name, values in overrides.items()
    ]
    return statements


def _pieces(phase: ast.Phase, segments: Sequence[Segment], patch: int) -> Iterator[ast.Phase]:
    """The phase's part of the run as plain phases; ``patch`` is the model's own."""
    batch = [clause for clause in phase.clauses if clause.name.text == "batch"]
    for index, segment in enumerate(segments):
        yield replace(
            phase,
            start=replace(phase.start, value=segment.start),
            end=replace(phase.end, value=segment.end),
            clauses=(*_clauses(segment, patch, phase.span), *batch),
            remarks=phase.remarks if index == 0 else ast.Remarks(),
        )


def _clauses(segment: Segment, patch: int, span: Span) -> list[ast.Clause]:
    """The clauses that mean a segment's compression, each for the encoders that it is for by
    default: so far, and no further, `auto` goes."""

    def clause(name: str, value: Fraction | None = None) -> ast.Clause:
        amount = None if value is None else ast.Number(value, False, span)
        return ast.Clause(ast.Word(name, span), amount, None, None, None, span)

    clauses = []
    if segment.online.drop:
        clauses.append(clause("drop", segment.online.drop))
    if segment.online.patch != patch:
        clauses.append(clause("patch", Fraction(segment.online.patch)))
    return clauses or [clause("full")]
