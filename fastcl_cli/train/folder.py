"""A run's folder: what is in it, and how it is opened, resumed and written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastcl_cli.checkpoint import check_whole, is_finite
from fastcl_cli.errors import CheckpointError, NumericalError, UsageError
from fastcl_cli.files import LockedError, locked, remove_parts, sync, write_text
from fastcl_cli.run_files import RunFiles, unwritable

KEEP_CHECKPOINTS = 3
_STEP = re.compile(r"step-(\d{8,10})\.safetensors")


class RunFolder(RunFiles):
    """A run's folder as the run writes it."""

    @contextmanager
    def held(self, *, empty: bool, announce: Callable[[str], None]) -> Iterator[None]:
        """Keep every other run out of the folder, which is made where there is none, and remove
        what a killed one left half written.

        Args:
            empty: refuse a folder that holds something.

        Raises:
            UsageError: it holds something, another process is at work in it, a link in it leads
                out of it, or it cannot be written.
        """
        try:
            if empty:
                self.need_empty()
            new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self.need_inside()
            lock = locked(self.lock)
            if not lock.__enter__():
                announce(f"{self.path} cannot be locked: see that no other run writes to it")
            for folder in (self.path, self.checkpoints):
                remove_parts(folder)
        except LockedError as error:
            raise self.in_use(str(error)) from None
        except OSError as error:
            raise unwritable(self.path, error) from error
        try:
            yield
        finally:
            lock.__exit__(None, None, None)
            if new:
                with suppress(OSError):
                    self.path.rmdir()  # only where nothing was written

    def create(self) -> None:
        """Make the folder ready for a new run; an old one in it is gone.

        Raises:
            UsageError: it holds something that no run wrote, or it cannot be written.
        """
        try:
            self._clear()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _clear(self) -> None:
        entries = self.entries()
        for entry in entries:
            if entry not in self.own:
                raise UsageError(
                    f"{entry} was not written by a run, so {self.path} is left as it is",
                    "name another folder",
                )
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def checkpoint(self, step: int) -> Path:
        """The name of the checkpoint after ``step`` updates."""
        return self.checkpoints / f"step-{step:08d}.safetensors"

    def saved(self) -> list[Path]:
        """Checkpoints by step, oldest first."""
        found = self.checkpoints.glob("step-*.safetensors")
        return sorted((path for path in found if _STEP.fullmatch(path.name)), key=self.step_of)

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """The number of updates that a checkpoint's name says."""
        name = _STEP.fullmatch(checkpoint.name)
        assert name is not None
        return int(name[1])

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

    def rewind(self, step: int) -> None:
        """Drop what a run that goes on after ``step`` updates writes again: later checkpoints, the
        metrics lines after them, and the decisions made with these weights or later ones.

        Raises:
            UsageError: the folder cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for newer in self.saved():
                if newer > self.checkpoint(step):
                    newer.unlink()
            _truncate(self.metrics, step)
            _truncate(self.decisions, step - 1)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def sync_metrics(self) -> None:
        """Force the metrics to the disk: a checkpoint must not be there before their lines are."""
        if self.metrics.exists():
            sync(self.metrics)

    def newest_whole(self, announce: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is as it was written, or None where there is none at all;
        what is wrong with newer ones is announced.

        Raises:
            CheckpointError: all are damaged.
            UsageError: there is none, but a backbone: the run is over.
        """
        faults = []
        for path in reversed(self.saved()):
            try:
                check_whole(path)
            except CheckpointError as error:
                faults.append(error)
                continue
            for fault in faults:
                announce(f"{fault.message}: left aside for {path.name}")
            return path
        if faults:
            raise CheckpointError(
                f"{faults[0].message}; none of the {len(faults)} checkpoints is whole",
                "start again with `--overwrite`, or in another folder",
            )
        if self.backbone.exists():
            raise UsageError(
                f"{self.path} holds a backbone and no checkpoint to go on from",
                "train it again with `--overwrite`, or name another folder",
            )
        return None


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
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if not json.loads(line)["step"] <= last:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break  # the line that was being written when the run was killed
        kept.append(line + "\n")
    write_text(path, "".join(kept))
