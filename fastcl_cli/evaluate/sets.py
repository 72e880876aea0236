"""The two labelled sets of a probe. Imports no torch: what is misspelt is said at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastcl_cli.data.beton import Beton
from fastcl_cli.data.source import once, open_betons, open_judging, open_split
from fastcl_cli.errors import UsageError
from fastcl_cli.extras import available_cores
from fastcl_cli.files import read_json

_CONFIG_BYTES = 10_000_000


def data_of_run(checkpoint: Path) -> tuple[str | None, str | None]:
    """The ``data`` and the ``val`` of the run in whose folder ``checkpoint`` lies; None where there
    is none, or it names none."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        try:
            config = read_json(folder / "config.json", _CONFIG_BYTES)["config"]
            data, val = config["data"], config["val"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        known = [name if isinstance(name, str) else None for name in (data, val)]
        return known[0], known[1]
    return None, None


def open_probe_data(
    data: str | None,
    train: Path | None,
    val: str | None,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Beton, Beton]:
    """The training and the validation set.

    Args:
        data: a data set; its other part judges, where ``val`` names nothing else.
        train: in its place, a beton, or a pattern of several.
        val: what judges.
        announce, progress: as for `open_split`.

    Raises:
        UsageError: they do not name both sets.
        DataError: one is missing or damaged.
    """
    if data is not None and train is not None:
        raise UsageError("--data and --train both name what to fit on", "give one of them")
    if train is not None and val is None:
        raise UsageError("--train names what to fit on, and nothing what to judge on", "add --val")
    if train is not None:
        assert val is not None
        return open_betons(str(train)), open_betons(val)
    if data is None:
        raise UsageError(
            "probe needs labelled data",
            "give --data with a set by name or a folder with train/ and val/, "
            "or both --train and --val with a beton each",
        )
    announce, workers = once(announce), available_cores()
    training = open_split(data, "train", announce=announce, workers=workers, progress=progress)
    if val is None:
        judging = open_split(data, "val", announce=announce, workers=workers, progress=progress)
    else:
        judging = open_judging(
            val, training.classes, announce=announce, workers=workers, progress=progress
        )
    return training, judging
