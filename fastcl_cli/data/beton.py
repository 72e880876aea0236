"""Reading and checking an FFCV file (a *beton*) without FFCV.

FFCV itself trusts the file: one whose writer was killed aborts the process, one cut short gives
wrong pixels or a hang. `open_beton` therefore checks everything that FFCV will rely on, in whole
arrays (about a second for a million images), before the file is ever mapped.

The format, version 2, little-endian: a header; one descriptor per field; one metadata row per
sample; the data, in pages; the allocation table (sample, pointer, size), which ends the file. The
header is written last, so a pointer of 0 in it means that the writer never finished.

In files of fastcl's own, a checksum of every image (`checksum`) and `CHECKS` stand right before the
table. To FFCV that is room in a page which no image uses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastcl_cli.data.sidecar import read_classes
from fastcl_cli.errors import DataError

VERSION = 2
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
CHECKS = np.dtype([("magic", "S8"), ("seal", "V16")])
"""What ends the checksums: ``seal`` is a digest of them and of all that is not an image."""
CHECKS_MAGIC = b"fastcl 1"
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
JPEG, RAW = 0, 1
"""The values of ``mode``."""

INT_TYPE, IMAGE_TYPE = 1, 2
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_METADATA = {
    0: np.dtype("<f8"),
    INT_TYPE: np.dtype("<i8"),
    IMAGE_TYPE: IMAGE,
    3: _POINTER_AND_SIZE,
    4: np.dtype("<u8"),
    5: _POINTER_AND_SIZE,
    6: np.dtype("<u8"),
}
"""A metadata row by the field's type number: float, int, image, bytes, array, JSON, tensor."""
_ALLOCATING = {2, 3, 4, 5, 6}
"""The types that own one entry of the allocation table per sample."""
_MAX_FIELDS = 64
MAX_PIXELS = 100_000_000
"""Larger images are refused: a few bytes of file can ask for any amount of memory."""

_REPACK = "write it again with `fastcl pack --overwrite`"
_OTHER_FILE = "name a file that `fastcl pack` has written"  # this one may be worth keeping


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a data set: its first image has the number ``first`` in the whole set.

    ``identity`` is a digest of header, metadata and allocation table: equal for copies of a file,
    different when it was written from other images or with other settings.
    """

    path: Path
    first: int
    identity: str


@dataclass(frozen=True, eq=False)
class Beton:
    """N images in one checked file, or in several (`shards.open_shards`).

    Attributes:
        path: where it is, or the pattern of several files' names.
        images: N.
        heights: int32 (N,), the stored images' true heights in pixels.
        widths: int32 (N,), their widths.
        labels: int64 (N,), or None where a file has no label field.
        classes: the names of the labels 0, 1, ..., from the sidecar, or None without one.
        identity: the file's (see `Shard`), or a digest of those of several.
        shards: the files.
    """

    path: Path
    images: int
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...] | None
    identity: str
    shards: tuple[Shard, ...]

    def place(self, index: int) -> str:
        """Where an image is, in words: its file, and its number there."""
        shard = next(shard for shard in reversed(self.shards) if shard.first <= index)
        return f"{shard.path}: image {index - shard.first}"


@dataclass(frozen=True, slots=True)
class Records:
    """What a decoder must know of a file: `IMAGE` rows (N,), ``checksums`` uint64 (N,) (0 where the
    file has none), and how many bytes of data each image has, uint64 (N,)."""

    images: NDArray[Any]
    checksums: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


def open_beton(path: str | Path) -> Beton:
    """Check a beton and read what training needs to know of it.

    Accepts what FFCV's own tools write: an image field and optionally an integer ``label``, in any
    order, images stored as JPEG, raw or both; other fields of FFCV's own types are ignored.

    Raises:
        DataError: it is missing, is not a beton, was not finished, was cut short, or points
            outside itself.
    """
    path = Path(path)
    parsed = _parse(path)
    return Beton(
        path=path,
        images=len(parsed.images),
        heights=parsed.images["height"].astype(np.int32),
        widths=parsed.images["width"].astype(np.int32),
        labels=parsed.labels,
        classes=read_classes(path, len(parsed.images), parsed.identity, parsed.labels),
        identity=parsed.identity,
        shards=(Shard(path, 0, parsed.identity),),
    )


def read_records(shard: Shard) -> Records:
    """Where the images of a file lie in it.

    Raises:
        DataError: as `open_beton`, or it is another file than was opened.
    """
    parsed = _parse(shard.path)
    if parsed.identity != shard.identity:
        raise DataError(f"{shard.path}: is another file than it was before", "start again")
    return Records(parsed.images, parsed.checksums, parsed.sizes)


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A file, checked: its image field's rows, their checksums, how many bytes each image has, and
    its labels."""

    images: NDArray[Any]
    checksums: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    labels: NDArray[np.int64] | None
    identity: str


