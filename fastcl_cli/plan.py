"""The plan: a schedule resolved to integers for one run.

A plan is a list of segments. Within a segment every shape is constant: batch, grids, tokens kept.
The same plan feeds the trainer, the estimator, the screen and the report, so what they show is what
is used. A plan is immutable and needs no torch.

Position in the data: the run walks through *epochs*, each a fresh permutation of the ``images``;
a step takes the next ``batch`` images of the permutation, and where fewer than ``batch`` are left
the rest is skipped and the next epoch begins. A phase whose range is in epochs starts no earlier
than its range says, so `epochs 60-90` opens with a fresh permutation. So any step's place in the
data is a pure function of the plan.

In an `auto` phase the run chooses the compression. A move changes neither batch nor steps nor the
walk through the data, only what is seen of the images: it gives another plan, `Plan.moved`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from fastcl_cli.config import Duration, Method
from fastcl_cli.units import plain_number, shortest_decimal

Unit = Literal["epochs", "steps", "percent"]


@dataclass(frozen=True, slots=True)
class Compression:
    """How one encoder sees the views, as the schedule wrote it."""

    drop: Fraction
    patch: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """How one encoder tokenises one view: patch side in pixels of the uncompressed view,
    tokens per side, and patch tokens kept (prefix tokens not counted)."""

    patch: int
    grid: int
    kept: int


@dataclass(frozen=True, slots=True)
class View:
    """One kind of view: ``count`` views per image of ``side`` x ``side`` pixels.

    ``target`` is None where the target encoder does not see the view (DINO's local views, SimCLR).
    """

    name: Literal["global", "local"]
    count: int
    side: int
    online: Tokens
    target: Tokens | None


@dataclass(frozen=True, slots=True)
class Rung:
    """One setting that an `auto` phase may choose, with what it comes to for the phase's batch."""

    online: Compression
    target: Compression | None
    views: tuple[View, ...]
    sample_cost: float


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in the data: epoch, and how many of its images have been used."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps ``first_step <= s < end_step`` of constant shape.

    ``start`` and ``end`` are the same range in the plan's unit; ``position`` is where in the data
    its first step stands; ``phase`` is the index of the phase in the schedule that it comes from;
    ``auto`` says that the run chooses the compression, here the one it has so far (the cheapest,
    before any move).
    """

    start: Fraction
    end: Fraction
    first_step: int
    end_step: int
    batch: int
    position: Position
    phase: int
    online: Compression
    target: Compression | None
    views: tuple[View, ...]
    sample_cost: float
    auto: bool = False

    def to_json(self) -> dict[str, Any]:
        """The segment as JSON values: ``drop`` as written, everything else as used."""
        first = self.views[0]
        target = None
        if self.target is not None and first.target is not None:
            target = _encoder_json(self.target, first.target)
        return {
            "start": plain_number(self.start),
            "end": plain_number(self.end),
            "first_step": self.first_step,
            "end_step": self.end_step,
            "batch": self.batch,
            "position": {"epoch": self.position.epoch, "offset": self.position.offset},
            "phase": self.phase,
            "online": _encoder_json(self.online, first.online),
            "target": target,
            "views": [
                {
                    "name": view.name,
                    "count": view.count,
                    "side": view.side,
                    "grid": view.online.grid,
                    "tokens": view.online.kept,
                }
                for view in self.views
            ],
            "sample_cost": self.sample_cost,
            "auto": self.auto,
        }


def _encoder_json(compression: Compression, tokens: Tokens) -> dict[str, Any]:
    return {
        "drop": plain_number(compression.drop),
        "patch": tokens.patch,
        "grid": tokens.grid,
        "tokens": tokens.kept,
    }


def begin(position: Position, batch: int, images: int) -> Position:
    """Where a step of ``batch`` images that comes next at ``position`` really starts."""
    if images - position.offset < batch:
        return Position(position.epoch + 1, 0)
    return position


def advance(position: Position, batch: int, steps: int, images: int) -> Position:
    """Where the data stands after ``steps`` >= 1 steps from `begin`'s ``position``.

    The rest of the epoch that is smaller than ``batch`` is not skipped yet: a smaller batch that
    follows may still use it.
    """
    here = (images - position.offset) // batch
    if steps <= here:
        return Position(position.epoch, position.offset + steps * batch)
    epochs, last = divmod(steps - here - 1, images // batch)
    return Position(position.epoch + 1 + epochs, (last + 1) * batch)


def steps_until(position: Position, bound: Position, batch: int, images: int) -> int:
    """How many steps from `begin`'s ``position`` start before ``bound``."""
    if bound <= position:
        return 0
    here = (images - position.offset) // batch
    if bound.epoch == position.epoch:
        return min(here, -(-(bound.offset - position.offset) // batch))
    per_epoch = images // batch
    whole = here + (bound.epoch - position.epoch - 1) * per_epoch
    return whole + min(per_epoch, -(-bound.offset // batch))


def default_save_interval(steps: int) -> int:
    """About twenty checkpoints a run of so many steps, but never more than 1,000 steps apart."""
    return min(max(1, steps // 20), 1000)


def default_log_interval(steps: int) -> int:
    """About two hundred log lines a run."""
    return max(1, steps // 200)


@dataclass(frozen=True)
class Plan:
    """A schedule for one run, in whole numbers.

    ``total`` is the length in ``unit``; ``end`` is where in the data the run ends. ``segments``
    follow each other without gap from step 0. ``length`` is the run in epochs where the unit is per
    cent, else None. Build one with `fastcl_cli.schedule.load`.
    """

    method: Method
    unit: Unit
    total: Fraction
    images: int
    segments: tuple[Segment, ...]
    end: Position
    length: Fraction | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.segments[-1].end_step

    @property
    def epochs(self) -> float:
        """The whole run in epochs; `epochs_at` of the end."""
        return self.end.epoch + self.end.offset / self.images

    @property
    def is_auto(self) -> bool:
        """Whether the run itself chooses the compression of some phase."""
        return any(segment.auto for segment in self.segments)

    @cached_property
    def _first_steps(self) -> list[int]:
        return [segment.first_step for segment in self.segments]

    @cached_property
    def _images_before(self) -> list[int]:
        counts = (s.batch * (s.end_step - s.first_step) for s in self.segments)
        return list(accumulate(counts, initial=0))

    def index(self, step: int) -> int:
        """Index of the segment that holds ``step``, 0 <= step < steps; O(log segments)."""
        assert 0 <= step < self.steps, f"step {step} of a plan of {self.steps}"
        return bisect_right(self._first_steps, step) - 1

    def at(self, step: int) -> Segment:
        """The segment that holds ``step``, 0 <= step < steps; O(log segments)."""
        return self.segments[self.index(step)]

    def position(self, step: int) -> Position:
        """Where in the data ``step`` starts, 0 <= step <= steps (``steps`` gives ``end``)."""
        if step == self.steps:
            return self.end
        segment = self.at(step)
        if step == segment.first_step:
            return segment.position
        done = step - segment.first_step
        after = advance(segment.position, segment.batch, done, self.images)
        return begin(after, segment.batch, self.images)

    def epochs_at(self, step: int) -> float:
        """Progress in epochs when ``step`` starts: epochs begun before, plus the share used of
        this one. What an epoch's end leaves over (fewer images than a batch) counts as passed, so
        ``10 epochs`` are ten walks through the data whatever the batch."""
        position = self.position(step)
        return position.epoch + position.offset / self.images

    def streams(self, segment: Segment) -> int:
        """How many times a segment begins to read data: at its start and with each new epoch."""
        last = self.position(segment.end_step - 1)
        return last.epoch - segment.position.epoch + 1

    def images_at(self, step: int) -> int:
        """Images used before ``step`` starts, 0 <= step <= steps."""
        if step == self.steps:
            return self._images_before[-1]
        index = self.index(step)
        segment = self.segments[index]
        return self._images_before[index] + segment.batch * (step - segment.first_step)

    def in_epochs(self, duration: Duration) -> float:
        """``duration`` in epochs of this plan, the unit of `epochs_at`; steps beyond the end of
        the plan go on at the last segment's batch."""
        if duration.unit == "epochs":
            return float(duration.value)
        if duration.unit == "percent":
            return self.epochs * float(duration.value) / 100
        steps = int(duration.value)
        if steps <= self.steps:
            return self.epochs_at(steps)
        return self.epochs + (steps - self.steps) * self.segments[-1].batch / self.images

    @cached_property
    def _cost_before(self) -> list[float]:
        costs = (s.sample_cost * s.batch * (s.end_step - s.first_step) for s in self.segments)
        return list(accumulate(costs, initial=0.0))

    def cost_at(self, step: int) -> float:
        """Sample cost of all images used before ``step`` starts, 0 <= step <= steps: what they
        cost, counted in images without compression."""
        if step == self.steps:
            return self._cost_before[-1]
        index = self.index(step)
        segment = self.segments[index]
        done = segment.batch * (step - segment.first_step)
        return self._cost_before[index] + segment.sample_cost * done

    @cached_property
    def mean_cost(self) -> float:
        """Sample cost of the mean image: weighted by images, relative to no compression."""
        return self._cost_before[-1] / self._images_before[-1]

    @property
    def speedup(self) -> float:
        """How many times cheaper the plan is than the same images without compression."""
        return 1 / self.mean_cost

    def moved(self, step: int, rung: Rung) -> Plan:
        """The plan in which an `auto` phase goes on with ``rung`` from ``step`` to its end.

        Everything before ``step`` stays, and so does every other phase; later moves of the same
        phase are gone. Neighbours of one phase with the same setting are one segment, so a plan
        says what was chosen and not how often, and its hash with it.

        Args:
            step: in a segment with ``auto``.
            rung: one of `fastcl_cli.schedule.resolve.ladder` for that segment's batch.
        """
        index = self.index(step)
        first = self.segments[index]
        assert first.auto, f"step {step} is in no auto phase"
        rest = [s for s in self.segments[index:] if s.phase == first.phase]
        before = list(self.segments[:index])
        start = first.start
        if step > first.first_step:
            start = self._bound(step)
            before.append(replace(first, end=start, end_step=step))
        new = replace(
            rest[-1],
            start=start,
            first_step=step,
            position=self.position(step),
            online=rung.online,
            target=rung.target,
            views=rung.views,
            sample_cost=rung.sample_cost,
        )
        if before:
            last = before[-1]
            if (last.phase, last.online, last.target) == (new.phase, rung.online, rung.target):
                new = replace(before.pop(), end=new.end, end_step=new.end_step)
        after = self.segments[index + len(rest) :]
        return replace(self, segments=(*before, new, *after))

    def _bound(self, step: int) -> Fraction:
        """A range's bound, in the plan's unit, at which exactly ``step`` begins.

        In epochs and per cent it is the shortest decimal after the start of the step before it and
        not after its own: a phase that ends there, and one that starts there, walk through the
        data as if there were none. Runs of less than 10**9 steps need at most the 12 digits that
        the language has.
        """
        if self.unit == "steps":
            return Fraction(step)
        unit = Fraction(1) if self.length is None else 100 / self.length
        low, high = (
            (place.epoch + Fraction(place.offset, self.images)) * unit
            for place in (self.position(step - 1), self.position(step))
        )
        return shortest_decimal(low, high)

    def hash(self) -> str:
        """SHA-256 (hex) over every integer that training depends on: equal hashes, equal runs.

        Of a plan with `auto` phases it is the hash for the settings that they have so far.
        """
        digest = hashlib.sha256(f"{self.method} {self.images} {self.end}".encode())
        for s in self.segments:
            line = f"{s.first_step} {s.end_step} {s.batch} {s.position} {s.views}\n"
            digest.update(line.encode())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: ``drop`` as written, everything else as used."""
        return {
            "method": self.method,
            "unit": self.unit,
            "total": plain_number(self.total),
            "images": self.images,
            "steps": self.steps,
            "epochs": self.epochs,
            "segments": [segment.to_json() for segment in self.segments],
            "mean_cost": self.mean_cost,
            "speedup": self.speedup,
            "hash": self.hash(),
        }
