"""How many images a schedule's data holds, as far as that can be seen without opening it."""

from __future__ import annotations

import struct
from pathlib import Path

DIGITS_IMAGES = 1_000
"""Training images of the built-in digits."""
MAX_IMAGES = 10**9
_BETON_HEADER = struct.Struct("<HHIQQ")
_BETON_VERSION = 2


def images_held(data: str | None) -> int | None:
    """The number of training images, for the digits and for betons (their header says it).

    None for anything else: a folder's images are counted when they are packed. The header is
    believed here; a run checks the whole file when it opens it.
    """
    if data is None:
        return None
    path = Path(data)
    try:
        if not path.is_file():
            return DIGITS_IMAGES if data == "digits" and not path.exists() else None
        with path.open("rb") as file:
            header = file.read(_BETON_HEADER.size)
    except (OSError, ValueError):
        return None
    if len(header) < _BETON_HEADER.size:
        return None
    version, _, _, images, _ = _BETON_HEADER.unpack(header)
    return images if version == _BETON_VERSION and 1 <= images <= MAX_IMAGES else None