def _parse(path: Path) -> _Parsed:
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file", "make it with `fastcl pack SOURCE OUT.beton`"
        ) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a beton", "pack it with `fastcl pack`") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(path: Path, file: BinaryIO) -> _Parsed:
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: is empty (0 bytes)", _REPACK)
    header = _header(path, file, size)
    count = int(header["num_samples"])
    names, types, rows = _fields(path, file, int(header["num_fields"]))
    start = HEADER.itemsize + len(names) * FIELD.itemsize
    end = start + count * rows.itemsize
    table_at = int(header["alloc_table_ptr"])
    allocating = sum(kind in _ALLOCATING for kind in types)
    expected = table_at + count * allocating * ALLOCATION.itemsize
    if end > table_at or expected != size:
        kind = "is cut short" if size < max(expected, end) else "does not have its header's size"
        raise DataError(f"{path}: {kind}: {size:,} bytes, its header says {expected:,}", _REPACK)
    file.seek(HEADER.itemsize)
    field_bytes, metadata_bytes = file.read(start - HEADER.itemsize), file.read(end - start)
    file.seek(table_at)
    table_bytes = file.read(size - table_at)
    checksums = _checksums(
        path, file, end, table_at, (header.tobytes(), field_bytes, metadata_bytes, table_bytes)
    )
    metadata = np.frombuffer(metadata_bytes, rows)
    images = metadata[f"f{_image_field(path, names, types)}"]
    table = np.frombuffer(table_bytes, ALLOCATION)
    sizes = _check_records(path, images, table, end, table_at)
    digest = hashlib.blake2b(digest_size=16)
    for part in (header.tobytes(), metadata_bytes, table_bytes):
        digest.update(part)
    labels = None
    if "label" in names and types[names.index("label")] == INT_TYPE:
        labels = metadata[f"f{names.index('label')}"].astype(np.int64)
        if labels.min() < 0:
            raise DataError(
                f"{path}: image {int(labels.argmin())} has the label {labels.min()}", _REPACK
            )
    if checksums is None:
        checksums = np.zeros(count, np.uint64)
    return _Parsed(images, checksums, sizes, labels, digest.hexdigest())


