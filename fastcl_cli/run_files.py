"""The names of the files in a run's folder, for who writes them and who reads them."""

from __future__ import annotations

import errno
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastcl_cli import __version__
from fastcl_cli.errors import CheckpointError, UsageError
from fastcl_cli.files import held_by

_LENGTH = 8
"""Bytes before the header of a safetensors file, which say how long it is."""

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
        self.lock = path / ".lock"
        """There while a process is at work in the folder."""

    @property
    def own(self) -> frozenset[Path]:
        """All that runs write there, but for the lock."""
        described = {self.schedule, self.config, self.plan, self.metrics, self.events}
        trained = {self.checkpoints, self.backbone, self.decisions, self.taken}
        return frozenset(described | trained | {self.report, self.tensorboard, self.wandb})

    def entries(self) -> list[Path]:
        """All that is in the folder, but for the lock."""
        return [entry for entry in self.path.iterdir() if entry != self.lock]

    def need_empty(self) -> None:
        """Make sure that a new run would replace nothing.

        Raises:
            UsageError: the folder holds something.
            OSError: it cannot be read.
        """
        if self.path.is_dir() and self.entries():
            if (holder := held_by(self.lock)) is not None:
                raise self.in_use(holder)
            raise UsageError(
                f"--out {self.path} is not empty",
                "continue the run in it with `--resume auto`, replace it with `--overwrite`, "
                "or name another folder",
            )

    def in_use(self, holder: str) -> UsageError:
        """The error for a folder in which ``holder`` is at work."""
        return UsageError(
            f"--out {self.path} is in use by {holder or 'another process'}",
            "wait until it ends, or name another folder",
        )

    def need_inside(self) -> None:
        """Make sure that no link leads out of the folder, through which a run would write or
        remove. The folder itself may be a link.

        Raises:
            UsageError: one does.
        """
        root = self.path.resolve()
        for entry in (*self.own, self.lock, *self.checkpoints.glob("*")):
            if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                raise UsageError(
                    f"{entry} is a link to {entry.readlink()}: no path leaves the run's folder",
                    "put a file or a folder in its place; to keep a run elsewhere, make all of "
                    f"{self.path} a link",
                )


def need_checkpoint(path: Path) -> None:
    """Make sure that there is a file to begin with, and no other kind of file.

    Raises:
        CheckpointError: there is not, or it cannot be read, or it does not begin as safetensors
            do: with the length of a JSON object, 8 bytes, and its ``{``.
    """
    reason = "no such file"
    try:
        if path.is_dir():
            own = RunFiles(path).backbone
            file = own if own.exists() else "a file in it"
            raise CheckpointError(f"{path}: is a folder", f"name {file}")
        if path.is_file():
            with path.open("rb") as given:
                start = given.read(_LENGTH + 1)
            if len(start) <= _LENGTH or start[_LENGTH:] == b"{":
                return  # or it is what is left of one, which is for who reads it to say
            reason = "is not a safetensors file"
        elif path.exists():
            reason = "is not a file"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise CheckpointError(f"{path}: {reason}", "name a backbone or a checkpoint")


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error for a run's folder that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return UsageError(
        f"cannot write to {path}: {error.strerror or error}",
        f"{'make room there, or ' if full else ''}name another folder with --out",
    )


def library_versions() -> dict[str, str]:
    """Versions of fastcl, Python and the libraries that train, without importing them."""
    found = {"fastcl": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
