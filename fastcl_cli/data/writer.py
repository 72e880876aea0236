"""Writing a beton: an image field of JPEGs and, where there are labels, an integer label.

FFCV's own writer waits for ever when a worker raises, destroys the old file first, and writes its
pages in an order that depends on timing. This one writes the same format from one process, in the
order given, so equal images give equal bytes. A checksum of every image stands between the data and
the table, where FFCV reads nothing (`beton`).
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np

from fastcl_cli.data.beton import (
    ALLOCATION,
    CHECKS,
    CHECKS_MAGIC,
    FIELD,
    HEADER,
    IMAGE,
    IMAGE_TYPE,
    INT_TYPE,
    JPEG,
    VERSION,
    seal,
)
from fastcl_cli.data.checksum import checksum

_LEAST_PAGE = 1 << 23


def page_size(max_side: int) -> int:
    """A page that holds any JPEG of that side: FFCV keeps every record within one page."""
    return max(_LEAST_PAGE, 1 << (4 * max_side * max_side - 1).bit_length())


class BetonWriter:
    """Writes records one by one; `finish` writes what FFCV reads first. Use as a context.

    The count of images must be bounded beforehand (``most``): the metadata lies before the data.
    Fewer may come; the room left is harmless.
    """

    def __init__(self, path: Path, most: int, labelled: bool, page: int) -> None:
        self._file = path.open("xb")
        self._page = page
        fields = [("image", IMAGE_TYPE)] + ([("label", INT_TYPE)] if labelled else [])
        self._descriptors = np.zeros(len(fields), FIELD)
        for row, (name, kind) in zip(self._descriptors, fields, strict=True):
            row["type_id"] = kind
            row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        types = [IMAGE, np.dtype("<i8")][: len(fields)]
        self._metadata = np.zeros(most, np.dtype([("", kind) for kind in types], align=True))
        self._table = np.zeros(most, ALLOCATION)
        self._checksums = np.zeros(most, "<u8")
        self._labelled = labelled
        self.count = 0
        self._at = HEADER.itemsize + self._descriptors.nbytes + self._metadata.nbytes
        self._file.seek(self._at)

    def add(self, jpeg: bytes, height: int, width: int, label: int = 0) -> None:
        """Append one image. Its JPEG must fit into a page."""
        assert 0 < len(jpeg) <= self._page and self.count < len(self._metadata)
        if self._at // self._page != (self._at + len(jpeg) - 1) // self._page:
            self._at += -self._at % self._page
            self._file.seek(self._at)
        self._file.write(jpeg)
        row = self._metadata[self.count]
        image = row["f0"]
        image["mode"], image["height"], image["width"] = JPEG, height, width
        image["data_ptr"] = self._at
        if self._labelled:
            row["f1"] = label
        self._table[self.count] = (self.count, self._at, len(jpeg))
        self._checksums[self.count] = checksum(jpeg)
        self._at += len(jpeg)
        self.count += 1

    def finish(self) -> None:
        """Write checksums, table, metadata and, last, the header; then force it all to the disk."""
        checksums = self._checksums[: self.count].tobytes()
        header, checks = np.zeros(1, HEADER), np.zeros(1, CHECKS)
        header["version"], header["num_fields"] = VERSION, len(self._descriptors)
        header["page_size"], header["num_samples"] = self._page, self.count
        header["alloc_table_ptr"] = self._at + len(checksums) + checks.nbytes
        descriptors, metadata, table = (
            part.tobytes()
            for part in (self._descriptors, self._metadata[: self.count], self._table[: self.count])
        )
        checks["magic"] = CHECKS_MAGIC
        checks["seal"] = seal(header.tobytes(), descriptors, metadata, table, checksums)
        self._file.write(checksums + checks.tobytes() + table)
        self._file.seek(HEADER.itemsize)
        self._file.write(descriptors + metadata)
        self._file.flush()
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
