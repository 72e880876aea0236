"""The estimators, on problems whose bias, variance and signal are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fastcl_cli.gradient_error.estimators import (
    GradientError,
    Group,
    Mean,
    Sums,
    squared_length,
    student_t95,
)

DIMENSIONS, IMAGES, BATCH, COST, TRAIN_BATCH = 5, 48, 8, 0.3, 64
REPETITIONS = 2500


class Problem:
    """A finite set of images with a gradient each, and a compressed one each: a batch's gradient is
    the mean over its images. Batches are drawn without replacement, so a batch of b images of N has
    the variance S²/b · (1 - b/N), S² the images' own (Cochran, Sampling Techniques, eq. 2.8)."""

    def __init__(self) -> None:
        draws = np.random.default_rng(3)
        self.full = draws.normal(size=(IMAGES, DIMENSIONS)) + 0.4
        self.compressed = self.full + draws.normal(0.1, 0.8, size=(IMAGES, DIMENSIONS))

    def variance(self, gradients: np.ndarray, batch: int) -> float:
        own = gradients.var(axis=0, ddof=1).sum()
        return float(own / batch * (1 - batch / IMAGES))

    def truth(self, batch: int = BATCH) -> dict[str, float]:
        full, compressed = self.full.mean(0), self.compressed.mean(0)
        return {
            "signal": float(full @ full),
            "bias2": float((compressed - full) @ (compressed - full)),
            "variance": self.variance(self.compressed, batch),
            "full_variance": self.variance(self.full, batch),
        }


PROBLEM = Problem()
Choose = Callable[[np.random.Generator, int, int], np.ndarray]


def independent(draws: np.random.Generator, pairs: int, batch: int) -> np.ndarray:
    return np.stack([draws.choice(IMAGES, batch, replace=False) for _ in range(pairs)])


def disjoint(draws: np.random.Generator, pairs: int, batch: int) -> np.ndarray:
    """Consecutive batches of one epoch."""
    return draws.permutation(IMAGES)[: pairs * batch].reshape(pairs, batch)


def group_of(draws: np.random.Generator, pairs: int, batch: int, choose: Choose) -> Group:
    group = Group(1)
    for rows in choose(draws, pairs, batch):
        group.begin_pair(torch.from_numpy(PROBLEM.full[rows].mean(0)))
        group.add(0, torch.from_numpy(PROBLEM.compressed[rows].mean(0)))
    return group


@cache
def repeated(pairs: int, batch: int = BATCH, choose: Choose = independent) -> dict[str, np.ndarray]:
    draws = np.random.default_rng((pairs, batch))
    groups = [group_of(draws, pairs, batch, choose) for _ in range(REPETITIONS)]
    return {
        "signal": np.array([g.signal() for g in groups]),
        "bias2": np.array([g.bias2(0) for g in groups]),
        "variance": np.array([g.variance(0) for g in groups]),
        "full_variance": np.array([g.full_variance() for g in groups]),
    }


def z_score(values: np.ndarray, truth: float) -> float:
    return float((values.mean() - truth) / (values.std(ddof=1) / math.sqrt(len(values))))


@pytest.mark.parametrize("pairs", [2, 4, 16])
def test_every_estimate_is_unbiased(pairs: int) -> None:
    found, truth = repeated(pairs), PROBLEM.truth()
    for name, value in truth.items():
        assert abs(z_score(found[name], value)) < 3, name


def test_plug_in_estimates_fail_the_same_test() -> None:
    """The negative control: squared lengths of means, which hold the variance over K."""
    draws, pairs = np.random.default_rng(4), 4
    naive: dict[str, list[float]] = {"signal": [], "bias2": [], "variance": []}
    for _ in range(REPETITIONS):
        rows = independent(draws, pairs, BATCH)
        g, c = PROBLEM.full[rows].mean(1), PROBLEM.compressed[rows].mean(1)
        naive["signal"].append(float((g.mean(0) ** 2).sum()))
        naive["bias2"].append(float(((c - g).mean(0) ** 2).sum()))
        naive["variance"].append(float(c.var(axis=0, ddof=0).sum()))
    for name, values in naive.items():
        assert abs(z_score(np.array(values), PROBLEM.truth()[name])) > 3, name


