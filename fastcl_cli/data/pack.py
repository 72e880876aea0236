"""From images to a beton: decoded, made plain RGB, encoded again, checked, then renamed.

Nothing but a finished file ever bears the final name, and a failure or an interrupt leaves nothing
behind. Images are read by processes of their own, so one that crashes its decoder ends in an
error. Equal sources give equal bytes, whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fastcl_cli.data.beton import open_beton
from fastcl_cli.data.encode import Settings, encode, encode_all, interrupts_held
from fastcl_cli.data.images import ImageSet, list_folder
from fastcl_cli.data.parts import Split, folder_part, is_name, named_part, splits_of
from fastcl_cli.data.sidecar import sidecar_path, write_sidecar
from fastcl_cli.data.torchvision_table import SETS
from fastcl_cli.data.writer import BetonWriter, page_size
from fastcl_cli.errors import DataError, UsageError
from fastcl_cli.files import sync

_SAMPLE = 24
"""Images encoded beforehand to foresee the size of the file."""
_SPARE_BYTES = 16 << 20

_Progress = Callable[[int, int], None]
_Announce = Callable[[str], None]


@dataclass(frozen=True)
class Skipped:
    """An image that is not in the file, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class PackReport:
    """What was written: the file, its images, classes and size in bytes, and what was left out."""

    path: Path
    images: int
    classes: tuple[str, ...] | None
    bytes: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Part:
    """Images, the file that they go to, and where they are from, for the sidecar."""

    images: ImageSet
    out: Path
    source: str


def pack(
    source: str | Path,
    out: str | Path,
    *,
    split: Split | None = None,
    root: Path | None = None,
    overwrite: bool = False,
    settings: Settings | None = None,
    progress: _Progress | None = None,
    announce: _Announce | None = None,
) -> tuple[PackReport, ...]:
    """Write a beton, and its JSON sidecar beside it; one for each part of what has two.

    Args:
        source: an image folder (one subfolder per class, or flat: no labels; or ``train`` and
            ``val`` with the same in each), or the name of a built-in or torchvision set.
        out: the file to write. Two parts go to the names that `part_path` makes of it, together or
            not at all.
        split: pack this part alone, to ``out`` itself.
        root: where a torchvision set lies, or is downloaded to; by default in the cache.
        overwrite: replace a file that is there, when the new one is complete.
        settings: how images are stored and read.
        progress: called with the images done and their total.
        announce: called with lines about the size to expect, downloads and splits.

    Raises:
        UsageError: the source has no such part, or takes no ``root``; or there is a file, and
            ``overwrite`` is false.
        DataError: there is no such source, no image can be read, one cannot and ``strict`` is
            set, a worker crashed, or there is no room or no permission to write.
        MissingLibraryError: the library that has a named set is not installed.
    """
    source, out, announce = str(source), Path(out), announce or (lambda line: None)
    splits = splits_of(source)
    if split is not None and split not in splits:
        has = f"has no {split} part" if splits else "has no train and val folders"
        raise UsageError(f"{source}: {has} to choose with --split {split}", "leave it out")
    if root is not None and not (is_name(source) and source in SETS):
        raise UsageError(
            f"{source}: is not one of torchvision's sets, which alone have a --root", "leave it out"
        )
    chosen = (split,) if split else splits
    outs = [out] if len(chosen) < 2 else [part_path(out, part) for part in chosen]
    if not overwrite:
        _need_absent(outs)  # before anything is listed, or downloaded
    if not chosen:
        parts = [Part(list_folder(Path(source)), out, source)]
    else:
        parts = [
            Part(
                named_part(source, part, root, announce)
                if is_name(source)
                else folder_part(Path(source), part, announce),
                path,
                f"{source}/{part}",
            )
            for part, path in zip(chosen, outs, strict=True)
        ]
        _need_same_classes(parts)
    return pack_parts(parts, settings or Settings(), progress, announce)


def part_path(out: Path, split: Split) -> Path:
    """Where one part of two goes: ``OUT-train.beton`` beside ``OUT.beton``."""
    stem = out.name.removesuffix(".beton")
    return out.with_name(f"{stem}-{split}{out.name[len(stem) :]}")


def _need_absent(outs: Sequence[Path]) -> None:
    """Raise a UsageError where a file that is to be written is there."""
    for path in outs:
        if path.exists() and not path.is_dir():
            raise UsageError(
                f"{path} exists", "replace it with --overwrite, or name another OUT.beton"
            )


