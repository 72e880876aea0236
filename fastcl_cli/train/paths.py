"""What paths alone say against a run. Imports no torch, which takes seconds to load: what is
misspelt is said at once. A session looks again, and at what is in the files."""

from __future__ import annotations

import os
from errno import EACCES, ENOTDIR
from pathlib import Path

from fastcl_cli.config import RunConfig
from fastcl_cli.data.source import need_there
from fastcl_cli.errors import ConfigError
from fastcl_cli.run_files import RunFiles, need_checkpoint, unwritable


def data_of(config: RunConfig) -> str:
    """What a run trains on.

    Raises:
        ConfigError: the schedule names nothing.
    """
    if config.data is None:
        raise ConfigError(
            "the schedule names no data", 'add `data "imagenet.beton";` or pass --data'
        )
    return config.data


def need_data(config: RunConfig) -> None:
    """Make sure that there is something of the name of what a run trains and is judged on.

    Raises:
        ConfigError, DataError: there is not.
    """
    need_there(data_of(config))
    if config.knn is not None and config.val is not None:
        need_there(config.val)


def need_paths(
    config: RunConfig, out: Path, *, resume: str, init_from: Path | None, fresh: bool
) -> None:
    """Make sure that what a run begins with is there, and that it can write.

    Args:
        fresh: it replaces nothing in ``out``.

    Raises:
        FastclError: naming the first path that is wrong.
    """
    need_data(config)
    for checkpoint in (None if resume in ("auto", "never") else Path(resume), init_from):
        if checkpoint is not None:
            need_checkpoint(checkpoint)
    _need_out(out, empty=fresh)


def _need_out(out: Path, *, empty: bool) -> None:
    """Refuse a folder that cannot be written or that a link leads out of, or with ``empty`` one
    that holds something."""
    try:
        if empty:
            RunFiles(out).need_empty()
        RunFiles(out).need_inside()
        nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
    except OSError as error:
        raise unwritable(out, error) from None
