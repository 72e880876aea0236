"""Writing files so that a crash leaves the old one or the new one, never half of either; and where
fastcl keeps files of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
