"""Opening the data that a run or a probe names, packed once where it is not a beton yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.data.builtin import BUILTIN
from fastcl_cli.data.images import Folder, list_folder
from fastcl_cli.data.pack import (
    MAX_SIDE,
    QUALITY,
    PackReport,
    Split,
    has_splits,
    pack,
    pack_folder,
)
from fastcl_cli.errors import DataError
from fastcl_cli.files import cache_folder

_CACHE_FORMAT = 1
"""Part of every cache key: raise it when packing the same images gives another file."""
_HELD_OUT = 5
"""One image in five validates where a labelled set comes alone."""


def open_split(
    data: str,
    split: Split,
    *,
    cache: Path | None = None,
    announce: Callable[[str], None],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Beton:
    """Open the training or the validation part of a data set.

    Args:
        data: a beton (training only), an image folder, or a built-in name; a path wins over a
            name. A folder's ``train`` and ``val`` subfolders are kept apart; a labelled folder
            without them is split 80/20 within each class; an unlabelled one trains only.
        cache: where to keep what is packed; `files.cache_folder` by default.
        announce: called with a line whenever something is packed or split.
        workers: processes that read images.
        progress: called with images packed and their total.

    Raises:
        DataError: it does not exist, has no such part, or cannot be read.
    """
    path = Path(data)
    cache = cache_folder() if cache is None else cache
    if path.is_file():
        if split == "val":
            raise DataError(
                f"{data}: is one file, which trains; validation needs another",
                "name a folder with train/ and val/, or both files: --train A.beton --val B.beton",
            )
        return open_beton(path)
    if path.is_dir():
        folder = _folder(path, split, announce)

        def pack_it(out: Path) -> PackReport:
            return pack_folder(
                folder, out, source=str(path), workers=workers, progress=progress, announce=announce
            )

        return _open_cached(
            cache, f"{path.resolve().name}-{split}", _key(folder), pack_it, announce
        )
    if data in BUILTIN:

        def pack_builtin(out: Path) -> PackReport:
            announce(f"packing {data} ({split}) into {out}")
            return pack(data, out, split=split, progress=progress)

        return _open_cached(cache, f"{data}-{split}", _settings_key(), pack_builtin, announce)
    raise DataError(
        f"{data}: no such file or folder",
        f"name a beton, an image folder, or a built-in data set: {', '.join(BUILTIN)}",
    )


def _folder(root: Path, split: Split, announce: Callable[[str], None]) -> Folder:
    """The files of one part of an image folder, with the training set's class numbers."""
    if has_splits(root):
        train = list_folder(root / "train")
        return train if split == "train" else list_folder(root / "val", train.classes)
    if (root / "train").is_dir() and not any(
        child.is_dir() for child in root.iterdir() if child.name != "train"
    ):
        if split == "val":
            raise DataError(f"{root}: has train but no val", f"make {root / 'val'}")
        return list_folder(root / "train")
    folder = list_folder(root)
    if folder.labels is None:
        if split == "val":
            raise DataError(
                f"{root}: has no labels, so it trains only",
                "for validation, put each class into its own subfolder",
            )
        return folder
    chosen = _stratified(folder, split)
    announce(
        f"{root}: has no train and val folders: split 80/20 within each class; "
        f"{len(chosen):,} of {len(folder.files):,} images are for {split}"
    )
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


def _settings_key() -> hashlib.blake2b:
    return hashlib.blake2b(repr((_CACHE_FORMAT, MAX_SIDE, QUALITY)).encode())


def _key(folder: Folder) -> hashlib.blake2b:
    """A digest of which files there are, with their sizes, times and classes."""
    digest = _settings_key()
    digest.update(repr(folder.classes).encode())
    for row, name in enumerate(folder.files):
        try:
            status = (folder.root / name).stat()
        except OSError as error:
            raise DataError(f"{folder.root / name}: cannot be read: {error.strerror}") from error
        label = None if folder.labels is None else folder.labels[row]
        digest.update(repr((name, label, status.st_size, status.st_mtime_ns)).encode())
    return digest


def _open_cached(
    cache: Path,
    name: str,
    key: hashlib.blake2b,
    make: Callable[[Path], PackReport],
    announce: Callable[[str], None],
) -> Beton:
    """Open the packed file of that key; pack it first where there is none, or a damaged one.

    Two processes that pack at once write the same bytes, and each renames a whole file.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{cache}: cannot be made: {error.strerror}", "set FASTCL_CACHE to a folder to write to"
        ) from error
    out = cache / f"{name}-{key.hexdigest()[:16]}.beton"
    if out.exists():
        try:
            return open_beton(out)
        except DataError as error:
            announce(f"{error.message}: packing it again")
    report = make(out)
    if report.skipped:
        first = report.skipped[0]
        more = ", ..." if len(report.skipped) > 1 else ""
        announce(
            f"{len(report.skipped):,} unreadable images left out: {first.path} {first.reason}{more}"
        )
    return open_beton(out)
