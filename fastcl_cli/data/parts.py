"""What a path or a name stands for: a data set's training and validation part, listed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from fastcl_cli.data.builtin import BUILTIN, digits
from fastcl_cli.data.images import Folder, ImageSet, list_folder
from fastcl_cli.data.torchvision_sets import open_set
from fastcl_cli.data.torchvision_table import SETS
from fastcl_cli.errors import DataError
from fastcl_cli.files import cache_folder

Split = Literal["train", "val"]
BOTH: tuple[Split, Split] = ("train", "val")
_HELD_OUT = 5
"""One image in five validates where a labelled set comes alone."""


def is_name(data: str) -> bool:
    """Whether ``data`` names a built-in set or one of torchvision's; a path wins over a name."""
    return (data in BUILTIN or data in SETS) and not Path(data).exists()


def splits_of(data: str) -> tuple[Split, ...]:
    """The parts that a folder or a named set comes in; none for a folder without such subfolders.

    Raises:
        DataError: there is no such file or folder, and no such name.
    """
    root = Path(data)
    if root.is_dir():
        return _splits_in(root)
    if root.exists():
        return ()
    if data in BUILTIN:
        return BOTH
    if data in SETS:
        return BOTH if SETS[data].labelled else ("train",)
    raise unknown(data)


def _splits_in(root: Path) -> tuple[Split, ...]:
    try:
        below = {path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."}
    except OSError as error:
        raise DataError(f"{root}: cannot be read: {error.strerror}") from error
    if {"train", "val"} <= below:
        return BOTH
    if {"train", "test"} <= below:
        raise DataError(
            f"{root}: has train and test folders, but no val", f"name {root / 'test'} val"
        )
    return ("train",) if below == {"train"} else ()


def unknown(data: str) -> DataError:
    """The error for what is neither a path nor a name, with the nearest name or path."""
    names = {name.lower(): name for name in (*BUILTIN, *SETS)}
    near = [names[name] for name in difflib.get_close_matches(data.lower(), names, n=1)]
    near = near or _near_paths(Path(data))
    guess = f"did you mean {near[0]}? " if near else ""
    return DataError(
        f"{data}: no such file or folder, and no data set of that name",
        f"{guess}name a beton, an image folder, or one of {', '.join(names.values())}",
    )


def _near_paths(path: Path) -> list[str]:
    """The path beside a misspelt one whose name is most like it, or nothing."""
    try:
        beside = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
    found = difflib.get_close_matches(path.name, beside, n=1)
    return [str(path.with_name(name)) for name in found]


def named_part(
    name: str, split: Split, root: Path | None, announce: Callable[[str], None]
) -> ImageSet:
    """One part of a built-in set, or of torchvision's, looked for and downloaded below ``root``.

    A set without parts is split 80/20 within each class.

    Raises:
        DataError: it cannot be had, or has no such part.
        MissingLibraryError: the library that has it is not installed.
    """
    if name in BUILTIN:
        return digits(split)
    if not SETS[name].labelled and split == "val":
        raise DataError(
            f"{name}: has no labels, so it trains only",
            f"for validation, name a labelled set: {SETS[name].kind}",
        )
    part = open_set(name, split, root or cache_folder() / "torchvision", announce)
    if SETS[name].val or not SETS[name].labelled:
        return part
    assert isinstance(part, Folder)
    return _held_out(part, split, f"{name} has no parts", announce)


def folder_part(root: Path, split: Split, announce: Callable[[str], None]) -> Folder:
    """The files of one part of an image folder, with the training set's class numbers.

    ``train`` and ``val`` subfolders are kept apart; a labelled folder without them is split 80/20
    within each class; an unlabelled one trains only.

    Raises:
        DataError: there is no such part, or ``val`` has classes that ``train`` lacks.
    """
    splits = splits_of(str(root))
    if splits:
        if split not in splits:
            raise DataError(f"{root}: has train but no val", f"make {root / 'val'}")
        train = list_folder(root / "train")
        if split == "train":
            return train
        val = list_folder(root / "val", train.classes)
        if (train.labels is None) != (val.labels is None):
            flat, other = ("train", "val") if train.labels is None else ("val", "train")
            raise DataError(
                f"{root / flat}: has no class folders, but {other} has them",
                "put the images of both into the folder of their class, or of neither",
            )
        return val
    folder = list_folder(root)
    if folder.labels is None:
        if split == "val":
            raise DataError(
                f"{root}: has no labels, so it trains only",
                "for validation, put each class into its own subfolder",
            )
        return folder
    return _held_out(folder, split, f"{root} has no train and val", announce)


def _held_out(folder: Folder, split: Split, why: str, announce: Callable[[str], None]) -> Folder:
    """One part of a labelled set that comes alone, and a line that says so: the same for both."""
    chosen = _stratified(folder, split)
    rest = len(folder.files) - len(chosen)
    train, val = (len(chosen), rest) if split == "train" else (rest, len(chosen))
    share = "a fifth of each class, rounded down"
    announce(f"{why}: {train:,} images train, {val:,} ({share}) validate")
    return folder.select(chosen)


def _stratified(folder: Folder, split: Split) -> list[int]:
    """Rows of one part: a fifth of every class (rounded down, in random order) validates."""
    assert folder.labels is not None
    labels = np.asarray(folder.labels)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shuffled = np.random.default_rng([0, int(label)]).permutation(rows)
        held_out[shuffled[: len(rows) // _HELD_OUT]] = True
    rows = np.flatnonzero(held_out if split == "val" else ~held_out)
    if not len(rows):
        raise DataError(
            f"{folder.root}: has fewer than {_HELD_OUT} images in every class: nothing to hold out",
            "make train and val folders",
        )
    return [int(row) for row in rows]
