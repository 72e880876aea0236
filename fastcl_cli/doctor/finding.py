"""What the doctor says of one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``warning``: training works, but slower or not for long; ``problem``: something that it needs
    is missing. ``help`` is the command, or the step, that mends it; empty where it is ok."""

    name: str
    status: Status
    value: str
    help: str = ""


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
