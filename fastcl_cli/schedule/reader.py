"""The values of one setting, read from left to right, or a fault with its place."""

from __future__ import annotations

from fractions import Fraction

from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import FaultError, did_you_mean, listed
from fastcl_cli.schedule.source import Span, clip
from fastcl_cli.units import format_decimal


class Values:
    """The values of one setting, read from left to right. ``syntax`` is its form, for help."""

    def __init__(self, setting: ast.Setting, syntax: str) -> None:
        self.setting = setting
        self.syntax = syntax
        self.next = 0

    @property
    def name(self) -> str:
        return self.setting.name.text

    def peek(self) -> ast.Value | None:
        values = self.setting.values
        return values[self.next] if self.next < len(values) else None

    def wrong(self, expected: str) -> FaultError:
        """The fault that the next value, or its absence, is."""
        value = self.peek()
        help = f"the form is `{self.name} {self.syntax}`"
        if value is None:
            end = self.setting.span.end
            span = Span(self.setting.span.source, end - 1, end)
            return FaultError("FCS009", span, f"`{self.name}` lacks {expected}", help)
        found = clip(value.text)
        return FaultError("FCS009", value.span, f"`{found}` stands where {expected} belongs", help)

    def end(self) -> None:
        """Refuse values that nothing has read."""
        value = self.peek()
        if value is not None:
            message = f"`{self.name}` takes nothing like `{clip(value.text)}` here"
            raise FaultError(
                "FCS009", value.span, message, f"the form is `{self.name} {self.syntax}`"
            )

    def arrow(self) -> bool:
        """Skip ``->`` if it is next."""
        found = isinstance(self.peek(), ast.Arrow)
        self.next += found
        return found

    def keyword(self, text: str) -> bool:
        """Skip the word ``text`` if it is next."""
        value = self.peek()
        found = isinstance(value, ast.Word) and value.text == text
        self.next += found
        return found

    def require(self, text: str) -> None:
        if not self.keyword(text):
            raise self.wrong(f"`{text}`")

    def choice(self, *allowed: str, also: str = "") -> str:
        """One of some words; ``also`` is what else is allowed, for an error that lists them."""
        value = self.peek()
        if not isinstance(value, ast.Word):
            raise self.wrong(listed([f"`{word}`" for word in allowed]))
        if value.text not in allowed:
            message = f"`{clip(value.text)}` is not a value of `{self.name}`"
            help = did_you_mean(value.text, allowed, "allowed")
            help += also if help.startswith("allowed") else ""
            raise FaultError("FCS009", value.span, message, help)
        self.next += 1
        return value.text

    def number(self, low: str, high: str, *, above: bool = False) -> Fraction:
        """A number in [low, high], or in (low, high] with ``above``."""
        value = self.peek()
        if not isinstance(value, ast.Number) or value.percent:
            raise self.wrong("a number")
        least, most = Fraction(low), Fraction(high)
        if not least <= value.value <= most or (above and value.value == least):
            start = "above" if above else "from"
            raise FaultError(
                "FCS010",
                value.span,
                f"`{self.name}` cannot be {value.text}",
                f"a number {start} {format_decimal(least)} to {format_decimal(most)}",
            )
        self.next += 1
        return value.value

    def whole(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        value = self.peek()
        if not isinstance(value, ast.Number) or value.percent:
            raise self.wrong("a whole number")
        if value.value.denominator != 1 or not low <= value.value <= high:
            help = f"a whole number from {low:,} to {high:,}"
            raise FaultError("FCS010", value.span, f"`{self.name}` cannot be {value.text}", help)
        self.next += 1
        return int(value.value)

    def is_number(self) -> bool:
        return isinstance(self.peek(), ast.Number)
