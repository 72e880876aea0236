"""A run as its folder tells it, in bounded memory however long it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Generic, TypeVar

from fastcl_cli.errors import RunFolderError
from fastcl_cli.plan import Segment
from fastcl_cli.report.description import Description, describe
from fastcl_cli.report.lines import Lines
from fastcl_cli.report.records import (
    Decision,
    Ended,
    Started,
    Warned,
    decision,
    happened,
    metrics,
)
from fastcl_cli.schedule.source import clip

KEPT_LINES = 1000
"""Log lines that are kept, and as many of those with k-NN: every one of a run with default
intervals, of others at least half as many, evenly spaced."""
KEPT_TIMES = 1000
KEPT_SESSIONS, KEPT_DECISIONS, KEPT_WARNINGS = 200, 200, 50

Item = TypeVar("Item")


class Thinned(Generic[Item]):
    """At most ``limit`` of a stream's items, every ``stride``-th from the first on, and the last.

    ``stride`` is the least power of two that keeps to the limit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: list[Item] = []
        self.last: Item | None = None
        self.count, self.stride = 0, 1

    def add(self, item: Item) -> None:
        """Take the next item."""
        if self.count % self.stride == 0:
            if len(self._kept) == self._limit:
                del self._kept[1::2]
                self.stride *= 2
            if self.count % self.stride == 0:
                self._kept.append(item)
        self.last = item
        self.count += 1

    @property
    def items(self) -> list[Item]:
        """What was kept, in order."""
        if self.last is None or self._kept[-1] is self.last:
            return self._kept
        return [*self._kept, self.last]


@dataclass(slots=True)
class Times:
    """Seconds of the whole run by what they went into; ``waiting`` is part of ``training``."""

    training: float = 0.0
    waiting: float = 0.0
    judging: float = 0.0
    measuring: float = 0.0
    deciding: float = 0.0


@dataclass(frozen=True, slots=True)
class Speed:
    """A setting as it was trained with: seconds an image takes, waiting for data left out, the
    median over ``lines`` log lines."""

    segment: Segment
    seconds: float
    lines: int


@dataclass(frozen=True)
class Run:
    """Everything that a report shows.

    Attributes:
        lines: log lines, with the keys of ``metrics.jsonl``.
        judged: those with k-NN.
        sessions: each process that worked on the run, with its end where it left word.
        speeds: of each setting and batch, in the order of the plan.
    """

    described: Description
    lines: Thinned[Mapping[str, Any]]
    judged: Thinned[Mapping[str, Any]]
    decisions: Sequence[Decision]
    sessions: Sequence[tuple[Started, Ended | None]]
    warnings: Sequence[Warned]
    times: Times
    speeds: Sequence[Speed]
    name: str = field(default="")

    @property
    def step(self) -> int:
        """Updates that the log covers."""
        return int(self.lines.last["step"]) if self.lines.last else 0

    @property
    def stop_step(self) -> int:
        """Where the run was asked to end."""
        return min(self.sessions[-1][0].stop_step, self.described.plan.steps)

    def units(self, step: int) -> float:
        """What ``step`` updates cost, in forward passes of the uncompressed model."""
        return self.described.plan.cost_at(step) * self.described.units_per_image

    def share(self, step: int) -> float:
        """The same, over what the whole plan would cost without compression."""
        plan = self.described.plan
        return plan.cost_at(step) / plan.images_at(plan.steps)


def read_run(folder: Path) -> Run:
    """Read a run; a last line that is still being written is left out.

    Raises:
        RunFolderError: the folder is not that of a run, or a file in it is damaged.
    """
    described = describe(folder)
    files, plan = described.files, described.plan
    sessions, warnings = _history(Lines(files.events, happened))
    if not sessions:
        raise RunFolderError(f"{files.events}: no run has started here")
    decisions = Thinned[Decision](KEPT_DECISIONS)
    lines, judged = (Thinned[Mapping[str, Any]](KEPT_LINES) for _ in range(2))
    times = Times()
    for one in Lines(files.decisions, decision).new():
        times.deciding += one.seconds
        decisions.add(one)
    stopwatch = _Stopwatch(described)
    for line in Lines(files.metrics, metrics).new():
        before = lines.last["step"] if lines.last else 0
        if not before < line["step"] <= plan.steps:
            raise RunFolderError(
                f"{files.metrics}: step {line['step']} after step {before} of {plan.steps}"
            )
        lines.add(line)
        if "knn" in line:
            judged.add(line)
        steps = line["step"] - before
        times.training += steps * line["step_s"]
        times.waiting += steps * line["data_wait_s"]
        times.judging += line.get("knn_s", 0.0)
        times.measuring += line.get("grad_error_s", 0.0)
        stopwatch.take(before, line)
    name = clip(folder.resolve().name or str(folder), 80)
    return Run(
        described, lines, judged, decisions.items, sessions, warnings, times, stopwatch.speeds(),
        name,
    )  # fmt: skip


def _history(lines: Lines[Any]) -> tuple[list[tuple[Started, Ended | None]], list[Warned]]:
    """Sessions and warnings: of very many the first and the newest."""
    sessions: list[tuple[Started, Ended | None]] = []
    warnings: list[Warned] = []
    for one in lines.new():
        match one:
            case Started():
                sessions.append((one, None))
                if len(sessions) > KEPT_SESSIONS:
                    del sessions[1]
            case Ended():
                if sessions:
                    sessions[-1] = sessions[-1][0], one
            case Warned():
                warnings = [*warnings[-KEPT_WARNINGS + 1 :], one]
    return sessions, warnings


class _Stopwatch:
    """Sorts log lines by the setting that was trained with."""

    def __init__(self, described: Description) -> None:
        self._plan = described.plan
        self._found: dict[object, tuple[Segment, Thinned[float]]] = {}

    def take(self, before: int, line: Mapping[str, Any]) -> None:
        """A line after that of step ``before``; one over two segments, or over the first steps of
        one (compiling, warming up), says nothing of either."""
        segment = self._plan.at(line["step"] - 1)
        if before <= segment.first_step:
            return
        computing = line["step_s"] - line["data_wait_s"]
        if computing <= 0:
            return
        key = (segment.views, segment.batch)
        _, seconds = self._found.setdefault(key, (segment, Thinned(KEPT_TIMES)))
        seconds.add(computing / segment.batch)

    def speeds(self) -> list[Speed]:
        return [
            Speed(segment, median(seconds.items), seconds.count)
            for segment, seconds in self._found.values()
        ]
