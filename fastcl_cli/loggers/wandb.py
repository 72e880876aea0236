"""Weights & Biases: one of its runs for each run, however often that is resumed.

``RUN/wandb/series.json`` keeps the id of its run and the last step that was sent; the rest of that
folder is W&B's. ``WANDB_MODE``, ``WANDB_PROJECT`` and its other variables count.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcl_cli.errors import UsageError
from fastcl_cli.events import RunStarted
from fastcl_cli.files import write_text
from fastcl_cli.loggers.logger import scalars, written
from fastcl_cli.run_files import RunFiles

PROJECT = "fastcl"
PATIENCE_S = 60
"""How long the end of a run may wait for the last figures to be sent; they are on disk as well."""


class WandB:
    """
    Raises:
        UsageError: nobody is logged in, and W&B is to be online.
    """

    name = "W&B"

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        self._online = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
        if self._online:
            try:
                wandb.login()
            except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
                raise UsageError(
                    f"W&B: {str(error).splitlines()[0]}", "wandb login, or set WANDB_MODE=offline"
                ) from error
        self._run: Any = None
        self._series = Path()
        self._id, self._last = "", 0

    def start(self, event: RunStarted) -> str:
        folder = RunFiles(event.folder).wandb
        folder.mkdir(exist_ok=True)
        self._series = folder / "series.json"
        self._id, self._last = _read(self._series)
        config = json.loads((event.folder / "config.json").read_text(encoding="utf-8"))
        # A screen may hold the terminal, and the code is no one's business.
        settings = {"console": "off", "silent": True, "disable_code": True, "disable_git": True}
        if "finish_timeout" in self._wandb.Settings.model_fields:
            settings["finish_timeout"] = PATIENCE_S
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            # Whole, for a process of its own writes there.
            dir=str(event.folder.absolute()),
            id=self._id,
            resume="allow",
            name=os.environ.get("WANDB_NAME", event.folder.name),
            config=config,
            allow_val_change=True,
            settings=self._wandb.Settings(**settings),
        )
        for line in written(event.folder, self._last, event.step):
            self.log(line)
        return str(self._run.url) if self._online else f"wandb sync {folder}/offline-run-*"

    def log(self, metrics: Mapping[str, Any]) -> None:
        step = metrics["step"]
        # A run that was killed after its last checkpoint repeats what it has sent.
        if step <= self._last:
            return
        self._run.log(scalars(metrics), step=step)
        self._last = step
        write_text(self._series, json.dumps({"id": self._id, "step": step}) + "\n")

    def finish(self, succeeded: bool) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if succeeded else 1)


def _read(path: Path) -> tuple[str, int]:
    """The id of W&B's run and the last step sent, or a new id."""
    try:
        series = json.loads(path.read_text(encoding="utf-8"))
        return str(series["id"]), int(series["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return uuid.uuid4().hex[:8], 0
