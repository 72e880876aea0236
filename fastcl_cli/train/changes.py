"""What a checkpoint's run and the one that would go on from it do not share.

Weights and optimizer state fit another schedule of the same network, so a run may go on with other
settings and phases where its user says so. What cannot be carried over is refused in any case.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcl_cli.checkpoint import RunHeader
from fastcl_cli.errors import CheckpointError
from fastcl_cli.plan import Compression, Plan, Position, begin

_OF_THE_NETWORK = ("method", "model", "image", "head", "head_norm", "position")
_SHOWN = 3
"""Differences that the error's own line names; all stand above it."""


class ChangedRunError(CheckpointError):
    """A checkpoint is of a run with other settings; ``details`` shows all of them."""

    def __init__(self, message: str, help: str, details: str) -> None:
        super().__init__(message, help)
        self.details = details


@dataclass(frozen=True, slots=True)
class Changes:
    """Differences between two runs.

    Attributes:
        settings: their values in both, by name (``augmentation.flip``).
        phases: lines of the plan, those gone with ``- `` before them and new ones with ``+ ``.
        images: whether the images are others.
        lost: why the run cannot go on with them, in words.
    """

    settings: Mapping[str, tuple[Any, Any]]
    phases: tuple[str, ...]
    images: bool
    lost: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.settings or self.phases or self.images or self.lost)

    def words(self) -> list[str]:
        """Each in a few words."""
        found = [f"{name} was {old}, is {new}" for name, (old, new) in self.settings.items()]
        return (
            found + ["the phases differ"] * bool(self.phases) + ["the images differ"] * self.images
        )

    def details(self) -> str:
        """All of them, a line each."""
        width = max(map(len, self.settings), default=0)
        lines = [f"{name:<{width}}  {old} -> {new}" for name, (old, new) in self.settings.items()]
        return "\n".join([*lines, *self.phases, *["the images differ"] * self.images])

    def refusal(self, checkpoint: Path, asked: bool) -> ChangedRunError | None:
        """The error for going on from ``checkpoint``; None where that was ``asked`` for and can be
        done."""
        if asked and not self.lost:
            return None
        words = self.words()
        more = f" and {len(words) - _SHOWN} more, shown above" if len(words) > _SHOWN else ""
        message = f"{checkpoint} is of another run: {'; '.join(words[:_SHOWN])}{more}"
        remedy = "resume with the options that the run was started with, or start a new one"
        if self.lost:
            remedy += f"; --allow-changes cannot go on either: {'; '.join(self.lost)}"
        else:
            remedy += "; or go on with the changes: --allow-changes"
        return ChangedRunError(message, remedy, self.details())

    def record(self, step: int) -> dict[str, Any]:
        """What checkpoints and ``config.json`` keep of changes made after ``step`` updates."""
        settings = {name: list(pair) for name, pair in self.settings.items()}
        return {
            "step": step,
            "settings": settings,
            "phases": list(self.phases),
            "images": self.images,
        }


def compare(old: RunHeader, new: RunHeader, plan: Plan) -> Changes:
    """The changes from a checkpoint's run to one with ``plan``, whose header would be ``new``."""
    settings = dict(_settings(old.config, new.config))
    moved = old.plan != new.plan
    phases: tuple[str, ...] = ()
    if moved and old.phases != new.phases:
        lines = difflib.unified_diff(old.phases, new.phases, n=0, lineterm="")
        changed = [line for line in lines if line[:1] in "-+" and line[:3] not in ("---", "+++")]
        phases = tuple(f"{line[0]} {line[1:]}" for line in changed)
    elif moved and not settings:
        phases = ("the phases differ in what they come to",)
    policies = [header.auto.get("policy") for header in (old, new)]
    if policies[0] != policies[1] and not moved:
        settings["auto's policy"] = (policies[0], policies[1])
    lost = list(_lost(old, new, plan, settings)) if settings or moved else []
    return Changes(settings, phases, old.data != new.data, tuple(lost))


def phase_lines(plan: Plan) -> list[str]:
    """A plan's segments as lines to compare."""

    def encoder(compression: Compression) -> str:
        return f"drop {float(compression.drop):g} patch {compression.patch}"

    lines = []
    for s in plan.segments:
        unit = {"percent": "%"}.get(plan.unit, f" {plan.unit}")
        what = "auto" if s.auto else f"online {encoder(s.online)}"
        if s.target is not None and not s.auto:
            what += f", target {encoder(s.target)}"
        lines.append(f"{float(s.start):g} to {float(s.end):g}{unit}: {what}, batch {s.batch}")
    return lines


def _settings(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in dict.fromkeys((*new, *old)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _settings(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}", (a, b)


def _lost(
    old: RunHeader, new: RunHeader, plan: Plan, settings: Mapping[str, tuple[Any, Any]]
) -> Iterator[str]:
    for name, (_, value) in settings.items():
        top = name.partition(".")[0]
        if top in _OF_THE_NETWORK:
            yield f"another {name} is another network (its weights: --init-from)"
        elif top == "seed":
            yield "the seed made the network"
        elif top == "freeze_patch" and value:
            yield "the patch projection has been trained"
        elif top in ("choices", "auto's policy"):
            yield "`auto` phases have decided by the old ones"
    if old.plan == new.plan:
        return
    if old.auto or new.auto:
        yield "decisions of `auto` phases are of one plan"
    if old.step > plan.steps:
        yield f"the new plan ends after {plan.steps} steps, the checkpoint stands at {old.step}"
    elif not _stands(plan, old):
        yield (
            f"step {old.step} of the new plan is at epoch {plan.epochs_at(old.step):g}, where the "
            "checkpoint is not: keep the phases before it as they were"
        )


def place(plan: Plan, step: int) -> list[int]:
    """Where in the data a step stands, as headers have it: epoch and offset."""
    position = plan.position(step)
    return [position.epoch, position.offset]


def _stands(plan: Plan, old: RunHeader) -> bool:
    """Whether a checkpoint's step is where a plan has it, in the data."""
    try:
        epoch, offset = (int(part) for part in old.position)
    except (TypeError, ValueError):  # an older fastcl did not say
        return False
    was, batch = Position(epoch, offset), plan.segments[-1].batch
    if old.step < plan.steps:
        batch = plan.at(old.step).batch
    ends = (was, begin(was, batch, plan.images))
    return plan.position(old.step) in ends
