"""Paired gradients of a real network: same images, same augmentation, another compression.

Measuring changes nothing of a run: gradients are taken without touching ``.grad``, the loss leaves
the method's state alone, and every draw (images, crops, colours, dropped tokens, skipped paths) is
keyed by a seed of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW

from fastcl_cli.config import RunConfig
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.errors import UsageError
from fastcl_cli.gradient_error.estimators import GradientError, Group, squared_length
from fastcl_cli.methods.base import Method
from fastcl_cli.plan import View
from fastcl_cli.processes import distributed
from fastcl_cli.rng import derive_seed
from fastcl_cli.shards import is_shard, local, mean_gradient, total_squared_length
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import Batch, InputMaker

Views: TypeAlias = tuple[View, ...]
LEAST_UPDATES = 100
"""AdamW's second moments say little before."""


class PairedGradients:
    """Gradients of a method's loss by all its trained parameters, as one vector.

    Args:
        open_loader: gives a loader; asked for at each use, for FFCV compiles for a second when the
            first one is made.
        seed: of the run; ``purpose`` keeps these draws apart from all others.
        batch: b, images of a probe batch, over all processes.

    Attributes:
        precondition: a factor for each coordinate (`adam_scale`), or None for gradients as they
            are.
    """

    def __init__(
        self,
        method: Method,
        config: RunConfig,
        data: Beton,
        open_loader: Callable[[], DecodedLoader],
        device: Device,
        seed: int,
        batch: int,
        *,
        purpose: str = "gradient error",
    ) -> None:
        assert batch <= data.images and batch % distributed.size() == 0
        self.batch = batch
        self._method = method
        self._images = data.images
        self._open_loader = open_loader
        self.device = device
        self._seed = derive_seed(seed, purpose, 0)
        self._inputs = InputMaker(config, data, self._seed, device.device)
        self.precondition: Tensor | None = None

    def batches(self, numbers: Sequence[int]) -> Generator[tuple[int, Batch], None, None]:
        """Probe batches by their numbers: each drawn without replacement, independently of all
        others (disjoint ones would be dependent, and bias every estimate)."""
        rows = distributed.rows(self.batch)
        chosen = np.stack([self._choose(number) for number in numbers])
        with self._open_loader().stream(chosen[:, rows].ravel(), rows.stop - rows.start) as stream:
            for number, whole, decoded in zip(numbers, chosen, stream, strict=True):
                yield number, Batch(decoded.images, whole, rows)

    def _choose(self, number: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        draws = np.random.default_rng(derive_seed(self._seed, "images", number))
        return draws.choice(self._images, self.batch, replace=False).astype(np.int64)

    def gradient(self, number: int, views: Views, batch: Batch, epochs: float) -> Tensor:
        """The gradient of a probe batch seen as ``views``: (parameters,), float32 or wider; of a
        sharded method this process's rows of it, in some order.

        Views, kept tokens and paths depend on ``number`` and the shapes alone, so two compressions
        see the same crops and colours.
        """
        # Asked for first: from forward to backward pass some stand for themselves, whole.
        parameters = list(self._method.trained().values())
        online, target = self._inputs(number, views, batch)
        with self.device.autocast():
            loss = self._method.loss(online, target, epochs).value
        vector = mean_gradient(loss, parameters)
        return vector if self.precondition is None else vector.mul_(self.precondition)

    def squared_length(self, gradient: Tensor) -> float:
        """Of a whole gradient, whatever part of it is here. Every process must come here."""
        sharded = any(map(is_shard, self._method.trained().values()))
        return total_squared_length(gradient) if sharded else squared_length(gradient)


def adam_scale(method: Method, optimizer: AdamW) -> Tensor:
    """AdamW's factor 1 / (√v̂ + ε) of each coordinate: the metric that the optimizer feels.

    v̂ is the bias-corrected second moment (Kingma and Ba, arXiv 1412.6980). A parameter that has
    not been updated yet (frozen prototypes) is not felt: 0.

    Returns:
        (parameters,), in the order of `PairedGradients.gradient`.

    Raises:
        UsageError: fewer than 100 updates have been done.
    """
    parts, least = [], LEAST_UPDATES
    beta, epsilon = optimizer.defaults["betas"][1], optimizer.defaults["eps"]
    for parameter in method.trained().values():
        state = optimizer.state.get(parameter)
        if not state:
            parts.append(torch.zeros_like(local(parameter)).reshape(-1))
            continue
        updates = int(state["step"])
        least = min(least, updates)
        corrected = local(state["exp_avg_sq"]).reshape(-1) / (1 - beta**updates)
        parts.append(1 / (corrected.sqrt() + epsilon))
    if least < LEAST_UPDATES or not any(optimizer.state.values()):
        raise UsageError(
            f"AdamW's metric needs {LEAST_UPDATES} updates of every trained parameter",
            "use the Euclidean metric, or a later checkpoint",
        )
    return torch.cat(parts)


def measure(
    gradients: PairedGradients,
    full: Views,
    settings: Sequence[Views],
    epochs: float,
    *,
    groups: int,
    pairs: int,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[GradientError]:
    """Measure the gradient error of several compressions on the same pairs.

    Args:
        full: the views without compression; a setting equal to them costs nothing more.
        settings: the views of each compression.
        epochs: progress of the run, for what a loss counts in epochs.
        groups: R, statistics to take.
        pairs: K >= 2 of each group.
        first: number of the first probe batch; those of other measurements must not overlap.
        progress: called with gradients taken and their total.

    Returns:
        one `GradientError` for each setting, in order.
    """
    assert pairs >= 2 and groups >= 1
    compressed = [views for views in dict.fromkeys(settings) if views != full]
    rows: dict[Views, list[tuple[float, float]]] = {views: [] for views in (full, *compressed)}
    signal: list[float] = []
    group = Group(len(compressed), gradients.squared_length)
    total, done = groups * pairs * (1 + len(compressed)), 0
    with closing(gradients.batches(range(first, first + groups * pairs))) as source:
        for index, (number, batch) in enumerate(source):
            group.begin_pair(gradients.gradient(number, full, batch, epochs))
            for column, views in enumerate(compressed):
                group.add(column, gradients.gradient(number, views, batch, epochs))
            done += 1 + len(compressed)
            if progress is not None:
                progress(done, total)
            if (index + 1) % pairs == 0:
                signal.append(group.signal())
                rows[full].append((0.0, group.full_variance()))
                for column, views in enumerate(compressed):
                    rows[views].append((group.bias2(column), group.variance(column)))
                group = Group(len(compressed), gradients.squared_length)
    return [
        GradientError(
            tuple(bias2 for bias2, _ in rows[views]),
            tuple(variance for _, variance in rows[views]),
            tuple(signal),
            gradients.batch,
            pairs,
        )
        for views in settings
    ]
