"""Python and the libraries: installed, new enough, made for each other, and loadable."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import os
import platform
import re

from fastcl_cli import __version__
from fastcl_cli.doctor.finding import Finding, first_line
from fastcl_cli.errors import MissingLibraryError
from fastcl_cli.extras import TRAIN_INSTALL

LEAST = {"torch": "2.6", "torchvision": "0.21", "timm": "1.0.19", "numba": "0.61"}
"""The oldest versions that work, as the ``[train]`` extra has them."""
FFCV = "1.0.2"


def python() -> Finding:
    value = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Finding("Python", "problem", f"{value}: FFCV needs Linux", "use Linux, or WSL")
    return Finding("Python", "ok", value)


def fastcl() -> Finding:
    return Finding("fastcl", "ok", __version__)


def library(name: str) -> Finding:
    """A library of `LEAST`, imported."""
    least = LEAST[name]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or name).split(".")[0]
        value = "not installed" if missing == name else f"needs {missing}, which is not installed"
        help = TRAIN_INSTALL if missing == name else f"pip install {missing}"
        return Finding(name, "problem", value, help)
    except Exception as error:  # whatever a broken library does when it is loaded
        if name == "torchvision" and (finding := pair()) is not None:
            return finding
        value = f"{version(name)} cannot be loaded: {first_line(error)}"
        return Finding(name, "problem", value, f"pip install --force-reinstall '{name}>={least}'")
    found = version(name)
    if _numbers(found) < _numbers(least):
        return Finding(
            name,
            "problem",
            f"{found}: {least} or newer is needed",
            f"pip install '{name}>={least}'",
        )
    if name == "torchvision" and (finding := pair()) is not None:
        return finding
    return Finding(name, "ok", found)


def pair() -> Finding | None:
    """Whether torchvision is made for another torch than is installed: its compiled operators work
    with one version only."""
    try:
        needs = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return None
    wanted = next(
        (m[1] for need in needs if (m := re.match(r"torch\s*\(?==\s*([\d.]+)", need))), ""
    )
    here = version("torch").split("+")[0]
    if not wanted or wanted == here:
        return None
    return Finding(
        "torchvision",
        "problem",
        f"{version('torchvision')} is made for torch {wanted}; installed is {here}",
        f"pip install torch=={here} torchvision",
    )


def ffcv() -> Finding:
    """FFCV with its libraries, as the loader imports it."""
    from fastcl_cli.data.ffcv_library import load_ffcv

    try:
        load_ffcv()
    except MissingLibraryError as error:
        return Finding("FFCV", "problem", error.message, error.help)
    except ModuleNotFoundError as error:
        return Finding("FFCV", "problem", f"needs {error.name}", TRAIN_INSTALL)
    found = version("ffcv")
    if found != FFCV:
        return Finding("FFCV", "problem", f"{found}: {FFCV} is needed", f"pip install ffcv=={FFCV}")
    return Finding(
        "FFCV", "ok", f"{found}, OpenCV {version('opencv-python', 'cv2')}, libjpeg-turbo"
    )


def threading_layer() -> Finding:
    """What numba runs FFCV's decoding threads with.

    It takes the first of its layers that loads; its own, workqueue, ends the process when two
    loaders decode at the same moment.
    """
    from numba.core import config

    name = "threading layer"
    asked = str(config.THREADING_LAYER)
    modules = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    if asked in modules:
        order = [asked]
    else:
        order = [layer for layer in config.THREADING_LAYER_PRIORITY if layer in modules]
    layer = next((layer for layer in order if _loads(f"numba.np.ufunc.{modules[layer]}")), None)
    if layer is None:
        help = "unset NUMBA_THREADING_LAYER" if asked in modules else "apt-get install libgomp1"
        return Finding(name, "problem", f"numba cannot load {' or '.join(order)}", help)
    if layer == "workqueue":
        help = "apt-get install libgomp1"
        if os.environ.get("NUMBA_THREADING_LAYER"):
            help = "unset NUMBA_THREADING_LAYER"
        return Finding(
            name,
            "problem",
            "workqueue: it ends a run whose training and judging images are decoded at once",
            help,
        )
    return Finding(name, "ok", layer)


def version(*distributions: str) -> str:
    """The version of the first of the distributions that is installed, or that the module of that
    name says, or ``?``."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return str(getattr(importlib.import_module(distributions[-1]), "__version__", "?"))


def _loads(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
