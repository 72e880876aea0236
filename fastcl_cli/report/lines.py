"""Files of one JSON object a line, that someone else may be writing at this moment."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from fastcl_cli.errors import RunFolderError
from fastcl_cli.json_fields import FieldError, Fields

MAX_LINE = 8_000_000
"""Bytes; a decision between a thousand settings takes half a million."""

Read = TypeVar("Read")


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe or a device, which might never end, is none.

    Raises:
        FileNotFoundError: there is none.
        RunFolderError: it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise RunFolderError(f"{path}: not a file")
        return os.fdopen(descriptor, "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error


def read_json(path: Path, limit: int, read: Callable[[object], Read]) -> Read:
    """What ``read`` makes of the JSON value in a file of at most ``limit`` bytes.

    Raises:
        RunFolderError: there is no such file, or ``read`` (a ValueError) or JSON refuses it.
    """
    try:
        with open_file(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        help = "name the folder that `fastcl run --out` wrote"
        raise RunFolderError(f"{path}: no such file, so no run's folder", help) from None
    if len(content) > limit:
        raise RunFolderError(f"{path}: larger than the {limit:,} bytes of any such file")
    return _reading(str(path), content, read)


def _reading(place: str, content: bytes, read: Callable[[object], Read], help: str = "") -> Read:
    try:
        return read(json.loads(content))
    except FieldError as error:
        raise RunFolderError(f"{place}: {error}", help) from None
    except (ValueError, RecursionError):
        raise RunFolderError(f"{place}: not JSON", help) from None


_DAMAGED = "the line is not as the run wrote it: remove it to see the others"


class Lines(Generic[Read]):
    """The whole lines of a file, read once each as it grows; a last line without its end is still
    being written and waits. Holds one line at a time.

    Args:
        path: need not exist yet.
        read: makes a record of a line's object, or raises ValueError.
    """

    def __init__(self, path: Path, read: Callable[[Fields], Read]) -> None:
        self.path = path
        self._read = read
        self._file: BinaryIO | None = None
        self._offset = self._number = 0

    def close(self) -> None:
        """Read from the start the next time."""
        if self._file is not None:
            self._file.close()
        self._file, self._offset, self._number = None, 0, 0

    def replaced(self) -> bool:
        """Whether what was read is no longer what the file begins with: another file has its name
        (a resume writes it anew), or it is shorter, or gone."""
        if self._file is None:
            return False
        held = os.fstat(self._file.fileno())
        try:
            now = self.path.stat()
        except OSError:
            return True
        # The file stays open, so that no other can get its number.
        return (held.st_dev, held.st_ino) != (now.st_dev, now.st_ino) or now.st_size < self._offset

    def new(self) -> Iterator[Read]:
        """The records of the lines since the last call.

        Raises:
            RunFolderError: naming the line that is none, or is longer than any.
        """
        if self._file is None:
            try:
                self._file = open_file(self.path)
            except FileNotFoundError:
                return
        self._file.seek(self._offset)
        while line := self._file.readline(MAX_LINE + 1):
            place = f"{self.path}:{self._number + 1}"
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE:
                    raise RunFolderError(f"{place}: longer than {MAX_LINE:,} bytes")
                return
            self._offset += len(line)
            self._number += 1
            yield _reading(place, line, lambda value: self._read(Fields(value, "")), _DAMAGED)
