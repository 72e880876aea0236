"""What a user asks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastcl_cli.estimate.clocks import Clock
from fastcl_cli.plan import Plan
from fastcl_cli.schedule import Loaded
from fastcl_cli.train.auto import Neighbours, Policy


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a user asked of `run`; None leaves a choice to the run."""

    schedule: Loaded
    out: Path
    seed: int = 0
    resume: str = "never"
    init_from: Path | None = None
    overwrite: bool = False
    allow_changes: bool = False
    max_steps: int | None = None
    save_every: int | None = None
    log_every: int | None = None
    shard: bool = False
    """Whether each process holds its part of the weights and of the optimizer's state only."""
    arguments: tuple[str, ...] = ()
    """Of the command line that asked for it, for the record."""
    policy: Callable[[Plan], Policy] = Neighbours.of
    """How `auto` phases decide, for a plan."""
    clock: Clock | None = None
    """Tells κ of the settings of `auto` phases; None counts operations."""
