"""Formatting of schedule files in place."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from fastcl_cli.errors import ConfigError
from fastcl_cli.schedule.diagnostics import Collector, TooManyFaultsError
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.load import ScheduleError, read_source
from fastcl_cli.schedule.parser import parse
from fastcl_cli.schedule.pieces import decode


def formatted(name: str, data: bytes) -> str:
    """The canonical text of a schedule's bytes. What it says is not checked, only its form.

    Raises:
        ScheduleError: a statement cannot be read.
    """
    faults = Collector()
    try:
        source = decode(name, data, faults)
        if not faults.found:
            tree = parse(source, faults)
            if not faults.found:
                return format_schedule(tree)
    except TooManyFaultsError:
        pass
    raise ScheduleError(name, faults.sorted())


def rewrite(name: str, check: bool) -> bool:
    """Format one file in place (``-``: stdin to stdout), or with ``check`` only compare.

    Returns:
        Whether the file's text differs from its canonical form.

    Raises:
        ConfigError: it is not a file that can be read and written, or cannot be parsed.
    """
    if name != "-" and not Path(name).is_file():
        help = "fmt takes paths, not the names of built-in schedules"
        raise ConfigError(f"{name}: no such file", help)
    shown, data = read_source(name)
    text = formatted(shown, data)
    changed = text.encode() != data
    if name == "-" and not check:
        sys.stdout.write(text)
        return False
    if changed and not check:
        _replace(Path(name), text)
    return changed


def _replace(path: Path, text: str) -> None:
    """Write to a temporary file beside it first, so that no crash leaves half a schedule."""
    path = path.resolve()
    temporary = None
    try:
        mode = path.stat().st_mode
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
