"""The linear probe's rows: where its batches come from, and what its protocol says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastcl_cli.errors import DataError
from fastcl_cli.evaluate.bench import LR_PER_BATCH, Bench, Row
from fastcl_cli.evaluate.features import Features
from fastcl_cli.evaluate.images import crop_and_flip, training_order
from fastcl_cli.evaluate.linear import (
    INITIAL,
    MOMENTUM,
    LinearProbe,
    Outcome,
    Standardiser,
    hold_out,
)


def linear_rows(bench: Bench) -> list[list[Row]]:
    """One row for each of ``blocks``, for each network; all are trained in one pass.

    Memory beside the features: for every network and ``blocks``, 4·R·C·D float32, with R rates, C
    classes and D columns (weights and momenta of two sweeps).

    Raises:
        DataError: no image can be held out to choose the rate.
        NumericalError: every rate diverged.
    """
    settings = bench.settings
    held = _held_out(bench)
    columns = [bench.columns(blocks, settings.pool) for blocks in settings.blocks]
    probes = [[_probe(bench, part, held) for part in columns] for _ in bench.networks]
    standard = [Standardiser(features.values) for features in bench.of_train]
    batches = _streamed(bench) if settings.augment else _cached(bench)
    for step, (values, rows) in enumerate(batches):
        for features, standardise, own in zip(values, standard, probes, strict=True):
            scaled = standardise(features)
            for probe, part in zip(own, columns, strict=True):
                probe.step(scaled[:, part], rows, step)
        if bench.progress is not None:
            bench.progress("linear probe", step + 1, bench.steps)
    return [
        [
            _row(bench, blocks, probe.outcome(_part(chosen, part), _part(val, part)), held)
            for probe, part, blocks in zip(own, columns, settings.blocks, strict=True)
        ]
        for own, chosen, val in zip(
            probes,
            [Features(x.values[held], x.labels[held]) for x in _scaled(standard, bench.of_train)],
            _scaled(standard, bench.of_val),
            strict=True,
        )
    ]


def _scaled(standard: list[Standardiser], features: list[Features]) -> list[Features]:
    return [Features(s(f.values), f.labels) for s, f in zip(standard, features, strict=True)]


def _held_out(bench: Bench) -> Tensor:
    """bool (N,): the training images that choose the rate; none where there is one rate."""
    labels = bench.train.labels
    if len(bench.settings.linear_lr) == 1:
        return torch.zeros(len(labels), dtype=torch.bool)
    held = hold_out(labels, bench.generator("probe hold-out"))
    if not held.any():
        raise DataError(
            f"{bench.train.data.path}: every class has one image: none can be held out to choose "
            "the learning rate",
            "give one: --linear-lr X",
        )
    return held


def _probe(bench: Bench, part: slice, held: Tensor) -> LinearProbe:
    generator = bench.generator("probe classifier")
    initial = INITIAL * torch.randn(part.stop - part.start, bench.classes, generator=generator)
    rates = [rate * bench.batch / LR_PER_BATCH for rate in bench.settings.linear_lr]
    return LinearProbe(
        rates, initial.to(bench.compute.device), bench.train.labels, held, bench.steps
    )


def _cached(bench: Bench) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Batches of features, one tensor for each network, and their rows."""
    for epoch in range(bench.settings.epochs):
        order = training_order(bench.train.data.images, bench.batch, bench.settings.seed, epoch)
        for rows in torch.split(torch.from_numpy(order), bench.batch):
            yield [f.values[rows].to(bench.compute.device) for f in bench.of_train], rows


def _streamed(bench: Bench) -> Iterator[tuple[list[Tensor], Tensor]]:
    """As `_cached`, but of random views, made and encoded step by step."""
    settings = bench.settings
    for network in bench.networks:
        network.to(bench.compute.device).eval()
    augmentation = crop_and_flip(settings.crop_min, settings.flip)
    views = bench.train.augmented(augmentation, bench.batch, settings.epochs, settings.seed)
    for view, rows in views:
        yield [bench.reading(network, view) for network in bench.networks], rows


def _part(features: Features, part: slice) -> Features:
    return Features(features.values[:, part], features.labels)


def _row(bench: Bench, blocks: int, outcome: Outcome, held: Tensor) -> Row:
    settings, rates = bench.settings, bench.settings.linear_lr
    lr = rates[outcome.chosen]
    choice: dict[str, Any] = {"lr": lr, "lr_per_batch": LR_PER_BATCH}
    if len(rates) > 1:
        choice["chosen_by"] = (
            f"top-1 on {int(held.sum())} training images held out, a tenth of each class; "
            "the classifier reported was trained on all"
        )
        choice["lr_on_edge"] = lr in (min(rates), max(rates))
        choice["sweep"] = [
            {"lr": rate, "held_out_top1": share, "top1": top1, "diverged": diverged}
            for rate, share, top1, diverged in zip(
                rates, outcome.held_out, outcome.top1, outcome.diverged, strict=True
            )
        ]
    protocol = {
        "blocks": blocks,
        "features": "[CLS] and mean of patch tokens" if settings.pool else "[CLS]",
        "views": f"{bench.augmentation()}, streamed" if settings.augment else "centre, cached",
        "standardised": "columns, over the training set's centre crops",
        **choice,
        "optimizer": "SGD",
        "momentum": MOMENTUM,
        "weight_decay": 0.0,
        "decay": "cosine to 0",
        **bench.length(),
        **bench.common,
        "precision": "float32",
    }
    return Row.of("linear", outcome.accuracy, protocol)
