"""The rules that choose a compression, on tables written by hand."""

from __future__ import annotations

import numpy as np
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
        (0, (2.0, 2.5, 3.0), None),  # it is the best, and the cheapest
        (0, (2.012, 2.0, 3.0), None),  # worse than the best, but within its standard error, 0.0129
        (0, (2.014, 2.0, 3.0), 1),
        (0, (3.0, 2.012, 2.0), 1),  # no farther up than need be
        (0, (3.0, 2.014, 2.0), 2),
        (1, (2.001, 2.0, 3.0), None),  # the cheaper one is good, but worse in the mean
        (1, (1.999, 2.0, 3.0), 0),
        (1, (2.0, 2.1, 3.0), 0),  # not good itself: a cheaper one is
        (2, (2.5, 2.2, 2.0), None),
    ],
)
def test_a_move_follows_the_rule_and_resists_noise(
    current: int, means: tuple[float, ...], rung: int | None
) -> None:
    choice = next_rung(current, around(*means), NAMES)
    assert (choice.rung if choice else None) == rung


def test_the_reason_of_a_move_has_its_figures() -> None:
    choice = next_rung(0, around(2.1, 2.012, 2.0), NAMES)
    assert choice is not None
    assert choice.why.startswith("CA-MSE falls by 0.088 from 2.1 (a): CA-MSE exceeds the least (c")


def test_the_least_is_given_with_its_error() -> None:
    """Figures of groups 1, -2, 4: mean 1, standard error sqrt(9 / 3)."""
    assert cheapest_good({0: (1.0, -2.0, 4.0)}, NAMES).why == (
        "the least CA-MSE, 1 (standard error 1.7)"
    )


def test_noise_alone_does_not_drive_it_up() -> None:
    """Eight settings that are equally good, measured 3,000 times: a walk by the rule stays on the
    cheap half."""
    random = np.random.default_rng(0)
    names, rung, visits = [str(i) for i in range(8)], 4, np.zeros(8)
    for values in random.standard_normal((3000, 8, 4)):
        near = range(max(0, rung - 1), min(8, rung + 3))
        choice = next_rung(rung, {i: tuple(values[i]) for i in near}, names)
        rung = rung if choice is None else choice.rung
        visits[rung] += 1
    assert visits[:4].sum() > 0.8 * visits.sum(), visits


def test_what_is_clearly_better_is_reached() -> None:
    """CA-MSE falls by two standard deviations of a group from rung to rung."""
    random = np.random.default_rng(0)
    names, reached = [str(i) for i in range(8)], []
    for _ in range(200):
        rung, decisions = 0, 0
        while rung < 7 and decisions < 12:
            decisions += 1
            values = random.standard_normal((8, 4)) - 2 * np.arange(8)[:, None]
            near = range(max(0, rung - 1), min(8, rung + 3))
            choice = next_rung(rung, {i: tuple(values[i]) for i in near}, names)
            rung = rung if choice is None else choice.rung
        reached.append(decisions)
    assert np.mean(reached) < 6, np.mean(reached)
