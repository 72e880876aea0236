"""Unbiased estimates of a compressed gradient's bias and variance, from a few paired gradients.

g is the gradient of an uncompressed batch of b images, ĝ that of the same images with the same
augmentation under a compression, both drawn K times independently (k = 1..K); d_k = ĝ_k - g_k.

- signal   ‖E g‖²          (‖Σ g_k‖² - Σ‖g_k‖²) / (K(K-1))
- bias²    ‖E ĝ - E g‖²    (‖Σ d_k‖² - Σ‖d_k‖²) / (K(K-1))
- variance E‖ĝ - E ĝ‖²     (Σ‖ĝ_k‖² - ‖Σ ĝ_k‖²/K) / (K-1)

The first two are means of the products of *different* draws, x_j·x_k with j != k, whose expectation
is ‖E x‖² exactly: the squared length of a mean of K draws would exceed it by the variance over K.
They may be negative. One vector of sums for each compression and one for g are all that is kept.

CA-MSE (Lin, Wu, Wei, Morgado, arXiv 2410.22364): bias² + cost · variance · b/B, the error of the
gradient that a fixed budget buys where a batch of B images costs ``cost`` of an uncompressed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def student_t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t: tabled up to 10 degrees of freedom, then by its
    expansion about the normal one (Abramowitz and Stegun 26.7.5; right to 1e-4)."""
    assert freedom >= 1
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.9599640
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of independent values; ``error`` is its standard error, None for a single value."""

    value: float
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        count = len(values)
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, None, 1)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean, math.sqrt(squares / (count - 1) / count), count)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval, mean ± t·error; None for a single value."""
        if self.error is None:
            return None
        half = student_t95(self.count - 1) * self.error
        return self.value - half, self.value + half


SquaredLength: TypeAlias = Callable[[Tensor], float]
"""‖x‖² of a vector, accumulated in float64; where processes have some rows of it each, all of
them ask for it."""


def squared_length(vector: Tensor) -> float:
    """That of a whole vector."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64)) ** 2


class Sums:
    """Sum of K vectors, and of their squared lengths: all that the estimates need of them.

    Lengths are summed in float64, the vectors in their own dtype.
    """

    def __init__(self, length: SquaredLength = squared_length) -> None:
        self._length = length
        self.total: Tensor | None = None
        self.squares = 0.0
        self.count = 0

    def add(self, vector: Tensor) -> None:
        """Count a vector; it is copied where it must be kept."""
        self.squares += self._length(vector)
        self.count += 1
        if self.total is None:
            self.total = vector.clone()
        else:
            self.total += vector

    def squared_mean(self) -> float:
        """Unbiased ‖E x‖²; may be negative."""
        return squared_mean(self.squared_total, self.squares, self.count)

    def variance(self) -> float:
        """Unbiased E‖x - E x‖²."""
        return variance(self.squared_total, self.squares, self.count)

    @property
    def squared_total(self) -> float:
        """‖Σ x‖²."""
        assert self.total is not None
        return self._length(self.total)


def squared_mean(squared_total: float, squares: float, count: int) -> float:
    """Unbiased ‖E x‖² from the squared length of the sum of ``count`` >= 2 draws and the sum of
    their squared lengths."""
    assert count >= 2
    return (squared_total - squares) / (count * (count - 1))


def variance(squared_total: float, squares: float, count: int) -> float:
    """Unbiased E‖x - E x‖², from the same."""
    assert count >= 2
    return (squares - squared_total / count) / (count - 1)


class Group:
    """One group of K pairs, for several compressions at once; each group gives one statistic.

    Holds one vector for each compression, one for g and the g of the pair at hand.
    """

    def __init__(self, compressions: int, length: SquaredLength = squared_length) -> None:
        self._length = length
        self._full = Sums(length)
        self._differences = [Sums(length) for _ in range(compressions)]
        self._squares = [0.0] * compressions
        self._current: Tensor | None = None

    def begin_pair(self, gradient: Tensor) -> None:
        """Start the next pair with its uncompressed gradient g, a vector."""
        self._full.add(gradient)
        self._current = gradient

    def add(self, compression: int, gradient: Tensor) -> None:
        """Count the pair's ĝ of a compression. The vector is overwritten."""
        assert self._current is not None
        self._squares[compression] += self._length(gradient)
        self._differences[compression].add(gradient.sub_(self._current))

    def signal(self) -> float:
        """‖E g‖²."""
        return self._full.squared_mean()

    def full_variance(self) -> float:
        """Variance of g."""
        return self._full.variance()

    def bias2(self, compression: int) -> float:
        """‖E ĝ - E g‖²."""
        return self._differences[compression].squared_mean()

    def variance(self, compression: int) -> float:
        """Variance of ĝ."""
        full, difference = self._full.total, self._differences[compression]
        assert full is not None and difference.total is not None
        assert difference.count == self._full.count
        total = self._length(full + difference.total)
        return variance(total, self._squares[compression], difference.count)


@dataclass(frozen=True, slots=True)
class GradientError:
    """What independent groups say of one compression: one number each.

    Attributes:
        bias2, variance, signal: see the module; ``variance`` is that of a batch of ``batch``.
        batch: b, images of a probe batch.
        pairs: K of each group.
    """

    bias2: tuple[float, ...]
    variance: tuple[float, ...]
    signal: tuple[float, ...]
    batch: int
    pairs: int

    def ca_mse(self, cost: float, batch: int) -> tuple[float, ...]:
        """Of each group, for training with batches of ``batch`` images of relative ``cost``.

        The variance of B images is taken as b/B of that of b: exact where the loss is a mean over
        images, an approximation where images of a batch meet (InfoNCE, batch norm).
        """
        scale = cost * self.batch / batch
        return tuple(
            bias2 + scale * variance
            for bias2, variance in zip(self.bias2, self.variance, strict=True)
        )

    def record(self, cost: float, batch: int) -> dict[str, object]:
        """As JSON values: means with their 95 % intervals, and the same over the signal (null
        where that is not above 0)."""
        signal = Mean.of(self.signal)
        rows = {
            "bias2": Mean.of(self.bias2),
            "variance": Mean.of(self.variance),
            "ca_mse": Mean.of(self.ca_mse(cost, batch)),
            "signal": signal,
        }
        record: dict[str, object] = {name: mean.value for name, mean in rows.items()}
        record["interval"] = {name: mean.interval for name, mean in rows.items()}
        record["relative"] = {
            name: mean.value / signal.value if signal.value > 0 else None
            for name, mean in rows.items()
            if name != "signal"
        }
        groups = len(self.signal)
        record |= {"pairs": groups * self.pairs, "groups": groups, "cost": cost}
        return record | {"probe_batch": self.batch, "batch": batch}
