"""Linear classifiers on frozen features: all learning rates of a sweep trained at once.

SGD with momentum 0.9, no weight decay, cosine to 0 without warm-up, weights N(0, 0.01²), as in
MoCo-v3's, DINO's and DINOv2's linear evaluations. Two departures: those report the best rate on
the validation set itself, here the rate is chosen on a part of the training set; and columns are
standardised first, as in MAE's linear evaluation (He et al., arXiv 2111.06377, appendix A), without
which a few hundred steps on a small set end far from the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcl_cli.errors import NumericalError
from fastcl_cli.evaluate.features import Features
from fastcl_cli.evaluate.metrics import Accuracy, Tally

MOMENTUM = 0.9
INITIAL = 0.01
"""Standard deviation of the initial weights."""
_HELD_OUT = 10
"""One image in ten decides the rate."""


class Standardiser:
    """Shifts and scales columns to mean 0 and standard deviation 1 over features (N, D)."""

    def __init__(self, features: Tensor) -> None:
        self.mean = features.mean(dim=0)
        deviation = features.std(dim=0, correction=0)
        # A column that does not vary stays at 0.
        self.scale = torch.where(deviation > 1e-6 * self.mean.abs(), 1 / deviation, 0.0)

    def __call__(self, features: Tensor) -> Tensor:
        """(B, D), on the device of ``features``."""
        return (features - self.mean.to(features.device)) * self.scale.to(features.device)


class Sweep:
    """R linear classifiers with the same initial weights and batches, each with a rate of its own.

    Args:
        rates: (R,), the learning rates at the first step.
        initial: (D, C), the weights that all start from; biases start at 0.
        steps: T; the rate at step t is rate·(1 + cos(pi·t/T))/2.
    """

    def __init__(self, rates: Tensor, initial: Tensor, steps: int) -> None:
        self.rates = rates
        self.weight = initial[:, None, :].repeat(1, len(rates), 1)
        self.bias = initial.new_zeros(len(rates), initial.shape[1])
        self._weight_velocity = torch.zeros_like(self.weight)
        self._bias_velocity = torch.zeros_like(self.bias)
        self._steps = steps

    def scores(self, features: Tensor) -> Tensor:
        """Logits of every classifier for features (B, D): (B, R, C)."""
        product = features @ self.weight.flatten(1)
        return product.view(-1, *self.bias.shape) + self.bias

    def step(self, features: Tensor, labels: Tensor, step: int) -> None:
        """Update all classifiers on one batch, (B, D) and int64 (B,).

        The gradient of the mean cross-entropy by the logits is (softmax - one-hot) / B.
        """
        gradient = self.scores(features).softmax(dim=2)
        gradient[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        gradient /= len(labels)
        by_weight = (features.T @ gradient.flatten(1)).view_as(self.weight)
        rates = self.rates[:, None] * ((1 + math.cos(math.pi * step / self._steps)) / 2)
        self._weight_velocity.mul_(MOMENTUM).add_(by_weight)
        self._bias_velocity.mul_(MOMENTUM).add_(gradient.sum(dim=0))
        self.weight -= rates * self._weight_velocity
        self.bias -= rates * self._bias_velocity

    def diverged(self) -> Tensor:
        """bool (R,): whether a classifier has a weight that is not finite."""
        finite = self.weight.isfinite().all(dim=2).all(dim=0) & self.bias.isfinite().all(dim=1)
        return ~finite

    def judge(self, features: Features, batch: int = 1024) -> tuple[list[Accuracy], list[float]]:
        """Accuracy and mean cross-entropy of each classifier on features (N, D) on the CPU."""
        classes = self.bias.shape[1]
        tallies = [Tally(classes) for _ in self.rates]
        losses = [0.0] * len(self.rates)
        for start in range(0, len(features.labels), batch):
            labels = features.labels[start : start + batch]
            scores = self.scores(features.values[start : start + batch].to(self.weight)).cpu()
            for index, tally in enumerate(tallies):
                tally.add_scores(scores[:, index], labels)
                losses[index] += float(F.cross_entropy(scores[:, index], labels, reduction="sum"))
        return [t.accuracy() for t in tallies], [x / len(features.labels) for x in losses]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A sweep's end: the chosen rate's number, its accuracy, and all rates' on both sets.

    ``held_out`` is empty where there was nothing to choose from.
    """

    chosen: int
    accuracy: Accuracy
    top1: list[float]
    held_out: list[float]
    diverged: list[bool]


class LinearProbe:
    """Two sweeps over one stream of batches: one trains on all images and is reported, the other
    leaves out those held out and chooses the rate.

    Args:
        rates: learning rates, not scaled any more.
        initial: (D, C), initial weights, on the device to train on.
        labels: int64 (N,) of the training set.
        held_out: bool (N,), from `hold_out`.
        steps: updates that there will be.
    """

    def __init__(
        self, rates: Sequence[float], initial: Tensor, labels: Tensor, held_out: Tensor, steps: int
    ) -> None:
        scaled = torch.tensor(rates, dtype=initial.dtype, device=initial.device)
        self._labels, self._held_out = labels, held_out
        self._all = Sweep(scaled, initial, steps)
        # One rate needs no choice.
        self._chooser = Sweep(scaled, initial, steps) if len(rates) > 1 else None

    def step(self, features: Tensor, rows: Tensor, step: int) -> None:
        """Update on the images ``rows`` (B,) with features (B, D) on the weights' device."""
        labels = self._labels[rows].to(features.device)
        self._all.step(features, labels, step)
        fit = (~self._held_out[rows]).to(features.device)
        if self._chooser is not None and fit.any():
            self._chooser.step(features[fit], labels[fit], step)

    def outcome(self, held_out: Features, val: Features) -> Outcome:
        """Choose by ``held_out``, the features of the images held out, and judge on ``val``.

        The highest top-1 is chosen, among equals the lowest cross-entropy; a diverged classifier
        never is.

        Raises:
            NumericalError: every classifier diverged.
        """
        accuracies, _ = self._all.judge(val)
        diverged = self._all.diverged()
        chosen, shares = 0, []
        if self._chooser is not None:
            chosen_by, losses = self._chooser.judge(held_out)
            diverged |= self._chooser.diverged()
            shares = [accuracy.top1 for accuracy in chosen_by]
            order = sorted(range(len(shares)), key=lambda r: (-shares[r], losses[r]))
            chosen = next((r for r in order if not diverged[r]), 0)
        if diverged[chosen]:
            raise NumericalError(
                "linear probe: the weights are not finite at any of the learning rates",
                "give lower ones: --linear-lr",
            )
        top1 = [accuracy.top1 for accuracy in accuracies]
        return Outcome(chosen, accuracies[chosen], top1, shares, diverged.tolist())


def hold_out(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random tenth of every class, at least one image of each class that has two: bool (N,)."""
    counts = labels.bincount()
    wanted = torch.maximum((counts / _HELD_OUT).round().long(), (counts > 1).long())
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels[order].argsort(stable=True)]
    first = counts.cumsum(0) - counts
    place = torch.arange(len(labels)) - first[labels[order]]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order] = place < wanted[labels[order]]
    return chosen
