"""The one place that imports FFCV, and what must be put right around it.

FFCV is imported late (it takes seconds) and only through `load_ffcv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from fastcl_cli.errors import MissingLibraryError
from fastcl_cli.extras import pip_install

_PIP = pip_install("train")
_DEBIAN = "g++ pkg-config libopencv-dev libturbojpeg0-dev"


def load_ffcv() -> ModuleType:
    """Import FFCV.

    FFCV sets torch's number of threads to 1 on import and to its own number of workers whenever
    it iterates, from another thread as well; here it is left to decide on its own threads only.

    Raises:
        MissingLibraryError: it or something that it needs is not installed; the help is the line
            that installs it.
    """
    import numba
    import torch

    threads = torch.get_num_threads()
    try:
        with _plain_dictionaries():
            import ffcv
            import ffcv.loader.epoch_iterator
        from ffcv.pipeline.compiler import Compiler
    except ImportError as error:
        raise _missing(error) from error
    finally:
        torch.set_num_threads(threads)

    def set_num_threads(cls: type, count: int) -> None:
        cls.num_threads = count  # type: ignore[attr-defined]
        numba.set_num_threads(count)

    Compiler.set_num_threads = classmethod(set_num_threads)
    module: ModuleType = ffcv
    return module


@contextmanager
def _plain_dictionaries() -> Iterator[None]:
    """Give FFCV Python's dictionary for numba's.

    It keeps the numbers of its two ways to store an image in one, which only Python code reads;
    to fill numba's takes five seconds of compiling, in every process.
    """
    import numba.typed

    typed = numba.typed.Dict
    numba.typed.Dict = dict
    try:
        yield
    finally:
        numba.typed.Dict = typed


def _missing(error: ImportError) -> MissingLibraryError:
    missing = error.name or ""
    if missing.split(".")[0] == "distutils":
        return MissingLibraryError(
            "ffcv needs distutils, which setuptools brings from Python 3.12 on",
            "pip install setuptools",
        )
    if isinstance(error, ModuleNotFoundError) and missing and missing != "ffcv._libffcv":
        return MissingLibraryError(
            f"{missing.split('.')[0]} is not installed",
            f"{_PIP}  (on Debian and Ubuntu first: apt-get install {_DEBIAN})",
        )
    if missing == "cv2" or "libGL" in str(error):
        return MissingLibraryError(
            f"OpenCV cannot be loaded: {error}", "pip install opencv-python-headless"
        )
    return MissingLibraryError(
        f"ffcv cannot be loaded: {error}",
        f"apt-get install {_DEBIAN}, then pip install --force-reinstall --no-cache-dir ffcv==1.0.2",
    )
