"""The names of the files in a run's folder, for who writes them and who reads them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastcl_cli import __version__

LIBRARIES = ("torch", "timm", "ffcv")


class RunFiles:
    """``DIR/{schedule.fcs, config.json, plan.json, metrics.jsonl, events.jsonl, checkpoints/,
    backbone.safetensors}``, of a run with `auto` phases ``decisions.jsonl`` and
    ``taken.fcs``; where `fastcl report` was asked, ``report.html``; and what loggers keep,
    ``tensorboard/`` and ``wandb/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.schedule = path / "schedule.fcs"
        self.config = path / "config.json"
        self.plan = path / "plan.json"
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.checkpoints = path / "checkpoints"
        self.backbone = path / "backbone.safetensors"
        self.decisions = path / "decisions.jsonl"
        self.taken = path / "taken.fcs"
        self.report = path / "report.html"
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb"


def library_versions() -> dict[str, str]:
    """Versions of fastcl, Python and the libraries that train, without importing them."""
    found = {"fastcl": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
