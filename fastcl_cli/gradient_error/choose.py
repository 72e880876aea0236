"""Which compression to train with, from measured CA-MSE.

Settings stand on a ladder, the cheapest first. All were measured on the same groups of pairs, so a
comparison is of paired differences: what the groups share cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastcl_cli.gradient_error.estimators import Mean


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
    best = _least(ca_mse)
    rung = next(rung for rung in sorted(ca_mse) if _is_good(ca_mse[rung], ca_mse[best]))
    value, error = Mean.of(ca_mse[best]).value, Mean.of(ca_mse[best]).error
    if rung == best:
        # Unbiased, so noise may take it below 0: then the error says as much.
        return Choice(rung, f"the least CA-MSE, {value:.3g} (standard error {error:.2g})")
    excess = difference(ca_mse[rung], ca_mse[best])
    why = (
        f"CA-MSE exceeds the least ({names[best]}, {value:.3g}) by "
        f"{excess.value:.2g}, within one standard error ({excess.error:.2g})"
    )
    return Choice(rung, why)


def next_rung(
    current: int, ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]
) -> Choice | None:
    """Where to move from ``current``, or None to stay: `cheapest_good` with hysteresis.

    A setting that is good itself gives way to a cheaper good one only where that is no worse in the
    mean. So what noise alone moves it moves to the cheaper side, and what is dearer has to be
    better by more than a standard error.

    Args:
        current: the present rung.
        ca_mse: for it and its neighbours, the CA-MSE of each of >= 2 groups.
        names: of all rungs.
    """
    choice = cheapest_good(ca_mse, names)
    if choice.rung == current:
        return None
    excess = difference(ca_mse[choice.rung], ca_mse[current]).value
    if _is_good(ca_mse[current], ca_mse[_least(ca_mse)]) and excess > 0:
        return None
    why = f"CA-MSE {'falls' if excess < 0 else 'rises'} by {abs(excess):.2g} from "
    value = Mean.of(ca_mse[current]).value
    return Choice(choice.rung, f"{why}{value:.3g} ({names[current]}): {choice.why}")


def _least(ca_mse: Mapping[int, Sequence[float]]) -> int:
    """The rung with the least CA-MSE, the cheapest of those that share it."""
    return min(ca_mse, key=lambda rung: (Mean.of(ca_mse[rung]).value, rung))


def _is_good(values: Sequence[float], least: Sequence[float]) -> bool:
    """Whether a setting is within one standard error of the one with the least CA-MSE."""
    excess = difference(values, least)
    assert excess.error is not None
    return excess.value <= excess.error
