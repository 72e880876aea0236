"""The one canonical form of a schedule: a statement a line, ranges aligned, comments kept."""

from __future__ import annotations

from itertools import groupby

from fastcl_cli.schedule import ast


def format_schedule(schedule: ast.Schedule) -> str:
    """Canonical text of a tree without `ast.Broken` statements.

    Formatting what this returns changes nothing, and its tree equals ``schedule``. Comments inside
    a statement move to the line above it; of several empty lines one stays.
    """
    lines: list[str] = []
    for is_phase, group in groupby(schedule.statements, lambda s: isinstance(s, ast.Phase)):
        statements = list(group)
        width = (
            max(len(_range(s)) for s in statements if isinstance(s, ast.Phase)) if is_phase else 0
        )
        for statement in statements:
            remarks = statement.remarks
            _comments(lines, remarks.above)
            if remarks.blank_before and lines:
                lines.append("")
            if isinstance(statement, ast.Phase):
                body = " ".join(_clause(clause) for clause in statement.clauses)
                text = f"{_range(statement):{width}} {body}".rstrip()
            else:
                assert isinstance(statement, ast.Setting)
                words = [statement.name.text, *(value.text for value in statement.values)]
                text = " ".join(words)
            trailing = f"  {remarks.trailing}" if remarks.trailing is not None else ""
            lines.append(f"{text};{trailing}")
    _comments(lines, schedule.closing)
    return "".join(f"{line}\n" for line in lines)


def _comments(lines: list[str], comments: tuple[ast.Comment, ...]) -> None:
    for comment in comments:
        if comment.blank_before and lines:
            lines.append("")
        lines.append(comment.text)


def _range(phase: ast.Phase) -> str:
    unit = f"{phase.unit.text} " if phase.unit is not None else ""
    return f"{unit}{phase.start.text}-{phase.end.text}:"


def _clause(clause: ast.Clause) -> str:
    words = [clause.name.text]
    if clause.amount is not None:
        words.append(clause.amount.text)
    if clause.ramp is not None:
        words += ["->", clause.ramp.text]
    if clause.stairs is not None:
        words += ["in", clause.stairs.text]
    if clause.side is not None:
        words += ["on", clause.side.text]
    return " ".join(words)