def seal(*parts: bytes) -> bytes:
    """16 bytes that stand for header, fields, metadata, table and checksums."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _checksums(
    path: Path, file: BinaryIO, start: int, table_at: int, parts: Sequence[bytes]
) -> NDArray[np.uint64] | None:
    """The checksums of a file that has them, between ``start`` and the table."""
    count = len(parts[-1]) // ALLOCATION.itemsize
    at = table_at - CHECKS.itemsize - 8 * count
    if at < start:
        return None
    file.seek(at)
    data = file.read(8 * count)
    checks = np.frombuffer(file.read(CHECKS.itemsize), CHECKS)
    if len(checks) != 1 or checks["magic"][0] != CHECKS_MAGIC:
        return None
    if checks["seal"][0].tobytes() != seal(*parts, data):
        raise DataError(
            f"{path}: is damaged: its header, labels or tables are not those that were written",
            _REPACK,
        )
    return np.frombuffer(data, np.uint64)


def _header(path: Path, file: BinaryIO, size: int) -> Any:
    data = file.read(HEADER.itemsize)
    if len(data) < HEADER.itemsize:
        raise DataError(f"{path}: is not a beton: {size} bytes are less than a header", _OTHER_FILE)
    header = np.frombuffer(data, HEADER)[0]
    fields, page = int(header["num_fields"]), int(header["page_size"])
    if int(header["version"]) != VERSION or not 1 <= fields <= _MAX_FIELDS or page & (page - 1):
        raise DataError(
            f"{path}: is not a beton of version {VERSION} (it starts with {data[:8].hex(' ')})",
            _OTHER_FILE,
        )
    if int(header["alloc_table_ptr"]) == 0:
        raise DataError(f"{path}: was never finished: its writer was stopped", _REPACK)
    if int(header["num_samples"]) == 0:
        raise DataError(f"{path}: holds no images", _REPACK)
    return header


def _fields(path: Path, file: BinaryIO, count: int) -> tuple[list[str], list[int], np.dtype[Any]]:
    data = file.read(count * FIELD.itemsize)
    if len(data) < count * FIELD.itemsize:
        raise DataError(f"{path}: is cut short: it ends within the list of its fields", _REPACK)
    fields = np.frombuffer(data, FIELD)
    names = [row.tobytes().split(b"\0")[0].decode("ascii", "replace") for row in fields["name"]]
    types = [int(kind) for kind in fields["type_id"]]
    for name, kind in zip(names, types, strict=True):
        if kind not in _METADATA:
            raise DataError(
                f"{path}: field {name!r} is of type {kind}; allowed are FFCV's own, 0 to 6",
                "write the file with an image field and an integer label only",
            )
    return names, types, np.dtype([("", _METADATA[kind]) for kind in types], align=True)


def _image_field(path: Path, names: list[str], types: list[int]) -> int:
    images = [index for index, kind in enumerate(types) if kind == IMAGE_TYPE]
    if len(images) > 1:
        images = [index for index in images if names[index] == "image"]
    if len(images) != 1:
        raise DataError(
            f"{path}: needs one image field, or one named 'image'; it has {', '.join(names)}",
            _REPACK,
        )
    return images[0]


def _check_records(
    path: Path, images: NDArray[Any], table: NDArray[Any], start: int, end: int
) -> NDArray[np.uint64]:
    """Every image's mode, geometry and bytes: known, not empty, and inside the data pages.

    Returns:
        how many bytes each image has.
    """

    def refuse(bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            first = int(bad.argmax())
            raise DataError(f"{path}: image {first} (one of {int(bad.sum()):,}) {what}", _REPACK)

    order = np.argsort(table["ptr"], kind="stable")
    pointers, sizes = table["ptr"][order], table["size"][order]
    place = np.searchsorted(pointers, images["data_ptr"]).clip(max=len(pointers) - 1)
    refuse(pointers[place] != images["data_ptr"], "has no entry in the allocation table")
    at, size = pointers[place], sizes[place]
    # Written so that no sum can overflow the unsigned integers of the file.
    outside = (at < start) | (at > end) | (size > end) | (at > end - np.minimum(size, end))
    refuse(outside, "points outside the file")
    refuse(images["mode"] > RAW, "is stored in an unknown way (mode is neither JPEG nor raw)")
    height, width = images["height"].astype(np.uint64), images["width"].astype(np.uint64)
    refuse((height == 0) | (width == 0), "has no pixels")
    refuse(height * width > MAX_PIXELS, f"has more than {MAX_PIXELS:,} pixels")
    wrong = (images["mode"] == RAW) & (size != 3 * height * width)
    refuse(wrong | (size == 0), "does not have the bytes that its height and width ask for")
    return size  # type: ignore[no-any-return]
