"""A run's folder: what is in it, and how it is opened, resumed and written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastcl_cli.checkpoint import is_finite
from fastcl_cli.errors import CheckpointError, NumericalError, UsageError
from fastcl_cli.files import write_text
from fastcl_cli.run_files import RunFiles

KEEP_CHECKPOINTS = 3


class RunFolder(RunFiles):
    """A run's folder as the run writes it."""

    def create(self, *, overwrite: bool) -> None:
        """Make the folder for a new run.

        Raises:
            UsageError: it holds something and ``overwrite`` is false, it holds something that no
                run wrote, or it cannot be written.
        """
        try:
            if self.path.is_dir() and any(self.path.iterdir()):
                self._clear(overwrite)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _clear(self, overwrite: bool) -> None:
        if not overwrite:
            raise UsageError(
                f"--out {self.path} is not empty",
                "continue the run in it with `--resume auto`, replace it with `--overwrite`, "
                "or name another folder",
            )
        own = {self.schedule, self.config, self.plan, self.metrics, self.checkpoints}
        own |= {self.events, self.backbone, self.decisions, self.taken, self.report}
        own |= {self.tensorboard, self.wandb}
        for entry in self.path.iterdir():
            if entry not in own:
                raise UsageError(
                    f"{entry} was not written by a run, so {self.path} is left as it is",
                    "name another folder",
                )
        shutil.rmtree(self.path)

    def checkpoint(self, step: int) -> Path:
        """The name of the checkpoint after ``step`` updates."""
        return self.checkpoints / f"step-{step:08d}.safetensors"

    def saved(self) -> list[Path]:
        """Checkpoints by step, oldest first."""
        return sorted(self.checkpoints.glob("step-*.safetensors"))

    def prune(self) -> None:
        """Remove all but the newest checkpoints."""
        for old in self.saved()[:-KEEP_CHECKPOINTS]:
            old.unlink()

    def write_description(
        self, schedule: str, config: Mapping[str, Any], plan: Mapping[str, Any]
    ) -> None:
        """Write what the run is: its schedule, its resolved configuration, its plan."""
        write_text(self.schedule, schedule)
        write_text(self.config, json.dumps(config, indent=1) + "\n")
        self.write_plan(plan)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write the plan, which the decisions of `auto` phases change."""
        write_text(self.plan, json.dumps(plan, indent=1) + "\n")

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        _append(self.metrics, metrics)

    def append_decision(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``decisions.jsonl``."""
        _append(self.decisions, record)

    def append_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Add one line to ``events.jsonl``: what happened to the run, and when. It is for people
        and for the screen; nothing in the run depends on it, and a resume keeps it."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        _append(self.events, {"event": kind, "time": now, **fields})

    def truncate(self, step: int) -> None:
        """Drop what a run that goes on after ``step`` updates writes again: the metrics lines after
        them, and the decisions that were made with these weights or later ones."""
        _truncate(self.metrics, step)
        _truncate(self.decisions, step - 1)

    def newest(self) -> Path | None:
        """The newest checkpoint, or None where there is none.

        Raises:
            CheckpointError: the folder is not that of a run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise CheckpointError(f"{self.path} is not a folder")
        saved = self.saved()
        return saved[-1] if saved else None


def refused_update(error: NumericalError, folder: RunFolder) -> NumericalError:
    """The error of an update that was refused, with the checkpoint that is left and a way on.

    `--resume` is none: the same options come to the same step again.
    """
    good = next((path for path in reversed(folder.saved()) if is_finite(path)), None)
    if good is None:
        return NumericalError(f"{error.message}; no checkpoint was written before", error.help)
    return NumericalError(
        f"{error.message}; the last good checkpoint is {good}",
        f"{error.help}, in a new run from its weights: `--init-from {good} --out NEW`",
    )


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _truncate(path: Path, last: int) -> None:
    """Keep the lines up to the ``step`` ``last``."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > last:
                break
        except (ValueError, KeyError, TypeError):
            break  # the line that was being written when the run was killed
        kept.append(line + "\n")
    write_text(path, "".join(kept))


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for a folder that cannot be written."""
    return UsageError(
        f"cannot write to {path}: {error.strerror or error}", "name another folder with --out"
    )
