"""The closed loop of `auto` phases: measure, choose, go on with another plan.

When to decide is fixed by the plan, what is drawn for it by the seed, and the costs by the
checkpoint, so a resumed run makes the same moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from fastcl_cli.config import RunConfig
from fastcl_cli.estimate.clocks import Clock
from fastcl_cli.gradient_error.choose import Choice, cheapest_good, next_rung
from fastcl_cli.gradient_error.paired import PairedGradients, Views, measure
from fastcl_cli.plan import Plan, Rung
from fastcl_cli.processes import distributed
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.units import format_decimal

DECISIONS = 12
"""Of a run whose phases are all `auto`: each can climb two rungs of the ladder. What they cost does
not grow with the run."""
UP, DOWN = 2, 1
"""Neighbours that are measured, dearer and cheaper: a ladder orders by cost and not by error, so
the very next rung may be worse than the one after it."""


Metric: TypeAlias = Literal["euclidean", "adam"]
"""Lengths of gradients as they are, or of the steps that AdamW makes of them (`adam_scale`), which
decisions before its first 100 updates take as they are, too."""


class Policy(Protocol):
    """When to decide, between which settings, and by which rule."""

    @property
    def groups(self) -> int:
        """R, statistics of each decision."""

    @property
    def pairs(self) -> int:
        """K of each group."""

    @property
    def batch(self) -> int | None:
        """b, images of a probe batch; None for the default."""

    @property
    def metric(self) -> Metric:
        """In which lengths are taken."""

    def due(self, step: int, plan: Plan) -> bool:
        """Whether to decide before ``step`` is trained."""

    def candidates(self, current: int, rungs: int) -> range:
        """The rungs to measure."""

    def choose(
        self, current: int, ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]
    ) -> Choice | None:
        """The rung to go on with, or None to stay."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The rule of `auto` phases: every ``interval`` steps, to the cheapest good one of the present
    rung and its neighbours (`next_rung`). A run starts on the cheapest rung."""

    interval: int
    groups: int = 4
    pairs: int = 4
    batch: int | None = None
    metric: Metric = "euclidean"

    @classmethod
    def of(cls, plan: Plan) -> Neighbours:
        steps = sum(s.end_step - s.first_step for s in plan.segments if s.auto)
        return cls(max(1, steps // DECISIONS))

    def due(self, step: int, plan: Plan) -> bool:
        segment = plan.at(step)
        return segment.auto and step > 0 and step % self.interval == 0

    def candidates(self, current: int, rungs: int) -> range:
        return range(max(0, current - DOWN), min(rungs, current + UP + 1))

    def choose(
        self, current: int, ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]
    ) -> Choice | None:
        return next_rung(current, ca_mse, names)


@dataclass(frozen=True, slots=True)
class Stages:
    """The rule of a search: at the start of each stage all settings are measured, and the cheapest
    good one is trained with (`cheapest_good`); never one that is cheaper than the stage before,
    unless ``free``."""

    starts: tuple[int, ...]
    groups: int
    pairs: int
    batch: int | None
    metric: Metric
    free: bool

    def due(self, step: int, plan: Plan) -> bool:
        return step in self.starts

    def candidates(self, current: int, rungs: int) -> range:
        return range(rungs)

    def choose(
        self, current: int, ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]
    ) -> Choice | None:
        least = 0 if self.free else current
        return cheapest_good({r: v for r, v in ca_mse.items() if r >= least}, names)


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision: what was measured, and what came of it. ``record`` is its line in the run's
    ``decisions.jsonl``."""

    rung: Rung
    record: dict[str, Any]


def words(rung: Rung) -> str:
    """A setting as a phase writes it: ``drop 0.5 patch 32``."""
    return f"drop {format_decimal(rung.online.drop)} patch {rung.online.patch}"


