"""Files that travel with fastcl: the grammar and the built-in schedules.

In a checkout they stand at the top of the repository (``grammar/``, ``schedules/``), where they are
read and edited; in an installed wheel they stand inside the package.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastcl_cli.errors import ConfigError
from fastcl_cli.schedule.diagnostics import nearest

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def grammar_text() -> str:
    """The text of ``grammar/fcs.lark``."""
    return (_folder("grammar") / "fcs.lark").read_text(encoding="utf-8")


def builtin_schedules() -> dict[str, Path]:
    """Name and file of every built-in schedule, sorted by name."""
    return {path.stem: path for path in sorted(_folder("schedules").glob("*.fcs"))}


def find(name: str | Path) -> Path:
    """The file that ``name`` stands for: a path, else a built-in schedule's name (also where a
    folder, of a run perhaps, is called so).

    Raises:
        ConfigError: where it is neither, or a folder.
    """
    path = Path(name)
    builtin = builtin_schedules()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{str(name)[:80]}…: cannot be read: {reason}") from None
    if exists and not is_folder:
        return path
    if str(name) in builtin:
        return builtin[str(name)]
    if is_folder:
        raise ConfigError(f"{name}: is a folder, not a schedule file")
    match = nearest(path.stem, builtin)
    help = f"built in are: {', '.join(builtin)}"
    if match is not None:
        help = f"did you mean the built-in schedule `{match}`?"
    raise ConfigError(f"{name}: no such file, and no built-in schedule", help)
