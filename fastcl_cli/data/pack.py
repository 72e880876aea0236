"""From image files to a beton: decoded, made plain RGB, encoded again, checked, then renamed.

Nothing but a finished file ever bears the final name, and a failure or an interrupt leaves nothing
behind. Images are read by processes of their own, so one that crashes its decoder ends in an
error. Equal sources give equal bytes, whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from fastcl_cli.data.beton import SIDECAR_VERSION, open_beton, sidecar_path
from fastcl_cli.data.builtin import BUILTIN, digits
from fastcl_cli.data.images import BadImageError, Folder, list_folder, load_rgb
from fastcl_cli.data.writer import BetonWriter, page_size
from fastcl_cli.errors import DataError, UsageError
from fastcl_cli.files import sync

MAX_SIDE = 384
QUALITY = 90
_GROUP = 16
"""Images per task sent to a process."""
_SAMPLE = 24
"""Images encoded beforehand to foresee the size of the file."""
_SPARE_BYTES = 16 << 20

Split = Literal["train", "val"]


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
class _Encoded:
    """One image as it will be stored; ``jpeg`` is empty where ``reason`` says why not."""

    jpeg: bytes
    height: int
    width: int
    reason: str


def pack(
    source: str | Path,
    out: str | Path,
    *,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    max_side: int = MAX_SIDE,
    quality: int = QUALITY,
    workers: int = 1,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> PackReport:
    """Write a beton, and its JSON sidecar beside it.

    Args:
        source: an image folder (one subfolder per class, or flat: no labels), or the name of a
            built-in data set.
        out: the file to write; an existing one is replaced when the new one is complete.
        split: which part, where the source has two (``train`` and ``val`` subfolders, or a
            built-in set).
        classes: names that number the labels, by default the sorted subfolders.
        max_side: longest side stored, in pixels; larger images are resized (bicubic, antialiased).
        quality: of the JPEGs, 1 to 100.
        workers: processes that read images.
        strict: fail on the first unreadable image instead of leaving it out.
        progress: called with the images done and their total.
        announce: called with a line about the size to expect.

    Raises:
        UsageError: an argument is out of range.
        DataError: no image can be read, one cannot and ``strict`` is set, a worker crashed, or
            there is no room or no permission to write.
    """
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality}: allowed is 1 to 100")
    if not 8 <= max_side <= 16384:
        raise UsageError(f"longest side {max_side}: allowed is 8 to 16384 pixels")
    if workers < 1:
        raise UsageError(f"{workers} workers: at least 1 is needed")
    source_name = str(source)
    if not Path(source).exists() and source_name in BUILTIN:
        return _pack_builtin(source_name, split, Path(out), max_side, quality, progress)
    folder = list_folder(split_folder(Path(source), split), classes)
    return pack_folder(
        folder, Path(out), source=source_name, max_side=max_side, quality=quality,
        workers=workers, strict=strict, progress=progress, announce=announce,
    )  # fmt: skip


def has_splits(root: Path) -> bool:
    """Whether a folder's subfolders are ``train`` and ``val`` rather than classes."""
    return (root / "train").is_dir() and (root / "val").is_dir()


def split_folder(root: Path, split: Split | None) -> Path:
    """The folder to pack: ``root`` itself, or its part named ``split``."""
    if has_splits(root):
        if split is None:
            raise UsageError(
                f"{root}: has both train and val in it; pack them one by one",
                f"name {root / 'train'} or {root / 'val'}",
            )
        return root / split
    if split is not None and root.is_dir():
        raise UsageError(f"{root}: has no train and val folders to choose {split!r} from")
    return root


