"""The plan: a schedule resolved to integers for one run.

A plan is a list of segments. Within a segment every shape is constant: batch, grids, tokens kept.
The same plan feeds the trainer, the estimator, the screen and the report, so what they show is what
is used. A plan is immutable and needs no torch.

Position in the data: the run walks through *epochs*, each a fresh permutation of the ``images``;
a step takes the next ``batch`` images of the permutation, and where fewer than ``batch`` are left
the rest is skipped and the next epoch begins. So any step's place in the data is a pure function of
the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal


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
class Position:
    """A place in the data: epoch, and how many of its images have been used."""

    epoch: int
    offset: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps ``first_step <= s < end_step`` of constant shape.

    ``start`` and ``end`` are the same range in the plan's unit; ``position`` is where in the data
    its first step stands; ``phase`` is the index of the phase in the schedule that it comes from.
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
