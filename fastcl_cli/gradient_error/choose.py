"""Which compression to train with, from measured CA-MSE.

Settings stand on a ladder, the cheapest first. All were measured on the same groups of pairs, so a
comparison is of paired differences: what the groups share cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastcl_cli.gradient_error.estimators import Mean, student_t95


@dataclass(frozen=True, slots=True)
class Choice:
    """A rung of the ladder by its number, and the reason in words."""

    rung: int
    why: str


def difference(a: Sequence[float], b: Sequence[float]) -> Mean:
    """Mean of a - b over groups."""
    return Mean.of([x - y for x, y in zip(a, b, strict=True)])


def cheapest_good(ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]) -> Choice:
    """The cheapest setting whose CA-MSE exceeds the least one by no more than one standard error of
    their paired difference.

    Args:
        ca_mse: for each rung that may be chosen, the CA-MSE of each of >= 2 groups.
        names: of all rungs.
    """
    best = min(ca_mse, key=lambda rung: (Mean.of(ca_mse[rung]).value, rung))
    for rung in sorted(ca_mse):
        excess = difference(ca_mse[rung], ca_mse[best])
        assert excess.error is not None
        if rung == best:
            return Choice(rung, f"the least CA-MSE, {Mean.of(ca_mse[best]).value:.3g}")
        if excess.value <= excess.error:
            why = (
                f"CA-MSE exceeds the least ({names[best]}, {Mean.of(ca_mse[best]).value:.3g}) by "
                f"{excess.value:.2g}, within one standard error ({excess.error:.2g})"
            )
            return Choice(rung, why)
    raise AssertionError("the best itself is good")


def next_rung(
    current: int, ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]
) -> Choice | None:
    """Where to move from ``current``, or None to stay.

    The neighbour with the least CA-MSE is taken if the 95 % interval of the paired difference lies
    above 0. Between settings that are closer than that, whichever is at work stays: the width of
    the interval is the hysteresis.

    Args:
        current: the present rung.
        ca_mse: for it and its neighbours, the CA-MSE of each of >= 2 groups.
        names: of all rungs.
    """
    best = min(ca_mse, key=lambda rung: (Mean.of(ca_mse[rung]).value, rung))
    if best == current:
        return None
    gain = difference(ca_mse[current], ca_mse[best])
    assert gain.error is not None
    least = student_t95(gain.count - 1) * gain.error
    if gain.value <= least:
        return None
    why = (
        f"CA-MSE falls by {gain.value:.2g} ± {least:.2g} from {Mean.of(ca_mse[current]).value:.3g} "
        f"({names[current]}) with {names[best]}"
    )
    return Choice(best, why)
