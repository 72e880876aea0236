"""Profiles: what training steps were measured to take on a device, and whom that tells something.

A profile is made by `fastcl bench` for one workload (method, model, image, heads) on one kind of
device. It holds a time for each *setting*, which is what an image's views are and how many images
make a step. `fastcl estimate` adds them up, and a setting's time relative to no compression is its
measured sample cost (kappa). Nothing here needs torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from fastcl_cli.config import RunConfig
from fastcl_cli.plan import Compression, Plan, View


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles over repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Quartiles are interpolated linearly between the values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Workload:
    """What decides the work of a step, besides its views and its batch.

    A profile answers for schedules that agree in all of these but ``model``, which is a name.
    """

    method: str
    model: str
    patch: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    prefix_tokens: int
    image: int
    locals: tuple[int, int] | None
    head: tuple[int, ...]

    @classmethod
    def of(cls, config: RunConfig) -> Workload:
        shape, views = config.model, config.locals
        return cls(
            config.method,
            shape.name,
            shape.patch,
            shape.embed_dim,
            shape.depth,
            shape.num_heads,
            shape.mlp_ratio,
            shape.prefix_tokens,
            config.image,
            None if views is None else (views.count, views.side),
            config.head,
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """What changes the time of a step somewhat: a schedule may differ, and the estimate says so.

    ``clip`` is whether gradients are clipped; ``blur`` and ``solarize`` are the probabilities of
    the first global view, the second one and the local ones; ``decode`` is the side of the decoded
    square in pixels, None in a schedule that leaves it to the data; ``accumulate`` is in how many
    parts the images went (older profiles: one).
    """

    drop_path: float
    clip: bool
    resize: str
    jitter: float
    blur: tuple[float, ...]
    solarize: tuple[float, ...]
    decode: int | None
    accumulate: int = 1

    @classmethod
    def of(cls, config: RunConfig) -> Recipe:
        views = config.augmentation
        return cls(
            config.drop_path,
            config.clip is not None,
            views.resize,
            views.jitter.probability,
            views.blur,
            views.solarize,
            config.decode,
            config.accumulate,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """What a step was measured with: its views, and ``batch`` images over all processes.

    ``online`` and ``target`` are the compression as it was asked for; ``views`` is what came of it
    and what counts.
    """

    views: tuple[View, ...]
    batch: int
    online: Compression
    target: Compression | None


@dataclass(frozen=True, slots=True)
class Measured:
    """Whole training steps of a setting, as a run makes them.

    Attributes:
        step_ms: milliseconds of a step, waiting for data included.
        wait_ms: of which waiting for data, the median.
        log_ms: milliseconds that a log line takes, the median.
        memory: most bytes in use, or None where that cannot be measured; see
            ``Profile.memory_kind``.
        flops: analytic operations of the step (`fastcl_cli.cost`), forward and backward.
    """

    setting: Setting
    step_ms: Spread
    wait_ms: float
    log_ms: float
    memory: int | None
    flops: int

    @property
    def image_ms(self) -> float:
        """Milliseconds of a step for each of its images."""
        return self.step_ms.median / self.setting.batch

    @property
    def computing_ms(self) -> float:
        """The same without waiting for data."""
        return (self.step_ms.median - self.wait_ms) / self.setting.batch

    @property
    def images_per_s(self) -> float:
        return 1000 / self.image_ms


@dataclass(frozen=True, slots=True)
class Loader:
    """Images a second that the loader of the whole machine delivers when nothing else runs."""

    images_per_s: Spread
    side: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """Seconds that come once or now and then: ``start_s`` from the loader's making to the end of
    the first step, less a usual step; ``stream_s`` more for the first batch of an epoch or segment
    than for others; ``save_s`` for a checkpoint."""

    start_s: float
    stream_s: float
    save_s: float


@dataclass(frozen=True)
class Profile:
    """Measurements of one workload on one kind of device.

    Attributes:
        device: its own name; of a CPU with the number of threads.
        precision: ``float32`` or ``bf16``.
        processes: how many shared the batch, one device each.
        versions: of fastcl and the libraries.
        date: when it was measured, ISO 8601 in UTC.
        repetitions: of every measurement.
        data: what was trained on; None for synthetic images, which no loader delivered.
        images: how many there are of them.
        memory_kind: what ``Measured.memory`` counts, in words.
        measured: every setting; at least one of them without compression.
    """

    device: str
    precision: str
    processes: int
    versions: dict[str, str]
    date: str
    repetitions: int
    data: str | None
    images: int
    memory_kind: str
    workload: Workload
    recipe: Recipe
    measured: tuple[Measured, ...]
    loader: Loader | None
    fixed: Fixed

    def differences(self, config: RunConfig) -> list[str]:
        """Why the profile says nothing of a schedule: what differs, in words; empty if it does."""
        found = _different(Workload.of(config), self.workload, but=("model",))
        if config.precision not in ("auto", self.precision):
            found.append(f"precision is {config.precision}, measured {self.precision}")
        return found

    def remarks(self, config: RunConfig) -> list[str]:
        """What differs and may change the times somewhat, in words."""
        own = Recipe.of(config)
        return _different(own, self.recipe, but=("decode",) if own.decode is None else ())

    def find(self, views: tuple[View, ...], batch: float) -> Measured | None:
        """The measurement of these views whose batch for each process is nearest to ``batch`` (by
        ratio; of two, the larger), or None where the views were not measured."""
        return _nearest([m for m in self.measured if m.setting.views == views], self._all(batch))

    def full(self, batch: float) -> Measured:
        """The same for no compression, which every profile holds."""
        found = _nearest([m for m in self.measured if self._is_full(m)], self._all(batch))
        assert found is not None
        return found

    def _all(self, batch: float) -> float:
        return batch * self.processes

    def _is_full(self, measured: Measured) -> bool:
        return is_full(measured.setting.views, self.workload.patch)

    def sample_cost(self, measured: Measured) -> float:
        """kappa: time of an image over its time without compression, waiting for data left out:
        what a loader delivers is no property of the compression."""
        full = self.full(measured.setting.batch / self.processes)
        return measured.computing_ms / full.computing_ms

    def missing(self, plan: Plan) -> list[int]:
        """Indices of the plan's segments whose views were not measured."""
        return [i for i, s in enumerate(plan.segments) if self.find(s.views, s.batch) is None]


def is_full(views: Sequence[View], patch: int) -> bool:
    """Whether all encoders see all tokens of the model's own ``patch``."""
    seen = [tokens for view in views for tokens in (view.online, view.target) if tokens is not None]
    return all(tokens.patch == patch and tokens.kept == tokens.grid**2 for tokens in seen)


def _nearest(candidates: Sequence[Measured], batch: float) -> Measured | None:
    def distance(one: Measured) -> tuple[float, int]:
        return abs(math.log(one.setting.batch / batch)), -one.setting.batch

    return min(candidates, key=distance, default=None)


def _different(wanted: Any, measured: Any, but: Sequence[str]) -> list[str]:
    """The fields in which two records of a kind differ, in words."""
    return [
        f"{field.name} is {_words(getattr(wanted, field.name))}, "
        f"measured {_words(getattr(measured, field.name))}"
        for field in fields(wanted)
        if field.name not in but and getattr(wanted, field.name) != getattr(measured, field.name)
    ]


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_words, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
