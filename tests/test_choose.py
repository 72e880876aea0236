"""The rules that choose a compression, on tables written by hand."""

from __future__ import annotations

import pytest

from fastcl_cli.gradient_error.choose import cheapest_good, next_rung
from fastcl_cli.gradient_error.estimators import Mean

NAMES = ("a", "b", "c", "d")
NOISE = (-0.3, 0.1, 0.3, -0.1)
"""Four groups' deviations: mean 0, standard error 0.1291."""


def around(*means: float) -> dict[int, tuple[float, ...]]:
    """Settings that share the groups' noise, which a paired difference does not see, and have a
    tenth of it of their own."""
    own = (0.03, -0.01, 0.01, -0.03)
    return {
        rung: tuple(m + 10 * s + (rung % 2) * o for s, o in zip(NOISE, own, strict=True))
        for rung, m in enumerate(means)
    }


def test_the_noise_is_what_the_docstring_says() -> None:
    assert Mean.of(NOISE).error == pytest.approx(0.12909944)


def test_the_least_is_chosen_where_cheaper_ones_are_clearly_worse() -> None:
    assert cheapest_good(around(4.0, 3.0, 2.0, 2.5), NAMES).rung == 2


def test_a_cheaper_one_within_one_standard_error_is_chosen() -> None:
    """The paired difference of b and c has the standard error 0.0129: 0.012 is within, 0.014 not,
    although both are far within the 1.29 of the unpaired values."""
    assert cheapest_good(around(4.0, 2.012, 2.0, 2.5), NAMES).rung == 1
    assert cheapest_good(around(4.0, 2.014, 2.0, 2.5), NAMES).rung == 2


def test_the_reason_names_the_figures() -> None:
    why = cheapest_good(around(4.0, 2.012, 2.0, 2.5), NAMES).why
    assert "(c, 2)" in why and "0.012" in why and "0.013" in why


def test_only_what_may_be_chosen_is_chosen() -> None:
    table = around(1.0, 3.0, 2.0, 2.5)
    del table[0]
    assert cheapest_good(table, NAMES).rung == 2


@pytest.mark.parametrize(
    ("current", "means", "rung"),
    [
        (1, (3.0, 2.0, 2.5), None),  # it is the best
        (1, (3.0, 2.04, 2.0), None),  # better by less than t = 3.18 errors of 0.0129: 0.0411
        (1, (3.0, 2.042, 2.0), 2),
        (1, (1.96, 2.0, 3.0), None),
        (1, (1.958, 2.0, 3.0), 0),
    ],
)
def test_a_move_needs_to_be_better_for_sure(
    current: int, means: tuple[float, ...], rung: int | None
) -> None:
    choice = next_rung(current, around(*means), NAMES)
    assert (choice.rung if choice else None) == rung


def test_the_reason_of_a_move_has_its_interval() -> None:
    choice = next_rung(1, around(3.0, 2.1, 2.0), NAMES)
    assert choice is not None
    assert choice.why == "CA-MSE falls by 0.1 ± 0.041 from 2.1 (b) with c"


def test_between_close_settings_the_one_at_work_stays() -> None:
    table = around(2.02, 2.0)
    assert next_rung(0, table, NAMES) is None
    assert next_rung(1, {0: table[1], 1: table[0]}, NAMES) is None