def test_disjoint_batches_of_an_epoch_fail_the_same_test() -> None:
    """x_j·x_k of disjoint batches has the expectation ‖mean‖² - S²/N, not ‖mean‖²."""
    found, truth = repeated(4, choose=disjoint), PROBLEM.truth()
    for name in ("signal", "variance"):
        assert abs(z_score(found[name], truth[name])) > 3, name
    own = PROBLEM.full.var(axis=0, ddof=1).sum()
    assert abs(z_score(found["signal"], truth["signal"] - own / IMAGES)) < 3


@pytest.mark.parametrize("groups", [4, 8])
def test_intervals_cover_the_truth(groups: int) -> None:
    truth, pairs = PROBLEM.truth(), 4
    found = repeated(pairs)
    for name in ("signal", "bias2", "variance"):
        sets = found[name][: REPETITIONS // groups * groups].reshape(-1, groups)
        intervals = [Mean.of(list(row)).interval for row in sets]
        covered = [low <= truth[name] <= high for low, high in intervals if low is not None]
        assert np.mean(covered) >= 0.90, name


def test_ca_mse_does_not_depend_on_the_probe_batch() -> None:
    """For a mean over images: from b = 6 and from b = 16 the same CA-MSE at B, up to the finite
    set's own factor (1 - b/N)."""
    for batch in (6, 16):
        found = repeated(4, batch)
        error = GradientError(
            tuple(found["bias2"]), tuple(found["variance"]), tuple(found["signal"]), batch, 4
        )
        own = PROBLEM.compressed.var(axis=0, ddof=1).sum()
        expected = PROBLEM.truth()["bias2"] + COST * own / TRAIN_BATCH * (1 - batch / IMAGES)
        assert abs(z_score(np.array(error.ca_mse(COST, TRAIN_BATCH)), expected)) < 3


def test_a_negative_bias_is_reported_as_it_is() -> None:
    group = Group(1)
    for sign in (1.0, -1.0):
        group.begin_pair(torch.zeros(3))
        group.add(0, torch.tensor([sign, 0.0, 0.0]))
    assert group.bias2(0) == -1.0


def test_the_formulas_on_numbers_done_by_hand() -> None:
    """g = (1, 0), (3, 0); ĝ = (2, 0), (3, 2): products of different draws, and sample variances."""
    group = Group(1)
    for full, compressed in (([1.0, 0.0], [2.0, 0.0]), ([3.0, 0.0], [3.0, 2.0])):
        group.begin_pair(torch.tensor(full))
        group.add(0, torch.tensor(compressed))
    assert group.signal() == pytest.approx(3.0)  # (1, 0)·(3, 0)
    assert group.bias2(0) == pytest.approx(0.0)  # (1, 0)·(0, 2)
    assert group.variance(0) == pytest.approx(2.5)  # ‖(1, 2)‖²/2
    assert group.full_variance() == pytest.approx(2.0)
    error = GradientError((0.5,), (2.5,), (3.0,), 4, 2)
    assert error.ca_mse(0.2, 16) == pytest.approx((0.5 + 0.2 * 2.5 * 4 / 16,))
    record = error.record(0.2, 16)
    assert record["ca_mse"] == pytest.approx(0.625)
    assert record["relative"] == pytest.approx({"bias2": 1 / 6, "variance": 2.5 / 3,
                                                "ca_mse": 0.625 / 3})  # fmt: skip
    assert GradientError((0.5,), (2.5,), (-1.0,), 4, 2).record(0.2, 16)["relative"] == {
        "bias2": None, "variance": None, "ca_mse": None,
    }  # fmt: skip


def test_lengths_are_summed_in_float64() -> None:
    """4,000,000 times 0.1 in float32: a running float32 sum of squares is off by 1e-3."""
    vector: Tensor = torch.full((4_000_000,), 0.1)
    exact = 4_000_000 * float(vector[0].double()) ** 2
    assert squared_length(vector) == pytest.approx(exact, rel=1e-9)


def test_sums_keep_no_vector_but_their_own() -> None:
    sums, vector = Sums(), torch.ones(3)
    sums.add(vector)
    vector.zero_()
    sums.add(torch.ones(3))
    assert sums.squared_mean() == pytest.approx(3.0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 10, 11, 15, 30, 200])
def test_student_t_against_scipy(freedom: int) -> None:
    assert student_t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)
