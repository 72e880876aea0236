"""How many images a schedule's data holds, as far as that can be seen without opening it."""

from __future__ import annotations

import struct
from pathlib import Path

from fastcl_cli.files import is_pattern, matching

DIGITS_IMAGES = 1_000
"""Training images of the built-in digits."""
MAX_IMAGES = 10**9
_BETON_HEADER = struct.Struct("<HHIQQ")
_BETON_VERSION = 2


def images_held(data: str | None) -> int | None:
    """The number of training images, for the digits and for betons (their headers say it).

    None for anything else: a folder's images are counted when they are packed. The headers are
    believed here; a run checks the whole files when it opens them.
    """
    if data is None:
        return None
    try:
        if is_pattern(data):
            counts = [_header_says(path) for path in matching(data)]
            total = sum(count or 0 for count in counts)
            return total if all(counts) and 1 <= total <= MAX_IMAGES else None
        path = Path(data)
        if path.is_file():
            return _header_says(path)
        return DIGITS_IMAGES if data == "digits" and not path.exists() else None
    except (OSError, ValueError):
        return None


def _header_says(path: Path) -> int | None:
    with path.open("rb") as file:
        header = file.read(_BETON_HEADER.size)
    if len(header) < _BETON_HEADER.size:
        return None
    version, _, _, images, _ = _BETON_HEADER.unpack(header)
    return images if version == _BETON_VERSION and 1 <= images <= MAX_IMAGES else None
