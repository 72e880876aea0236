"""What FFCV runs: files to read, the compiled loop that decodes images, whole, into squares and
says whether it could, and the thread that fills batches.

Imports FFCV: import this module only after `ffcv_library.load_ffcv`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
from ffcv.libffcv import imdecode, resize_crop
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery, allocate_query
from ffcv.pipeline.compiler import Compiler
from numba import njit, prange
from numpy.typing import NDArray

from fastcl_cli.data.beton import IMAGE, JPEG, Beton, read_records
from fastcl_cli.data.checksum import checksum_compiled
from fastcl_cli.data.mapped import map_files
from fastcl_cli.data.threads import kept_threads
from fastcl_cli.errors import DataError

DECODED, DAMAGED, OTHER_SIZE, CHANGED = 0, 1, 2, 3
"""The status of an image: fine; the JPEG decoder failed or warned; the JPEG is of another size
than the record says; its bytes do not have the checksum that they were written with."""
_MOST_STREAMS = 16
"""That decode at once; others wait for a batch of these."""
_CHECKED = np.dtype([*IMAGE.descr, ("checksum", "<u8")])
"""`IMAGE`, with the checksum of its bytes, 0 for none."""


def jpeg_size_is(data: NDArray[np.uint8], height: int, width: int) -> bool:
    """Whether the frame header of a JPEG says height x width (compiled by numba).

    libjpeg-turbo does not mind another size: it decodes what it finds into the room that it has.
    """
    at = 2
    while at + 9 < data.size and data[at] == 0xFF:
        marker = data[at + 1]
        # Frame headers are C0 to CF, but for Huffman tables, extensions and arithmetic tables.
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            rows = (np.int64(data[at + 5]) << 8) + np.int64(data[at + 6])
            columns = (np.int64(data[at + 7]) << 8) + np.int64(data[at + 8])
            return bool(rows == height and columns == width)
        if marker == 0xFF:
            at += 1
        else:
            at += 2 + (np.int64(data[at + 2]) << 8) + np.int64(data[at + 3])
    return False


@lru_cache(maxsize=2)
def compiled_decode(parallel: bool) -> Callable[..., None]:
    """What decodes a batch, with one thread or several, compiled once in a process: that takes
    seconds, and what comes of it depends on no file, size or number of threads.

    ``decode(indices, squares, status, metadata, files, sizes)`` decodes whole images and squashes
    them to S x S: into ``squares``, uint8 (B, S, S, 3), RGB, and ``status``, uint8 (B,).

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size where their long side stays at least 39/40 of
    S (the decoder's DCT scaling, which saves most of its work: twice the images a second where 500
    pixels become 256), then resized by area averaging (bilinear where that enlarges).
    """
    decode_jpeg = Compiler.compile(imdecode)
    resize = Compiler.compile(resize_crop)
    size_is = Compiler.compile(jpeg_size_is)
    checksum = Compiler.compile(checksum_compiled)
    jpeg, damaged, other_size, decoded = JPEG, DAMAGED, OTHER_SIZE, DECODED
    changed, none = CHANGED, np.uint64(0)

    def decode(indices, squares, status, metadata, files, sizes):  # type: ignore[no-untyped-def]
        side = squares.shape[1]
        for slot in prange(len(indices)):
            index = indices[slot]
            record = metadata[index]
            start = record["data_ptr"]
            data = files[start : start + sizes[index]]
            height, width = np.int64(record["height"]), np.int64(record["width"])
            status[slot] = decoded
            if record["checksum"] != none and checksum(data) != record["checksum"]:
                status[slot] = changed
            elif record["mode"] == jpeg:
                part = 1
                while part < 8 and 40 * max(height, width) >= 39 * 2 * part * side:
                    part *= 2
                rows, columns = (height + part - 1) // part, (width + part - 1) // part
                # Scratch of this image's own size: a buffer for the largest image of the file would
                # be held once for every slot of every batch in flight.
                image = np.empty((rows, columns, 3), np.uint8)
                if not size_is(data, height, width):
                    status[slot] = other_size
                elif decode_jpeg(
                    data, image, height, width, height, width, 0, 0, 1, part, False, False
                ):
                    status[slot] = damaged
                if status[slot] == decoded:
                    resize(image, 0, rows, 0, columns, squares[slot])
            else:
                image = data.reshape(height, width, 3)
                resize(image, 0, height, 0, width, squares[slot])

    return njit(fastmath=True, nogil=True, error_model="numpy", parallel=parallel)(decode)  # type: ignore[no-any-return]


class _Mapped:
    """FFCV's memory manager and its context, for files that stay mapped."""

    def __init__(self, files: NDArray[np.uint8], sizes: NDArray[np.uint64]) -> None:
        self.state = (files, sizes)

    def schedule_epoch(self, batches: Any) -> _Mapped:
        return self

    def __enter__(self) -> _Mapped:
        return self

    def __exit__(self, *error: object) -> None:
        """It stays mapped."""