def pack_folder(
    folder: Folder,
    out: Path,
    *,
    source: str,
    max_side: int = MAX_SIDE,
    quality: int = QUALITY,
    workers: int = 1,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> PackReport:
    """`pack` for a folder that has been listed."""
    _check_room(folder, out, max_side, quality, announce)
    encoded = _encode_all(folder, max_side, quality, workers)
    return _write(
        encoded, folder.files, folder.labels, folder.classes, out, source,
        max_side, quality, strict, progress,
    )  # fmt: skip


def _pack_builtin(
    name: str, split: Split | None, out: Path, max_side: int, quality: int,
    progress: Callable[[int, int], None] | None,
) -> PackReport:  # fmt: skip
    if split is None:
        raise UsageError(f"{name}: has two parts", "name one of them: train or val")
    images, labels = digits(split)
    encoded = (_encode(image, quality) for image in images)
    files = [f"{name}/{split}/{index}" for index in range(len(images))]
    classes = tuple(str(digit) for digit in range(10))
    return _write(
        encoded, files, labels, classes, out, f"{name}/{split}",
        max_side, quality, True, progress,
    )  # fmt: skip


def _write(
    encoded: Iterator[_Encoded],
    files: Sequence[str],
    labels: Sequence[int] | None,
    classes: tuple[str, ...] | None,
    out: Path,
    source: str,
    max_side: int,
    quality: int,
    strict: bool,
    progress: Callable[[int, int], None] | None,
) -> PackReport:
    """Write, check and rename; remove what was written where any of that fails."""
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    side_part = sidecar_path(part)
    skipped: list[Skipped] = []
    digests: list[str] = []
    try:
        with BetonWriter(part, len(files), labels is not None, page_size(max_side)) as writer:
            for row, image in enumerate(encoded):
                if image.reason:
                    if strict:
                        raise DataError(
                            f"{files[row]}: {image.reason}", "mend or remove it, or leave --strict"
                        )
                    skipped.append(Skipped(files[row], image.reason))
                else:
                    label = 0 if labels is None else labels[row]
                    writer.add(image.jpeg, image.height, image.width, label)
                    digests.append(hashlib.blake2b(image.jpeg, digest_size=8).hexdigest())
                if progress:
                    progress(row + 1, len(files))
            if not writer.count:
                raise DataError(
                    f"{source}: none of its {len(files)} images can be read; "
                    f"{skipped[0].path} {skipped[0].reason}"
                )
            writer.finish()
        checked = open_beton(part)
        sidecar = {
            "schema_version": SIDECAR_VERSION,
            "identity": checked.identity,
            "source": source,
            "settings": {"max_side": max_side, "quality": quality},
            "images": checked.images,
            "classes": classes,
            "skipped": [asdict(item) for item in skipped],
            "digests": digests,
        }
        side_part.write_text(json.dumps(sidecar, indent=1), encoding="utf-8")
        sync(side_part)
        size = part.stat().st_size
        side_part.replace(sidecar_path(out))
        part.replace(out)
        sync(out.parent)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if hasattr(encoded, "close"):
            encoded.close()
        for path in (part, side_part):
            with suppress(OSError):
                path.unlink()
    return PackReport(out, checked.images, classes, size, tuple(skipped))


def _encode(image: Image.Image, quality: int) -> _Encoded:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return _Encoded(buffer.getvalue(), image.height, image.width, "")


def _encode_file(path: Path, max_side: int, quality: int) -> _Encoded:
    try:
        return _encode(load_rgb(path, max_side), quality)
    except BadImageError as error:
        return _Encoded(b"", 0, 0, str(error))


def _encode_group(paths: Sequence[Path], max_side: int, quality: int) -> list[_Encoded]:
    return [_encode_file(path, max_side, quality) for path in paths]


def _encode_all(folder: Folder, max_side: int, quality: int, workers: int) -> Iterator[_Encoded]:
    """Every image of the folder, in order."""
    paths = [folder.root / name for name in folder.files]
    groups = [paths[start : start + _GROUP] for start in range(0, len(paths), _GROUP)]
    if workers == 1 or len(groups) == 1:
        for path in paths:
            yield _encode_file(path, max_side, quality)
        return
    # New interpreters, not forks: a fork of a process with torch's threads may hang.
    context = get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(groups)), context, _start_worker)
    waiting: deque[tuple[Sequence[Path], Future[Any]]] = deque()
    try:
        for group in groups:
            with _interrupts_held():
                waiting.append((group, pool.submit(_encode_group, group, max_side, quality)))
            if len(waiting) >= 4 * workers:
                yield from _result(*waiting.popleft())
        while waiting:
            yield from _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C for a moment: a process started meanwhile never sees it, this one does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """End with the parent, however it ends."""
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _result(group: Sequence[Path], future: Future[list[_Encoded]]) -> list[_Encoded]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that reads images died, at or after {group[0]}",
            "look for an image there that crashes its decoder, or for too little memory",
        ) from error


def _check_room(
    folder: Folder, out: Path, max_side: int, quality: int, announce: Callable[[str], None] | None
) -> None:
    """Foresee the size from a sample, say it, and refuse where the disk has less."""
    if not out.parent.is_dir():
        raise DataError(f"{out.parent}: no such folder", "make it first")
    step = max(1, len(folder.files) // _SAMPLE)
    sizes = [
        len(_encode_file(folder.root / name, max_side, quality).jpeg)
        for name in folder.files[::step][:_SAMPLE]
    ]
    readable = [size for size in sizes if size]
    expected = int(sum(readable) / max(1, len(readable)) * len(folder.files) * 1.1)
    try:
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise DataError(f"{out.parent}: cannot be read: {error.strerror}") from error
    if announce:
        announce(f"packing {len(folder.files):,} images into {out} (about {_megabytes(expected)})")
    if free < expected + _SPARE_BYTES:
        raise DataError(
            f"{out.parent}: {_megabytes(free)} free, about {_megabytes(expected)} needed",
            "free some space, choose another folder, or a smaller longest side or quality",
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