class ClosedLoop:
    """Decides for the `auto` phases of a run.

    Args:
        gradients: with draws of their own.
        costs: κ of each setting, in the order of the analytic ladder; None for the analytic ones.
        carried: ``state`` of the checkpoint that the run goes on from, or nothing.

    Raises:
        TypeError, ValueError: ``carried`` is of another plan.
    """

    def __init__(
        self,
        gradients: PairedGradients,
        config: RunConfig,
        plan: Plan,
        policy: Policy,
        carried: Mapping[str, Any],
        costs: Sequence[float] | None = None,
    ) -> None:
        self.gradients = gradients
        self.policy = policy
        self.plan = plan
        self._config = config
        self._full = full_views(config)
        rungs = ladder(config, config.batch)
        analytic = [rung.sample_cost for rung in rungs]
        self._costs = [float(cost) for cost in carried.get("costs", costs or analytic)]
        if len(self._costs) != len(rungs):
            raise ValueError(f"{len(self._costs)} costs of {len(rungs)} settings")
        self._order = sorted(range(len(rungs)), key=lambda i: self._costs[i])
        self._moves: list[list[int]] = []
        for step, rung in carried.get("moves", ()):
            inside = step in range(plan.steps) and rung in range(len(rungs))
            if not inside or not plan.at(step).auto:
                raise ValueError(f"a move at step {step} to setting {rung}")
            self._move(step, rung)

    def _rungs(self, batch: int) -> list[Rung]:
        """The ladder, by measured costs, for a phase with ``batch``."""
        rungs = ladder(self._config, batch)
        return [rungs[i] for i in self._order]

    def _move(self, step: int, rung: int) -> None:
        """Go on with ``rung`` from ``step`` on, through `auto` phases that follow directly, too."""
        self._moves = [[s, r] for s, r in self._moves if s < step] + [[step, rung]]
        self.plan = self.plan.moved(step, self._rungs(self.plan.at(step).batch)[rung])
        for segment in self.plan.segments[self.plan.index(step) + 1 :]:
            if not segment.auto:
                break
            self.plan = self.plan.moved(segment.first_step, self._rungs(segment.batch)[rung])

    @property
    def state(self) -> dict[str, Any]:
        """Goes into every checkpoint: the policy in words, which must not change, κ of each
        setting, and the moves so far."""
        return {"policy": repr(self.policy), "costs": self._costs, "moves": self._moves}

    @property
    def names(self) -> list[str]:
        """Of the rungs, the cheapest first."""
        return [words(rung) for rung in self._rungs(self._config.batch)]

    def next_decision(self, step: int) -> int:
        """The first step from ``step`` on before which to decide; the plan's end if there is none.
        A run that goes on at a step of decision decides there (again)."""
        return next((s for s in range(step, self.plan.steps) if self.due(s)), self.plan.steps)

    def due(self, step: int) -> bool:
        return self.policy.due(step, self.plan)

    def decide(
        self, step: int, epochs: float, progress: Callable[[int, int], None] | None = None
    ) -> Decision:
        """Measure, choose, and put the choice into ``plan``, from ``step`` on."""
        began = time.perf_counter()
        segment = self.plan.at(step)
        rungs = self._rungs(segment.batch)
        current = next(i for i, rung in enumerate(rungs) if rung.online == segment.online)
        candidates = self.policy.candidates(current, len(rungs))
        table, ca_mse = measure_rungs(
            self.gradients,
            self._full,
            {i: (rungs[i], self._costs[self._order[i]]) for i in candidates},
            segment.batch,
            epochs,
            groups=self.policy.groups,
            pairs=self.policy.pairs,
            first=step * self.policy.groups * self.policy.pairs,
            progress=progress,
        )
        choice = self.policy.choose(current, ca_mse, self.names) or Choice(current, "")
        if choice.rung != current:
            self._move(step, choice.rung)
        record = {
            "step": step,
            "epoch": epochs,
            "from": self.names[current],
            "to": self.names[choice.rung],
            "why": choice.why,
            "metric": "euclidean" if self.gradients.precondition is None else "adam",
            "seconds": time.perf_counter() - began,
            "settings": table,
        }
        return Decision(rungs[choice.rung], record)


def measured_costs(clock: Clock, config: RunConfig) -> list[float]:
    """κ of each setting, in the order of the analytic ladder: the time that its images take over
    that without compression, waiting for data left out."""

    def seconds(views: Views) -> float:
        return clock.image(config, views, config.batch, distributed.size()).computing

    whole = seconds(full_views(config))
    return [seconds(rung.views) / whole for rung in ladder(config, config.batch)]


def measure_rungs(
    gradients: PairedGradients,
    full: Views,
    rungs: Mapping[int, tuple[Rung, float]],
    batch: int,
    epochs: float,
    *,
    groups: int,
    pairs: int,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[int, tuple[float, ...]]]:
    """Measure settings, by their numbers on the ladder and with their κ.

    Returns:
        a row for each, as records hold it, and the CA-MSE of each group for training with
        ``batch``, by number.
    """
    views = [rung.views for rung, _ in rungs.values()]
    errors = measure(
        gradients, full, views, epochs, groups=groups, pairs=pairs, first=first, progress=progress
    )
    table: list[dict[str, Any]] = []
    ca_mse = {}
    for (index, (rung, cost)), error in zip(rungs.items(), errors, strict=True):
        ca_mse[index] = error.ca_mse(cost, batch)
        drop, patch = format_decimal(rung.online.drop), rung.online.patch
        row: dict[str, Any] = {"rung": index, "drop": drop, "patch": patch}
        table.append(row | error.record(cost, batch))
    return table, ca_mse
