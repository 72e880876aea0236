"""Files mapped into memory one after the other, so that they are read as one."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcl_cli.errors import DataError

_FIXED, _PRIVATE_ANONYMOUS = 0x10, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_PROT_NONE = 0
_FAILED = ctypes.c_void_p(-1).value
_BUS_ERROR = """error: a file of the data cannot be read any more: it was cut, or the disk failed
help: put the whole file back, then `--resume auto`
"""
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[Any] = []
"""The handler of SIGBUS, once there is one."""


def map_files(paths: Sequence[Path]) -> tuple[NDArray[np.uint8], list[int]]:
    """Map whole files, read-only, into one range of addresses.

    The range is reserved first and each file then put into it at the next page, so a byte of any
    file is an index into one array. It stays mapped to the end of the process. What lies between a
    file's end and the next page is 0.

    Returns:
        uint8, read-only: all files; and the index of each one's first byte.

    Raises:
        DataError: a file cannot be mapped.
    """
    sizes = [path.stat().st_size for path in paths]
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    _explain_bus_errors()
    map_at = ctypes.CDLL(None, use_errno=True).mmap
    map_at.restype = ctypes.c_void_p
    map_at.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    base = map_at(None, total, _PROT_NONE, _PRIVATE_ANONYMOUS, -1, 0)
    if base == _FAILED:
        raise DataError(f"{paths[0]}: {total:,} bytes cannot be mapped: {_reason()}")
    for path, start, size in zip(paths, starts, sizes, strict=True):
        with path.open("rb") as file:
            flags = mmap.MAP_SHARED | _FIXED
            at = map_at(base + start, size, mmap.PROT_READ, flags, file.fileno(), 0)
        if at == _FAILED:
            raise DataError(f"{path}: cannot be mapped: {_reason()}")
    whole = np.ctypeslib.as_array((ctypes.c_uint8 * total).from_address(base))
    whole.setflags(write=False)
    return whole, starts


def _explain_bus_errors() -> None:
    """Die of a SIGBUS with a word.

    The kernel sends it where a mapped page cannot be had: its file was cut short, or the disk or
    the network failed. `signal.signal` would be of no use, for Python runs such a handler later,
    and the read is tried again before. The fault comes from a read of ours and not out of the
    middle of malloc, so the handler may take Python's lock.
    """
    if _kept:
        return

    def die(number: int) -> None:
        show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
        os.write(2, show_cursor + _BUS_ERROR.encode())
        os._exit(DataError.exit_code)

    _kept.append(_HANDLER(die))
    ctypes.CDLL(None).signal(signal.SIGBUS, _kept[0])


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