def _need_same_classes(parts: Sequence[Part]) -> None:
    """Raise a DataError where the labels of two parts do not mean the same."""
    first = parts[0]
    for part in parts[1:]:
        if part.images.classes != first.images.classes:
            different = set(part.images.classes or ()) ^ set(first.images.classes or ())
            raise DataError(
                f"{part.source}: its classes are not those of {first.source}: they differ in "
                f"{min(different, default='their order')!r}",
                "look whether files of the set are missing",
            )


def pack_parts(
    parts: Sequence[Part],
    settings: Settings,
    progress: _Progress | None = None,
    announce: _Announce | None = None,
) -> tuple[PackReport, ...]:
    """`pack` for images that have been listed: all files are complete before one gets its name."""
    _check_room(parts, settings, announce)
    token = secrets.token_hex(4)
    unnamed = [part.out.with_name(f".{part.out.name}.{token}.part") for part in parts]
    total = sum(len(part.images.files) for part in parts)
    reports: list[PackReport] = []
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    part = parts[0]
    try:
        for part, path in zip(parts, unnamed, strict=True):
            reports.append(_write(part, path, settings, count))
        with interrupts_held(signal.SIGTERM):
            for part, path in zip(parts, unnamed, strict=True):
                sidecar_path(path).replace(sidecar_path(part.out))
                path.replace(part.out)
        sync(part.out.parent)
    except OSError as error:
        raise DataError(f"{part.out}: cannot be written: {error.strerror or error}") from error
    finally:
        for path in unnamed:
            for file in (path, sidecar_path(path)):
                with suppress(OSError):
                    file.unlink()
    return tuple(reports)


def _write(part: Part, path: Path, settings: Settings, count: Callable[[], None]) -> PackReport:
    """Write a beton and its sidecar under a temporary name, and check it."""
    images = part.images
    skipped: list[Skipped] = []
    digests: list[str] = []
    labelled = images.labels is not None
    with (
        closing(encode_all(images, settings)) as encoded,
        BetonWriter(path, len(images.files), labelled, page_size(settings.max_side)) as writer,
    ):
        for row, image in enumerate(encoded):
            name = images.files[row]
            if image.reason:
                if settings.strict:
                    raise DataError(
                        f"{name}: {image.reason}", "mend or remove it, or leave --strict"
                    )
                skipped.append(Skipped(name, image.reason))
            else:
                label = 0 if images.labels is None else images.labels[row]
                writer.add(image.jpeg, image.height, image.width, label)
                digests.append(hashlib.blake2b(image.jpeg, digest_size=8).hexdigest())
            count()
        if not writer.count:
            raise DataError(
                f"{part.source}: none of its {len(images.files)} images can be read; "
                f"{skipped[0].path} {skipped[0].reason}"
            )
        writer.finish()
    checked = open_beton(path)
    sidecar = {
        "identity": checked.identity,
        "source": part.source,
        "settings": {"max_side": settings.max_side, "quality": settings.quality},
        "images": checked.images,
        "classes": images.classes,
        "skipped": [asdict(item) for item in skipped],
        "digests": digests,
    }
    write_sidecar(path, sidecar)
    size = path.stat().st_size
    return PackReport(part.out, checked.images, images.classes, size, tuple(skipped))


def _check_room(parts: Sequence[Part], settings: Settings, announce: _Announce | None) -> None:
    """Foresee the sizes from samples, say them, and refuse where the disk has less."""
    folder = parts[0].out.parent
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", "make it first")
    expected = 0
    for part in parts:
        if part.out.is_dir():
            raise DataError(f"{part.out}: is a folder", "name the file to write")
        count = len(part.images.files)
        rows = range(0, count, max(1, count // _SAMPLE))[:_SAMPLE]
        sizes = [len(encode(part.images.image(row), settings).jpeg) for row in rows]
        readable = [size for size in sizes if size]
        size = int(sum(readable) / max(1, len(readable)) * count * 1.1)
        expected += size
        if announce:
            announce(f"packing {count:,} images into {part.out} (about {_megabytes(size)})")
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    if free < expected + _SPARE_BYTES:
        raise DataError(
            f"{folder}: {_megabytes(free)} free, about {_megabytes(expected)} needed",
            "free some space, choose another folder, or a smaller longest side or quality",
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
