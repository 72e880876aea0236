"""Several betons as one data set: ``data "train-*.beton"``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.errors import DataError
from fastcl_cli.files import matching


def open_shards(pattern: str) -> Beton:
    """Open the files whose names match a pattern, in the order of their names.

    Raises:
        DataError: there is none, one cannot be read, or their classes are not the same.
    """
    return joined(pattern, [open_beton(path) for path in shard_files(pattern)])


def shard_files(pattern: str) -> list[Path]:
    """The files whose names match a pattern, by name.

    Raises:
        DataError: there is none, or it is no pattern.
    """
    try:
        paths = matching(pattern)
    except ValueError as error:
        raise DataError(f"{pattern}: is no pattern of file names: {error}") from None
    if not paths:
        raise DataError(f"{pattern}: no file has such a name", "compare with `ls`")
    return paths


def joined(pattern: str, betons: Sequence[Beton]) -> Beton:
    """Several files as one data set, one after the other.

    Raises:
        DataError: their classes are not the same.
    """
    first = betons[0]
    if len(betons) == 1:
        return first
    for other in betons[1:]:
        if other.classes != first.classes:
            raise DataError(
                f"{other.path}: its classes are not those of {first.path}",
                "pack one folder, or folders with the same classes",
            )
    starts = [0, *accumulate(beton.images for beton in betons)]
    labels = [beton.labels for beton in betons if beton.labels is not None]
    digest = hashlib.blake2b(digest_size=16)
    for beton in betons:
        digest.update(bytes.fromhex(beton.identity))
    return Beton(
        path=Path(pattern),
        images=starts[-1],
        heights=np.concatenate([beton.heights for beton in betons]),
        widths=np.concatenate([beton.widths for beton in betons]),
        labels=np.concatenate(labels) if len(labels) == len(betons) else None,
        classes=first.classes,
        identity=digest.hexdigest(),
        shards=tuple(
            replace(beton.shards[0], first=start)
            for beton, start in zip(betons, starts, strict=False)
        ),
    )
