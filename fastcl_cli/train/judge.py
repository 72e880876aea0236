"""How good a run's features are while it trains: k-NN on held-out images, aside from training.

A measurement moves nothing of the run: it draws from generators of its own, goes through loaders of
its own, and leaves weights and modes as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastcl_cli.checkpoint import whole_backbone
from fastcl_cli.config import Duration, RunConfig
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.source import open_judging, open_split
from fastcl_cli.errors import DataError
from fastcl_cli.evaluate.features import Features, extract
from fastcl_cli.evaluate.images import Images, default_crop_ratio, same_classes
from fastcl_cli.evaluate.knn import knn_accuracy
from fastcl_cli.extras import available_cores
from fastcl_cli.methods.build import BackboneSpec
from fastcl_cli.model.vit import Encoder
from fastcl_cli.plan import Plan
from fastcl_cli.processes import distributed
from fastcl_cli.rng import derive_seed
from fastcl_cli.train.device import Device

NEIGHBOURS, TEMPERATURE = 20, 0.07
MAX_BANK, MAX_QUERIES = 10_000, 2_000
"""Training images that vote, held-out images judged: at most so many. 2,000 hold the standard
error of an accuracy, sqrt(p(1 - p) / n), to 1.1 points; 10,000 are ten of each class of
ImageNet-1k, whose features take seconds. It is a figure to follow a run by; `fastcl probe` takes
all images."""


class _GivenUpError(Exception):
    """A measurement was given up, because the run is to stop."""


@dataclass(frozen=True)
class Subset:
    """Some images of a labelled data set: ``rows`` int64 (N,), ascending."""

    data: Beton
    rows: NDArray[np.int64]

    @classmethod
    def draw(cls, data: Beton, most: int, seed: int, purpose: str) -> Subset:
        """A uniformly random ``most`` of the images, or all of them where there are no more."""
        generator = torch.Generator().manual_seed(derive_seed(seed, purpose, 0))
        chosen = torch.randperm(data.images, generator=generator)[:most]
        return cls(data, chosen.sort().values.numpy())


class Judge:
    """Measures k-NN accuracy at fixed steps of ``plan``.

    Args:
        every: the interval, above 0; the last step of the plan is measured in any case.
        sets: bank and queries in process 0, which measures; None in the others, which wait.
        spec: what the backbone is.
    """

    def __init__(
        self,
        plan: Plan,
        every: Duration,
        sets: tuple[Subset, Subset] | None,
        spec: BackboneSpec,
        device: Device,
    ) -> None:
        self.plan = plan
        self._every = every
        self._sets = sets
        self._spec = spec
        self._device = device

    def due(self, done: int) -> bool:
        """Whether a measurement follows the update that makes ``done`` of them, ``done`` >= 1.

        That is where the plan passes a whole multiple of the interval, counted from step 0, so a
        resumed run measures at the steps of one that was never stopped.
        """
        if done == self.plan.steps:
            return True
        if self._every.unit == "steps":
            return done % int(self._every.value) == 0
        interval = self._every.value
        if self._every.unit == "percent":
            interval *= self._epochs(self.plan.steps) / 100
        return self._epochs(done) // interval > self._epochs(done - 1) // interval

    def _epochs(self, done: int) -> Fraction:
        """`Plan.epochs_at`, exactly."""
        position = self.plan.position(done)
        return position.epoch + Fraction(position.offset, self.plan.images)

    def measure(self, backbone: Encoder, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        """Entries of the metrics line: ``knn``, and ``knn_s``, the seconds that it took.

        Features are of centre crops, all tokens, float32 weights. Every process must come here.

        Args:
            stopped: whether this process was asked to stop; then the measurement is given up.

        Returns:
            the entries, or None where it was given up.
        """
        began = time.perf_counter()
        metrics: dict[str, Any] = {}
        given_up = False
        network = whole_backbone(backbone, self._spec)
        if self._sets is not None:
            assert network is not None
            was = network.training
            try:
                metrics["knn"] = self._knn(network, stopped)
            except _GivenUpError:
                given_up = True
            network.train(was)
        if distributed.greatest(int(given_up)):
            return None
        return metrics | {"knn_s": time.perf_counter() - began}

    def _knn(self, backbone: Encoder, stopped: Callable[[], bool]) -> dict[str, Any]:
        def look(what: str, done: int, total: int) -> None:
            if stopped():
                raise _GivenUpError

        assert self._sets is not None
        bank, queries = (
            extract([backbone], images, rows=subset.rows, progress=look)[0]
            for images, subset in zip(self._images, self._sets, strict=True)
        )
        return self._vote(bank, queries)

    @cached_property
    def _images(self) -> list[Images]:
        """What reads them, opened when it is first asked for.

        They may work while the training set's decodes ahead: numba's thread layers, but for its
        last resort (workqueue), serve several threads.
        """
        assert self._sets is not None
        image, device = self._spec.image, self._device
        ratio = default_crop_ratio(image)
        return [
            Images(subset.data, image, ratio, device.device, device.threads)
            for subset in self._sets
        ]

    def _vote(self, bank: Features, queries: Features) -> dict[str, Any]:
        k = min(NEIGHBOURS, len(bank.labels))
        (vote,) = knn_accuracy(bank, queries, (k,), (TEMPERATURE,), self._device.device)
        return {
            "top1": vote.accuracy.top1,
            "mean_class": vote.accuracy.mean_class,
            "k": k,
            "temperature": TEMPERATURE,
            "bank": len(bank.labels),
            "queries": len(queries.labels),
        }


def open_judge(
    config: RunConfig,
    plan: Plan,
    train: Beton,
    seed: int,
    device: Device,
    *,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Judge | None:
    """The judge that `knn` and `val` ask for; None where there is nothing to judge on.

    Process 0 alone opens the images, and packs them where they are not a beton yet.

    Args:
        train: the training set, whose labels vote.
        announce, progress: as for `open_split`.

    Raises:
        DataError: what `val` names cannot be opened, or cannot judge ``train``.
    """
    if config.knn is None:
        return None
    sets = None
    if distributed.rank() == 0:
        try:
            known, held_out, _ = same_classes(train, _held_out(config, train, announce, progress))
            sets = (
                Subset.draw(known, MAX_BANK, seed, "k-NN bank"),
                Subset.draw(held_out, MAX_QUERIES, seed, "k-NN queries"),
            )
        except DataError as error:
            if config.val is not None:
                raise
            announce(f"no k-NN during the run: {error.message}; `val` can name other images")
    if not distributed.greatest(sets is not None):
        return None
    return Judge(plan, config.knn, sets, BackboneSpec.of(config, seed), device)


def _held_out(
    config: RunConfig,
    train: Beton,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Beton:
    workers = available_cores()
    if config.val is not None:
        return open_judging(
            config.val, train.classes, announce=announce, workers=workers, progress=progress
        )
    assert config.data is not None
    return open_split(config.data, "val", announce=announce, workers=workers, progress=progress)
