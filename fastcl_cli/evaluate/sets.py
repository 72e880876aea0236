"""The two labelled sets of a probe. Imports no torch: what is misspelt is said at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastcl_cli.data.beton import Beton
from fastcl_cli.data.parts import BOTH
from fastcl_cli.data.source import once, open_betons, open_split
from fastcl_cli.errors import UsageError
from fastcl_cli.extras import available_cores
from fastcl_cli.files import read_json

_CONFIG_BYTES = 10_000_000


def data_of_run(checkpoint: Path) -> str | None:
    """The data that a run was trained with, if ``checkpoint`` lies in its folder."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        try:
            described = read_json(folder / "config.json", _CONFIG_BYTES)
            data = described["config"]["data"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return data if isinstance(data, str) else None
    return None


def open_probe_data(
    data: str | None,
    train: Path | None,
    val: Path | None,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Beton, Beton]:
    """The training and the validation set: both parts of one data set, or two betons.

    Raises:
        UsageError: neither ``data`` alone nor both betons were given.
        DataError: a part is missing or damaged.
    """
    if data is not None and train is None and val is None:
        announce = once(announce)
        parts = [
            open_split(data, split, announce=announce, workers=available_cores(), progress=progress)
            for split in BOTH
        ]
        return parts[0], parts[1]
    if data is None and train is not None and val is not None:
        return open_betons(str(train)), open_betons(str(val))
    raise UsageError(
        "probe needs labelled data",
        "give --data with a set by name or a folder with train/ and val/, "
        "or both --train and --val with a beton each",
    )
