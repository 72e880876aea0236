"""Opening the data that a run or a probe names, packed once where it is not a beton yet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.data.encode import MAX_SIDE, QUALITY, Settings
from fastcl_cli.data.images import Folder, list_folder
from fastcl_cli.data.pack import PackReport, Part, pack_parts
from fastcl_cli.data.parts import (
    Split,
    folder_part,
    is_name,
    named_part,
    splits_of,
    unknown,
)
from fastcl_cli.data.shards import open_shards, shard_files
from fastcl_cli.errors import DataError
from fastcl_cli.files import cache_folder, is_pattern

_CACHE_FORMAT = 2
"""Part of every cache key: raise it when packing the same images gives another file."""


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
        data: a beton, or a pattern of several betons' names (training only), an image folder
            (see `folder_part`), or the name of a built-in or torchvision set (see `named_part`);
            a path wins over a name.
        cache: where to keep what is packed, and downloaded; `cache_folder` by default.
        announce: called with a line whenever something is packed or split.
        workers: processes that read images.
        progress: called with images packed and their total.

    Raises:
        DataError: it does not exist, has no such part, or cannot be read.
    """
    need_there(data)
    path = Path(data)
    cache = cache_folder() if cache is None else cache
    if names_betons(data):
        if split == "val":
            raise DataError(
                f"{data}: is one file, or several, which train; validation needs another",
                "name a folder with train/ and val/, or both files: --train A.beton --val B.beton",
            )
        return open_betons(data)
    settings = Settings(workers=workers)
    if path.is_dir():
        folder = folder_part(path, split, announce)
        return _open_folder(path, split, folder, settings, cache, announce, progress)
    if is_name(data):

        def pack_named(out: Path) -> PackReport:
            images = named_part(data, split, cache / "torchvision", announce)
            part = Part(images, out, f"{data}/{split}")
            return pack_parts([part], settings, progress, announce)[0]

        return _open_cached(cache, f"{data}-{split}", _settings_key(), pack_named, announce)
    raise unknown(data)


def open_judging(
    data: str,
    classes: Sequence[str] | None,
    *,
    announce: Callable[[str], None],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Beton:
    """Open labelled images that nothing trains on: betons, all of a folder with one subfolder per
    class, or the validation part of a folder or a named set that has one.

    Args:
        classes: the training set's, which a folder's labels are numbered by; None: its own.
        announce, workers, progress: as for `open_split`.

    Raises:
        DataError: as `open_split`, or a folder has a class that is not among ``classes``.
    """
    path = Path(data)
    if names_betons(data):
        return open_betons(data)
    if path.is_dir() and not splits_of(data):
        folder, settings = list_folder(path, classes), Settings(workers=workers)
        return _open_folder(path, "all", folder, settings, cache_folder(), announce, progress)
    return open_split(data, "val", announce=announce, workers=workers, progress=progress)


def once(announce: Callable[[str], None]) -> Callable[[str], None]:
    """What calls ``announce`` with each line only the first time: both parts of a set that is split
    say so."""
    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            announce(line)

    return say


def need_there(data: str) -> None:
    """Make sure that there is something of that name; what is in it is not looked at.

    Raises:
        DataError: there is no such file or folder, and no set of that name, or none can be seen.
    """
    try:
        if is_pattern(data):
            shard_files(data)
        elif not (Path(data).exists() or is_name(data)):
            raise unknown(data)
    except OSError as error:
        raise DataError(f"{data}: cannot be read: {error.strerror}") from None


def names_betons(data: str) -> bool:
    """Whether it is the path of a file, or a pattern of several."""
    return Path(data).is_file() or is_pattern(data)


def open_betons(data: str) -> Beton:
    """Open a beton, or all that a pattern names.

    Raises:
        DataError: as `open_beton` and `open_shards` have it.
    """
    return open_shards(data) if is_pattern(data) else open_beton(data)


def _open_folder(
    path: Path,
    part: str,
    folder: Folder,
    settings: Settings,
    cache: Path,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
) -> Beton:
    def pack_it(out: Path) -> PackReport:
        return pack_parts([Part(folder, out, str(path))], settings, progress, announce)[0]

    return _open_cached(cache, f"{path.resolve().name}-{part}", _key(folder), pack_it, announce)


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
