"""Weighted k-nearest-neighbour classification, as DINO's evaluation has it
(Caron et al., arXiv 2104.14294, following Wu et al., arXiv 1805.01978)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcl_cli.evaluate.features import Features
from fastcl_cli.evaluate.images import Progress
from fastcl_cli.evaluate.metrics import Accuracy, Tally

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Vote:
    """The accuracy of a vote among ``k`` neighbours; a class without a vote is never a hit."""

    k: int
    temperature: float
    accuracy: Accuracy


def knn_accuracy(
    bank: Features,
    queries: Features,
    ks: Sequence[int],
    temperatures: Sequence[float] = (0.07,),
    device: torch.device = CPU,
    rows: int = 1024,
    columns: int = 65536,
    progress: Progress | None = None,
) -> list[Vote]:
    """Accuracy of a vote among the k most cosine-similar images of ``bank``.

    Neighbour j votes for its class with weight exp(similarity_j / temperature). A k above the
    bank's size takes all of it.

    Memory beside the features: ``rows`` x ``columns`` float32 similarities (256 MiB), and
    ``columns`` features of the bank on ``device``, however large bank and queries are.

    Returns:
        one `Vote` for each k and temperature, in the order given, temperatures innermost.
    """
    classes = int(torch.cat([bank.labels, queries.labels]).max()) + 1
    settings = [(k, temperature) for k in ks for temperature in temperatures]
    tallies = [Tally(classes) for _ in settings]
    for start in range(0, len(queries.values), rows):
        part = slice(start, start + rows)
        similarity, neighbours = nearest(
            bank.values, queries.values[part].to(device), max(ks), columns
        )
        voted = bank.labels[neighbours.cpu()]
        for (k, temperature), tally in zip(settings, tallies, strict=True):
            # In float64, and relative to the nearest: no temperature overflows.
            weights = ((similarity - similarity[:, :1]).double() / temperature).exp().cpu()
            tally.add(_ranked(voted[:, :k], weights[:, :k], classes), queries.labels[part])
        if progress is not None:
            progress("neighbours", min(start + rows, len(queries.values)), len(queries.values))
    return [
        Vote(k, temperature, tally.accuracy())
        for (k, temperature), tally in zip(settings, tallies, strict=True)
    ]


def nearest(bank: Tensor, queries: Tensor, k: int, columns: int) -> tuple[Tensor, Tensor]:
    """The k rows of ``bank`` (N, D) most cosine-similar to each of ``queries`` (B, D), best first.

    ``bank`` is taken ``columns`` rows at a time to the device of ``queries``.

    Returns:
        similarities (B, min(k, N)) and int64 rows of the same shape, on that device.
    """
    queries = F.normalize(queries, dim=1)
    best = queries.new_empty(len(queries), 0)
    found = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), columns):
        part = F.normalize(bank[start : start + columns].to(queries.device), dim=1)
        values, rows = (queries @ part.T).topk(min(k, len(part)), dim=1)
        values, rows = torch.cat([best, values], dim=1), torch.cat([found, rows + start], dim=1)
        best, order = values.topk(min(k, values.shape[1]), dim=1)
        found = rows.gather(1, order)
    return best, found


def _ranked(neighbours: Tensor, weights: Tensor, classes: int) -> Tensor:
    """The five classes with most votes, best first, int64 (B, 5); -1 where none got a vote."""
    votes = torch.zeros(len(neighbours), max(classes, 5), dtype=weights.dtype)
    votes.scatter_add_(1, neighbours, weights)
    best, ranked = votes.topk(5, dim=1)
    return ranked.where(best > 0, -1)
