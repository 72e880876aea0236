"""What the machine offers: optional libraries, and cores."""

from __future__ import annotations

import os
import platform
import re
from importlib.util import find_spec
from pathlib import Path

from fastcl_cli.errors import MissingLibraryError

TRAIN = ("torch", "timm", "ffcv", "numba", "cv2")


def pip_install(extra: str, *options: str) -> str:
    """The line that installs an optional extra."""
    words = " ".join(["pip install", *options, f"'.[{extra}]'"])
    return f"{words} (in the folder of fastcl's source)"


TRAIN_INSTALL = (
    f"apt-get install g++ pkg-config libopencv-dev libturbojpeg0-dev && {pip_install('train')}"
)


def need_train() -> None:
    """Make sure that the ``[train]`` extra is installed, without importing it.

    Raises:
        MissingLibraryError: naming what is missing and the line that installs it.
    """
    missing = [name for name in TRAIN if find_spec(name) is None]
    if missing:
        raise MissingLibraryError(
            f"this command needs {', '.join(missing)}",
            TRAIN_INSTALL,
        )


def need_extra(extra: str, *modules: str) -> None:
    """Make sure that what an optional extra brings is installed, without importing it.

    Raises:
        MissingLibraryError: naming what is missing and the line that installs it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingLibraryError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            pip_install(extra),
        )


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def computing_threads() -> int:
    """Threads that training on the CPU uses: one for each core, or OMP_NUM_THREADS if those are
    fewer. torchrun sets that to 1 by itself where it starts several processes, which says nothing.
    """
    cores, wanted = available_cores(), os.environ.get("OMP_NUM_THREADS", "")
    asked = "TORCHELASTIC_RUN_ID" not in os.environ and wanted.isdecimal() and int(wanted) > 0
    return min(cores, int(wanted)) if asked else cores


def processor_name() -> str:
    """The processor's own name, with how many threads compute on it."""
    return f"{cpuinfo('model name') or platform.machine()} ({computing_threads()} threads)"


def is_processor(name: str) -> bool:
    """Whether a device's name is one by `processor_name`."""
    return re.fullmatch(r".+ \(\d+ threads\)", name) is not None


def same_processor(one: str, other: str) -> bool:
    """Whether two names by `processor_name` differ at most in how many threads there were."""
    return one.rpartition(" (")[0] == other.rpartition(" (")[0] != ""


def cpuinfo(field: str) -> str:
    """A field of the first processor in Linux's /proc/cpuinfo, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""
