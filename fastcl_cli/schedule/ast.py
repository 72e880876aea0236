"""What a schedule file says, with the place of everything in it.

Two trees are equal when they say the same, wherever it stands: spans do not compare.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from fastcl_cli.schedule.source import Span
from fastcl_cli.units import format_decimal


@dataclass(frozen=True, slots=True)
class Number:
    """``0.5``, ``5e-4`` or ``50%`` (whose value is 50)."""

    value: Fraction
    percent: bool
    span: Span = field(compare=False, repr=False)

    @property
    def text(self) -> str:
        return format_decimal(self.value) + ("%" if self.percent else "")


@dataclass(frozen=True, slots=True)
class Word:
    text: str
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A string in double quotes; ``value`` is what stands between them."""

    value: str
    span: Span = field(compare=False, repr=False)

    @property
    def text(self) -> str:
        return f'"{self.value}"'


@dataclass(frozen=True, slots=True)
class Arrow:
    span: Span = field(compare=False, repr=False)
    text = "->"


@dataclass(frozen=True, slots=True)
class Options:
    """``(embed_dim=64, depth=4)`` after a model's name."""

    items: tuple[tuple[Word, Number], ...]
    span: Span = field(compare=False, repr=False)

    @property
    def text(self) -> str:
        return "(" + ", ".join(f"{key.text}={value.text}" for key, value in self.items) + ")"


Value = Number | Word | Text | Arrow | Options


@dataclass(frozen=True, slots=True)
class Comment:
    """``text`` with its ``#``; ``blank_before`` where an empty line stands above it."""

    text: str
    blank_before: bool


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a formatter must keep around a statement: comments above it (or inside it), the one at
    the end of its line, and whether an empty line stands directly above the statement."""

    above: tuple[Comment, ...] = ()
    trailing: str | None = None
    blank_before: bool = False


@dataclass(frozen=True, slots=True)
class Setting:
    """``name value …;``"""

    name: Word
    values: tuple[Value, ...]
    span: Span = field(compare=False, repr=False)
    remarks: Remarks = Remarks()


@dataclass(frozen=True, slots=True)
class Clause:
    """``drop 0.75 -> 0.25 in 4 on online``; every part but the name may be missing."""

    name: Word
    amount: Number | None
    ramp: Number | None
    stairs: Number | None
    side: Word | None
    span: Span = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Phase:
    """``epochs 0-60: clause …;``; ``unit`` is None where no word stands before the range."""

    unit: Word | None
    start: Number
    end: Number
    clauses: tuple[Clause, ...]
    range_span: Span = field(compare=False, repr=False)
    span: Span = field(compare=False, repr=False)
    remarks: Remarks = Remarks()


@dataclass(frozen=True, slots=True)
class Broken:
    """A statement that could not be read, already reported; ``name`` is its first word."""

    name: str
    is_phase: bool
    span: Span = field(compare=False, repr=False)
    remarks: Remarks = Remarks()


Statement = Setting | Phase | Broken


@dataclass(frozen=True, slots=True)
class Schedule:
    """A file: its statements in order, and the comments after the last one."""

    statements: tuple[Statement, ...]
    closing: tuple[Comment, ...]
    span: Span = field(compare=False, repr=False)

    @property
    def settings(self) -> list[Setting]:
        return [s for s in self.statements if isinstance(s, Setting)]

    @property
    def phases(self) -> list[Phase]:
        return [s for s in self.statements if isinstance(s, Phase)]
