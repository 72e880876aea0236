"""Exact numbers, and the one place where a quantity with a unit is read or written.

Schedules are computed in fractions, never in floats: a tenth is 1/10, so that ``100 * (1 - 0.9)``
is 10 tokens and not 9.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from fastcl_cli.errors import UsageError

MAX_WHOLE = 10**9
MAX_DIGITS = 12
MAX_EXPONENT = 6

_DECIMAL = re.compile(r"(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?(?:[eE](?P<exponent>[+-]?[0-9]+))?")


def parse_decimal(text: str) -> Fraction:
    """The exact value of an unsigned ASCII decimal such as ``12``, ``0.05`` or ``5e-4``.

    Raises:
        ValueError: with a one-line reason, where ``text`` is not such a number, has more than 12
            significant digits, an exponent beyond ±6, or a value above 10**9.
    """
    match = _DECIMAL.fullmatch(text)
    if match is None or not (match["whole"] or match["part"]):
        raise ValueError("write it like 12, 0.05 or 5e-4")
    part = match["part"] or ""
    if len(text) > 40 or len((match["whole"] + part).strip("0")) > MAX_DIGITS:
        raise ValueError(f"at most {MAX_DIGITS} significant digits are allowed")
    exponent = int(match["exponent"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError(f"an exponent must lie within ±{MAX_EXPONENT}")
    value = Fraction(int((match["whole"] or "0") + part)) * Fraction(10) ** (exponent - len(part))
    if value > MAX_WHOLE:
        raise ValueError("numbers above 1,000,000,000 are not allowed")
    return value


def format_decimal(value: Fraction) -> str:
    """The canonical text of a value that `parse_decimal` can give: ``0.5``, ``1024``, ``5e-4``."""
    if value == 0:
        return "0"
    exponent = 0
    while value * 10**exponent < 1 and exponent < MAX_EXPONENT:
        exponent += 1
    plain, scientific = _plain(value), f"{_plain(value * 10**exponent)}e-{exponent}"
    return scientific if exponent >= 3 and len(scientific) < len(plain) else plain


def _plain(value: Fraction) -> str:
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    text = str(int(value * 10**digits)).rjust(digits + 1, "0")
    return text if digits == 0 else f"{text[:-digits]}.{text[-digits:]}"


def shortest_decimal(low: Fraction, high: Fraction) -> Fraction:
    """The number in (low, high] that has the fewest decimals, of several the greatest; 0 <= low <
    high."""
    digits = 0
    while (found := Fraction(high * 10**digits // 1, 10**digits)) <= low:
        digits += 1
    return found


def round_half_up(value: Fraction) -> int:
    """The nearest whole number, a half rounding up; ``value`` >= 0."""
    return (2 * value.numerator + value.denominator) // (2 * value.denominator)


def ceil(value: Fraction) -> int:
    """The least whole number that is not below ``value``."""
    return -(-value.numerator // value.denominator)


def plain_number(value: Fraction) -> int | float:
    """``value`` for JSON: an int where it is whole, else the nearest float."""
    return value.numerator if value.denominator == 1 else float(value)


def short_number(value: Fraction) -> str:
    """``value`` for people: at most four decimals, no trailing zeros."""
    if value.denominator == 1:
        return f"{value.numerator:,}"
    return f"{float(value):,.4f}".rstrip("0").rstrip(".")


def time_words(seconds: float) -> str:
    """A time for people, in hours from one hour on, for budgets are: ``4.2 s``, ``12 min``,
    ``1,234 h``."""
    for limit, unit in ((60, "s"), (3600, "min")):
        if seconds < limit * 0.9995:
            return f"{60 * seconds / limit:.3g} {unit}"
    hours = seconds / 3600
    return f"{hours:,.1f} h" if hours >= 10 else f"{hours:.3g} h"


def units_words(units: float) -> str:
    """A number of units as a budget has it, less the word: ``16.1k``, ``78M``, ``1.2G``."""
    for letter, scale in (("", 1), ("k", 1e3), ("M", 1e6)):
        if units < 999.5 * scale:
            return f"{units / scale:.3g}{letter}"
    return f"{units / 1e9:,.1f}G"


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent: hours of a device, or units (uncompressed forward passes of the base
    model)."""

    text: str
    kind: Literal["gpu_hours", "units"]
    amount: Fraction

    @property
    def of_processor(self) -> bool:
        """Whether the hours are a processor's."""
        return "cpu" in self.text


_BUDGET = re.compile(r"([0-9.eE+-]+?)\s*(k|M|G)?\s*(?:[gc]pu(h|d|min)|units)")
_HOURS = {"h": Fraction(1), "d": Fraction(24), "min": Fraction(1, 60)}
_SCALE = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9}


def parse_budget(text: str) -> Budget:
    """Read ``100gpuh``, ``2.5gpud``, ``90gpumin``, the same with ``cpu``, or ``200Munits`` (also
    ``k`` and ``G``).

    Raises:
        UsageError: where ``text`` is none of these or not above 0.
    """
    help = "write 100gpuh, 2.5gpud, 90gpumin (or cpuh, cpud, cpumin) or 200Munits"
    if text.strip().startswith("-"):
        raise UsageError(f"--budget '{text}' must be above 0", help)
    match = _BUDGET.fullmatch(text.strip())
    if match is None or (match[2] and match[3]):
        raise UsageError(f"--budget '{text}' is not a budget", help)
    try:
        number = parse_decimal(match[1])
    except ValueError as error:
        raise UsageError(f"--budget '{text}': {error}", help) from None
    if number <= 0:
        raise UsageError(f"--budget '{text}' must be above 0", help)
    if match[3] is None:
        return Budget(text, "units", number * _SCALE[match[2]])
    return Budget(text, "gpu_hours", number * _HOURS[match[3]])
