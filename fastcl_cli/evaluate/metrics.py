"""Accuracies, counted class by class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of 1. ``mean_class`` is top-1 within each class that occurs, averaged over classes."""

    top1: float
    top5: float
    mean_class: float


class Tally:
    """Hits so far. Classes are numbered 0 to ``classes`` - 1."""

    def __init__(self, classes: int) -> None:
        self._images = torch.zeros(classes, dtype=torch.int64)
        self._first = torch.zeros(classes, dtype=torch.int64)
        self._any = torch.zeros(classes, dtype=torch.int64)

    def add(self, ranked: Tensor, labels: Tensor) -> None:
        """Count images by their best classes.

        Args:
            ranked: int64 (B, up to 5), best first; -1 matches no class.
            labels: int64 (B,), the true ones, on the CPU.
        """
        hits = ranked.cpu() == labels[:, None]
        self._images += labels.bincount(minlength=len(self._images))
        self._first += labels[hits[:, 0]].bincount(minlength=len(self._images))
        self._any += labels[hits.any(dim=1)].bincount(minlength=len(self._images))

    def add_scores(self, scores: Tensor, labels: Tensor) -> None:
        """Count images by the scores (B, C) of all classes."""
        self.add(scores.topk(min(5, scores.shape[1]), dim=1).indices, labels)

    def accuracy(self) -> Accuracy:
        """Of everything added; there must be something."""
        total = int(self._images.sum())
        assert total > 0
        occurs = self._images > 0
        recall = self._first[occurs].double() / self._images[occurs]
        return Accuracy(
            int(self._first.sum()) / total, int(self._any.sum()) / total, float(recall.mean())
        )