class Files:
    """What FFCV's thread asks of a loader: one that reads the image fields of several files as if
    they were one file.

    Args:
        beton: where the files are.
        side: of the squares, in pixels; may be set anew between threads.
        workers: decoding threads.
    """

    batches_ahead = 3

    def __init__(self, beton: Beton, side: int, workers: int) -> None:
        self.side = side
        self.batch_size = 1
        self.num_workers = workers
        self.traversal_order = None
        self.open(beton)
        self.graph = self
        Compiler.set_num_threads(workers)
        self.decode = compiled_decode(workers > 1)

    def allocate_memory(self, batch_size: int, slots: int) -> tuple[NDArray[np.uint8], ...]:
        """Squares (slots, B, S, S, 3) and status (slots, B), pinned where there is a GPU."""
        shapes = (self.side, self.side, 3), ()
        dtype = np.dtype("<u1")
        return tuple(
            allocate_query(AllocationQuery(shape, dtype), batch_size, slots) for shape in shapes
        )

    def open(self, beton: Beton) -> None:
        """Map the files of a data set, in place of those before; what is compiled serves any."""
        records = [read_records(shard) for shard in beton.shards]
        files, starts = map_files([shard.path for shard in beton.shards])
        self._shards = list(beton.shards)
        self._seen = [shard.path.stat() for shard in beton.shards]
        rows = np.empty(beton.images, _CHECKED)
        for shard, start, part in zip(beton.shards, starts, records, strict=True):
            here = slice(shard.first, shard.first + len(part.images))
            for column in IMAGE.names or ():
                rows[column][here] = part.images[column]
            rows["data_ptr"][here] += np.uint64(start)
            rows["checksum"][here] = part.checksums
        self.reader = SimpleNamespace(metadata=rows)
        self.memory_manager = _Mapped(files, np.concatenate([part.sizes for part in records]))

    def check_files(self) -> None:
        """Make sure that no file was changed in place since it was mapped. One that was removed or
        replaced is still there for who has mapped it.

        Raises:
            DataError: one was cut short, or holds something else.
        """
        for number, (shard, was) in enumerate(zip(self._shards, self._seen, strict=True)):
            try:
                now = shard.path.stat()
            except OSError:
                continue
            if not os.path.samestat(was, now):
                continue
            if now.st_size != was.st_size:
                raise DataError(
                    f"{shard.path}: has {now.st_size:,} bytes and had {was.st_size:,} when it was "
                    "opened",
                    "put the whole file back, then `--resume auto`",
                )
            if now.st_mtime_ns != was.st_mtime_ns:
                read_records(shard)
                self._seen[number] = now


class Iterator(EpochIterator):  # type: ignore[misc]
    """FFCV's thread that fills batches, which keeps the exception that ended it."""

    def __init__(self, loader: Any, order: NDArray[np.int64]) -> None:
        self.failure: BaseException | None = None
        self.ended = Event()
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:
            self.failure = error
        finally:
            self.ended.set()

    def run_pipeline(self, number: int, indices: Any, slot: int, event: Any) -> tuple[Any, Any]:
        """Squares and status of a batch, in the buffers of a slot."""
        squares, status = (buffer[slot, : len(indices)] for buffer in self.memory_allocations)
        # Not in this thread, for each stream has its own: FFCV keeps 10 kB of every thread that
        # ever decoded, and each epoch and each measurement has a stream.
        kept = kept_threads("decode", _MOST_STREAMS)
        kept.submit(self._decode, indices, squares, status).result()
        return squares, status

    def _decode(self, *batch: NDArray[Any]) -> None:
        Compiler.set_num_threads(self.loader.num_workers)  # each thread has its own number
        self.loader.decode(*batch, self.metadata, *self.storage_state)
