"""The linear probe against torch's own SGD, an independent optimum, and written-out cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcl_cli.errors import NumericalError
from fastcl_cli.evaluate.features import Features
from fastcl_cli.evaluate.linear import LinearProbe, Standardiser, Sweep, hold_out

RATES = (0.01, 0.3, 2.0)


def clusters(images: int, seed: int, width: int = 16, classes: int = 8) -> Features:
    """Overlapping classes in correlated columns of unequal scale, away from 0."""
    shared = torch.Generator().manual_seed(7)
    centres = torch.randn(classes, width, generator=shared)
    mixing = torch.randn(width, width, generator=shared) * torch.logspace(-1, 1, width)
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=g)
    values = centres[labels] + torch.randn(images, width, generator=g)
    return Features(values @ mixing + 5, labels)


def batches(images: int, batch: int, steps: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randperm(images, generator=g)[:batch] for _ in range(steps)]


def trained_alone(rate: float, data: Features, initial: Tensor, rows: list[Tensor]) -> nn.Linear:
    """One classifier with torch's SGD, autograd and a rate set by hand before each step."""
    layer = nn.Linear(*initial.shape, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(initial.T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    for step, chosen in enumerate(rows):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / len(rows))) / 2
        optimizer.zero_grad()
        F.cross_entropy(layer(data.values[chosen].double()), data.labels[chosen]).backward()
        optimizer.step()
    return layer


def test_a_sweep_is_each_rate_trained_alone() -> None:
    data = clusters(300, 0)
    initial = torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = batches(300, 32, 40)
    sweep = Sweep(torch.tensor(RATES, dtype=torch.float64), initial, len(rows))
    for step, chosen in enumerate(rows):
        sweep.step(data.values[chosen].double(), data.labels[chosen], step)
    for index, rate in enumerate(RATES):
        alone = trained_alone(rate, data, initial, rows)
        assert (sweep.weight[:, index].T - alone.weight).abs().max() <= 1e-9
        assert (sweep.bias[index] - alone.bias).abs().max() <= 1e-9


def run_probe(rates: tuple[float, ...], steps: int, train: Features, val: Features):  # type: ignore[no-untyped-def]
    scale = Standardiser(train.values)
    held = hold_out(train.labels, torch.Generator().manual_seed(3))
    initial = 0.01 * torch.randn(16, 8, generator=torch.Generator().manual_seed(2))
    probe = LinearProbe(rates, initial, train.labels, held, steps)
    for step, rows in enumerate(batches(len(train.labels), 256, steps)):
        probe.step(scale(train.values[rows]), rows, step)
    chosen = Features(scale(train.values[held]), train.labels[held])
    return probe.outcome(chosen, Features(scale(val.values), val.labels))


def test_the_chosen_classifier_is_as_good_as_an_independent_optimum() -> None:
    """Logistic regression solved by L-BFGS, and by the normal equations of least squares."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, val = clusters(2000, 0), clusters(4000, 1)
    outcome = run_probe((1e-4, 1e-3, 0.01, 0.1, 0.5), 800, train, val)
    optimum = make_pipeline(StandardScaler(), LogisticRegression(C=1e4, max_iter=1000))
    best = optimum.fit(train.values, train.labels).score(val.values, val.labels)
    assert 0.5 < best < 0.95
    assert outcome.accuracy.top1 == pytest.approx(best, abs=0.015)
    assert outcome.top1[0] < best - 0.1, "the negative control: the rate matters"

    X = F.pad(train.values.double(), (0, 1), value=1)
    solution = torch.linalg.lstsq(X, F.one_hot(train.labels, 8).double()).solution
    ranked = (F.pad(val.values.double(), (0, 1), value=1) @ solution).argmax(dim=1)
    assert outcome.accuracy.top1 >= float((ranked == val.labels).double().mean()) - 0.015


def test_the_reported_classifier_trains_on_all_and_the_choice_on_the_rest() -> None:
    """Labels of the images held out are made wrong: only the reported sweep may notice."""
    train = clusters(400, 0)
    held = hold_out(train.labels, torch.Generator().manual_seed(3))
    wrong = torch.where(held, (train.labels + 1) % 8, train.labels)
    initial = torch.zeros(16, 8, dtype=torch.float64)
    states = []
    for labels in (train.labels, wrong):
        probe = LinearProbe(RATES, initial, labels, held, 20)
        for step, rows in enumerate(batches(400, 64, 20)):
            probe.step(train.values[rows].double(), rows, step)
        assert probe._chooser is not None
        states.append((probe._all.weight, probe._chooser.weight))
    assert not torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


def test_a_tenth_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 100 + [1] * 26 + [2] * 14 + [3] * 2 + [4]).flip(0)
    held = hold_out(labels, torch.Generator().manual_seed(0))
    assert labels[held].bincount(minlength=5).tolist() == [10, 3, 1, 1, 0]
    other = hold_out(labels, torch.Generator().manual_seed(1))
    assert not torch.equal(held, other)


def test_a_diverged_rate_neither_wins_nor_spoils_the_others() -> None:
    train, val = clusters(400, 0), clusters(200, 1)
    # Far beyond float32: its weights overflow within the first steps.
    both = run_probe((0.1, 1e38), 60, train, val)
    assert both.diverged == [False, True] and both.chosen == 0
    assert both.accuracy == run_probe((0.1,), 60, train, val).accuracy
    with pytest.raises(NumericalError, match="not finite at any"):
        run_probe((1e38, 2e38), 60, train, val)


def test_standardised_columns() -> None:
    train = clusters(500, 0)
    values = torch.cat([train.values, torch.full((500, 1), 3.0)], dim=1)
    scaled = Standardiser(values)(values)
    assert scaled.mean(dim=0).abs().max() < 1e-5
    assert torch.allclose(scaled[:, :-1].std(dim=0, correction=0), torch.ones(16), atol=1e-5)
    assert scaled[:, -1].abs().max() < 1e-5, "a constant column says nothing"
