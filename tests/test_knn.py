"""Weighted k-NN against a brute-force vote, and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch

from fastcl_cli.evaluate.features import Features
from fastcl_cli.evaluate.knn import knn_accuracy
from fastcl_cli.evaluate.metrics import Tally


def features(n: int, classes: int, seed: int) -> Features:
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    return Features(centres[labels] + 1.5 * torch.randn(n, 8, generator=g), labels)


def brute_force(bank: Features, queries: Features, k: int, t: float) -> tuple[float, float]:
    """Sort all similarities of each query, add up exp(s/t) by class, in Python floats."""
    top1 = top5 = 0
    for query, label in zip(queries.values.tolist(), queries.labels.tolist(), strict=True):
        norm = math.hypot(*query)
        scored = []
        for other, other_label in zip(bank.values.tolist(), bank.labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(query, other, strict=True))
            scored.append((dot / norm / math.hypot(*other), other_label))
        scored.sort(reverse=True)
        votes: dict[int, float] = {}
        for similarity, voted in scored[:k]:
            votes[voted] = votes.get(voted, 0.0) + math.exp(similarity / t)
        ranked = sorted(votes, key=lambda c: -votes[c])
        top1 += ranked[0] == label
        top5 += label in ranked[:5]
    return top1 / len(queries.labels), top5 / len(queries.labels)


def test_equals_brute_force() -> None:
    """Whatever the sizes of the blocks in which bank and queries are taken."""
    bank, queries = features(150, 12, 0), features(60, 12, 1)
    for rows, columns in ((7, 11), (1024, 65536), (60, 150)):
        votes = knn_accuracy(bank, queries, (20, 1, 60), (0.07, 0.5), rows=rows, columns=columns)
        assert [(v.k, v.temperature) for v in votes] == [
            (k, t) for k in (20, 1, 60) for t in (0.07, 0.5)
        ]
        for vote in votes:
            top1, top5 = brute_force(bank, queries, vote.k, vote.temperature)
            assert vote.accuracy.top1 == pytest.approx(top1, abs=1e-12)
            assert vote.accuracy.top5 == pytest.approx(top5, abs=1e-12)


def test_blocks_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product of queries and bank is larger than a block of each."""
    shapes = []
    product = torch.Tensor.__matmul__

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        shapes.append((len(a), b.shape[1]))
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    knn_accuracy(features(150, 12, 0), features(60, 12, 1), (20,), rows=25, columns=40)
    assert max(shapes) == (25, 40) and sum(a * b for a, b in shapes) == 150 * 60


def test_temperature_decides_between_near_and_many() -> None:
    """One neighbour at 1.0 against two at 0.9: near wins when cold, many when warm."""
    near, off = torch.tensor([1.0, 0.0]), torch.tensor([0.9, math.sqrt(1 - 0.81)])
    bank = Features(torch.stack([near, off, off]), torch.tensor([0, 1, 1]))
    query = Features(near[None], torch.tensor([0]))
    votes = knn_accuracy(bank, query, (3,), temperatures=(0.01, 0.07, 1.0))
    assert [vote.accuracy.top1 for vote in votes] == [1.0, 1.0, 0.0]


def test_k_above_the_bank_takes_all_of_it() -> None:
    bank, queries = features(30, 3, 0), features(10, 3, 1)
    all_of_it, more = knn_accuracy(bank, queries, (30, 500))
    assert all_of_it.accuracy == more.accuracy


def test_classes_of_unequal_size_weigh_alike_in_their_mean() -> None:
    """Class 0: 3 of 4 first, one of them not among the five; class 1: none; class 2 is absent."""
    tally = Tally(7)
    tally.add(torch.tensor([[0, 1], [0, 1], [0, 1], [3, 4]]), torch.tensor([0, 0, 0, 0]))
    tally.add(torch.tensor([[0, 1], [-1, -1]]), torch.tensor([1, 1]))
    accuracy = tally.accuracy()
    assert (accuracy.top1, accuracy.top5) == (3 / 6, 4 / 6)
    assert accuracy.mean_class == (3 / 4 + 0) / 2
