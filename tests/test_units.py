"""Exact numbers and budgets."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcl_cli.errors import UsageError
from fastcl_cli.units import (
    format_decimal,
    parse_budget,
    parse_decimal,
    round_half_up,
    shortest_decimal,
    time_words,
    units_words,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", Fraction(0)),
        ("0.1", Fraction(1, 10)),
        (".5", Fraction(1, 2)),
        ("5.", Fraction(5)),
        ("5e-4", Fraction(5, 10_000)),
        ("1.5E+3", Fraction(1500)),
        ("123456789012e-6", Fraction(123456789012, 10**6)),
        ("0001.500", Fraction(3, 2)),
        ("1000000000", Fraction(10**9)),
    ],
)
def test_decimals_are_exact(text: str, value: Fraction) -> None:
    assert parse_decimal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "e5",
        "1e",
        "1e7",
        "1e-7",
        "-1",
        "+1",
        "1_0",
        "0x1",
        "nan",
        "inf",
        "1 2",
        "1,5",
        "1234567890123",
        "1000000001",
        "\u0661",
        "1" * 100,
        "1e999999999",
    ],
)
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_decimal(text)


@given(st.integers(0, 10**12 - 1), st.integers(0, 12), st.integers(-6, 6))
def test_canonical_text_keeps_the_value(digits: int, point: int, exponent: int) -> None:
    whole, part = divmod(digits, 10**point)
    text = f"{whole}.{part:0{point}d}e{exponent}" if point else f"{whole}e{exponent}"
    try:
        value = parse_decimal(text)
    except ValueError:
        return
    canonical = format_decimal(value)
    assert parse_decimal(canonical) == value
    assert format_decimal(parse_decimal(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("0.50", "0.5"), ("1e-3", "1e-3"), ("0.0005", "5e-4"), ("1e3", "1000"), ("0.0015", "0.0015")],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert format_decimal(parse_decimal(text)) == canonical


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        ("0.13", "0.17", "0.17"),
        ("0.13", "0.21", "0.2"),
        ("0.9", "2.3", "2"),
        ("1", "2", "2"),
        ("1.999", "2", "2"),
        ("2", "2.001", "2.001"),
        ("1/3", "2/3", "0.6"),
        ("999/1000", "9999/10000", "0.9999"),
    ],
)
def test_shortest_decimals(low: str, high: str, found: str) -> None:
    assert shortest_decimal(Fraction(low), Fraction(high)) == Fraction(found)


@given(st.fractions(0, 100), st.fractions(0, 100))
def test_no_decimal_between_is_shorter(low: Fraction, high: Fraction) -> None:
    if low >= high:
        return
    found = shortest_decimal(low, high)
    assert low < found <= high
    digits = len(format_decimal(found).partition(".")[2]) if found >= Fraction(1, 100) else 0
    for fewer in range(digits):
        # The greatest number of so few decimals that is not above `high` lies at or below `low`.
        assert int(high * 10**fewer) <= low * 10**fewer


def test_halves_round_up() -> None:
    assert [round_half_up(Fraction(n, 2)) for n in range(6)] == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("100gpuh", "gpu_hours", 100),
        ("2.5gpud", "gpu_hours", 60),
        ("90gpumin", "gpu_hours", 1.5),
        ("3cpuh", "gpu_hours", 3),
        ("0.5 cpud", "gpu_hours", 12),
        ("6cpumin", "gpu_hours", 0.1),
        ("200Munits", "units", 200_000_000),
        ("3 kunits", "units", 3000),
        ("7units", "units", 7),
    ],
)
def test_budgets(text: str, kind: str, amount: float) -> None:
    budget = parse_budget(text)
    assert (budget.kind, float(budget.amount)) == (kind, amount)
    assert budget.of_processor == ("cpu" in text)


@pytest.mark.parametrize(
    "text", ["", "100", "100h", "0gpuh", "-5gpuh", "5Mgpuh", "1e9gpuh", "3cpus", "x"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_budget(text)
    assert "100gpuh" in caught.value.help


def test_times_and_units_for_people() -> None:
    seconds = (0.0123, 4.2, 59.9, 60, 90, 3599, 3600, 9000, 36_000, 4_400_000)
    assert [time_words(s) for s in seconds] == [
        "0.0123 s", "4.2 s", "59.9 s", "1 min", "1.5 min", "1 h", "1 h", "2.5 h", "10.0 h",
        "1,222.2 h",
    ]  # fmt: skip
    units = (7, 999.6, 52_171, 370e6, 999.6e6, 12.34e9)
    assert [units_words(n) for n in units] == ["7", "1k", "52.2k", "370M", "1.0G", "12.3G"]
    assert parse_budget(f"{units_words(370e6)}units").amount == 370_000_000
