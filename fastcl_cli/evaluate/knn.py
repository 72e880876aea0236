"""Weighted k-nearest-neighbour classification, as DINO's evaluation has it
(Caron et al., arXiv 2104.14294, following Wu et al., arXiv 1805.01978)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcl_cli.evaluate.features import Features


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Top-1 and top-5 accuracy as shares, for one k; a class without a vote is never a hit."""

    k: int
    top1: float
    top5: float


def knn_accuracy(
    bank: Features,
    queries: Features,
    ks: Sequence[int],
    temperature: float = 0.07,
    chunk: int = 1024,
) -> list[Accuracy]:
    """Accuracy of a vote among the k most cosine-similar images of ``bank``.

    Neighbour j votes for its class with weight exp(similarity_j / temperature). A k above the
    bank's size takes all of it. Memory: one (chunk, N) similarity matrix.

    Returns:
        one `Accuracy` for each k, in the order given.
    """
    values = F.normalize(bank.values, dim=1)
    classes = int(torch.cat([bank.labels, queries.labels]).max()) + 1
    hits1 = dict.fromkeys(ks, 0)
    hits5 = dict.fromkeys(ks, 0)
    for start in range(0, len(queries.values), chunk):
        labels = queries.labels[start : start + chunk]
        similarity = F.normalize(queries.values[start : start + chunk], dim=1) @ values.T
        nearest, rows = similarity.topk(min(max(ks), len(values)), dim=1)
        neighbours, weights = bank.labels[rows], (nearest / temperature).exp()
        for k in ks:
            right = _ranked(neighbours[:, :k], weights[:, :k], classes) == labels[:, None]
            hits1[k] += int(right[:, 0].sum())
            hits5[k] += int(right.any(dim=1).sum())
    total = len(queries.values)
    return [Accuracy(k, hits1[k] / total, hits5[k] / total) for k in ks]


def _ranked(neighbours: Tensor, weights: Tensor, classes: int) -> Tensor:
    """The five classes with most votes, best first, int64 (B, 5); -1 where none got a vote."""
    votes = torch.zeros(len(neighbours), max(classes, 5), dtype=weights.dtype)
    votes.scatter_add_(1, neighbours, weights)
    best, ranked = votes.topk(5, dim=1)
    return ranked.where(best > 0, -1)
