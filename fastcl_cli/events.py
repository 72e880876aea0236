"""What the trainer tells the screen.

The trainer emits these and knows nothing of who listens; a screen draws from them alone. All are
plain values, so a screen needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fastcl_cli.plan import Plan


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Training is about to begin at ``step`` (above 0 for a resumed run)."""

    title: str
    folder: Path
    plan: Plan
    step: int
    stop_step: int
    device: str
    precision: str
    parameters: int
    images: int


@dataclass(frozen=True, slots=True)
class Packing:
    """Images are being packed before the run: so many of so many are done."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StepLogged:
    """One line of ``metrics.jsonl``."""

    metrics: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measuring:
    """Gradients are being measured for a decision: so many of so many are taken."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Decided:
    """An `auto` phase goes on with ``plan`` from ``step`` on; ``setting`` is what it chose, and
    ``why`` is empty where it stays with what it had."""

    step: int
    setting: str
    why: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know while the run goes on."""

    text: str


@dataclass(frozen=True, slots=True)
class RunFinished:
    """Training ended after ``step`` of the schedule's ``steps``; ``load_line`` is the Python line
    that loads the backbone into timm, or empty where no backbone was written."""

    step: int
    steps: int
    seconds: float
    folder: Path
    load_line: str


Event: TypeAlias = (
    Packing | RunStarted | StepLogged | Measuring | Decided | CheckpointSaved | Notice | RunFinished
)
Emit: TypeAlias = Callable[[Event], None]
