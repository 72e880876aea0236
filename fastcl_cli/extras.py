"""What the machine offers: optional libraries, and cores."""

from __future__ import annotations

import os
from importlib.util import find_spec

from fastcl_cli.errors import MissingLibraryError

TRAIN = ("torch", "timm", "ffcv", "numba", "cv2")


def need_train() -> None:
    """Make sure that the ``[train]`` extra is installed, without importing it.

    Raises:
        MissingLibraryError: naming what is missing and the line that installs it.
    """
    missing = [name for name in TRAIN if find_spec(name) is None]
    if missing:
        raise MissingLibraryError(
            f"this command needs {', '.join(missing)}",
            "apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev "
            "&& pip install 'fastcl[train]'",
        )


def launched() -> int | None:
    """Number of processes that torchrun, or a launcher like it, started; None where none did."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["WORLD_SIZE"])


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
