"""What a logger is, and how a metrics line becomes named numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fastcl_cli.events import RunStarted


class Logger(Protocol):
    """Writes metrics lines elsewhere; any exception ends it, never the run."""

    name: str

    def start(self, event: RunStarted) -> str:
        """Open the series of a run, or go on with it; returns where it can be seen, or nothing."""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Add one metrics line."""

    def finish(self, succeeded: bool) -> None:
        """Close the series."""


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line, nested names joined by ``/``; what is null is left out."""
    return dict(_flat("", metrics))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{prefix}/{key}" if prefix else str(key), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flat(f"{prefix}/{index}", item)
    elif isinstance(value, (int, float)):
        yield prefix, value


def written(folder: Path, after: int, until: int) -> Iterator[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl`` after one step and up to another: what a logger missed
    that was not there all the time."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        line: dict[str, Any] = json.loads(text)
        if after < line["step"] <= until:
            yield line
