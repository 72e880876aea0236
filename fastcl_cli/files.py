"""Writing files so that a crash leaves the old one or the new one, never half of either; and where
fastcl keeps files of its own."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PART = re.compile(r"\..+\.\d+\.part|\.tmp\w{6}")
"""A name that `replacing` gives, or safetensors beneath it."""


def cache_folder() -> Path:
    """Where packed data and profiles are kept: $FASTCL_CACHE, or ``fastcl`` in the user's cache
    folder."""
    if own := os.environ.get("FASTCL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcl"


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files: it has ``*``, ``?`` or ``[``, and is no path."""
    return any(letter in name for letter in "*?[") and not Path(name).exists()


def matching(pattern: str) -> list[Path]:
    """The files whose names match a pattern, sorted; ``**`` stands for any folders.

    Raises:
        ValueError: it is no pattern.
    """
    root = Path(pattern).anchor
    paths = Path(root or ".").glob(str(Path(pattern).relative_to(root)))
    return sorted(path for path in paths if path.is_file())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path``; on success it is synced and renamed to ``path``.

    On an exception the temporary file is removed and ``path`` is as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            part.unlink()


def new_file_mode() -> int:
    """The permissions that any new file gets here, for what a library keeps to its owner."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        masks = [int(line.split()[1], 8) for line in lines if line.startswith("Umask:")]
    except OSError:
        masks = []
    return 0o666 & ~(masks[0] if masks else 0o077)


def remove_parts(folder: Path) -> None:
    """Remove what `replacing` left in a folder when its process was killed.

    Whoever calls this must know that no other process is writing there (`locked`).
    """
    for path in folder.glob(".*"):
        if _PART.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


class LockedError(Exception):
    """Another process holds a lock; the text says which one, as far as it has said so."""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file for as long as the context lasts; it is gone afterwards.

    The kernel lets go of it when the process ends, however that comes. Yields False where the file
    system has no locks.

    Raises:
        LockedError: another process holds it.
        OSError: the file cannot be made.
    """
    descriptor = None
    while descriptor is None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                yield False
                return
            raise LockedError(holder if holder.isprintable() else "") from None
        if not _is_open_as(path, descriptor):  # whoever held it has removed it meanwhile
            os.close(descriptor)
            descriptor = None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield True
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def held_by(path: Path) -> str | None:
    """Who holds a lock file (`locked`), as far as it has said so; None where nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        holder = os.read(descriptor, 200).decode(errors="replace")
        return holder if holder.isprintable() else ""
    finally:
        os.close(descriptor)
    return None


def _is_open_as(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def read_json(path: Path, most: int) -> Any:
    """The value of a JSON file of at most so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or not JSON.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most:,} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
