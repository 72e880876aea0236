"""CIFAR-10 and CIFAR-100 from their published files, which are pickles.

torchvision's own classes hand these files to ``pickle.load``, which runs whatever a pickle says.
Here the bytes of a file are first compared with the published MD5 digest (torchvision's tables),
and then read, from memory, by an unpickler that knows three names, NumPy's own for an array, and
refuses every other. Formats: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastcl_cli.errors import DataError

_SIDE = 32


def read_cifar(
    published: Any, root: Path, train: bool, download: bool
) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...]]:
    """Read the training or the test part.

    Args:
        published: torchvision's class for the set, whose tables name files and digests.
        root: the folder that holds, or will hold, the folder of the set's files.
        train: the training part; else the test part.
        download: fetch the archive (its digest is checked too) and unpack it first.

    Returns:
        uint8 (N, 32, 32, 3); N labels; the names of the classes.

    Raises:
        FileNotFoundError: a file is not there.
        DataError: a file is not the published one, or holds anything but arrays and plain values.
    """
    if download:
        from torchvision.datasets.utils import download_and_extract_archive

        download_and_extract_archive(
            published.url, str(root), filename=published.filename, md5=published.tgz_md5
        )
    folder = root / published.base_folder
    meta = _read(folder / published.meta["filename"], published.meta["md5"])
    pixels: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    for name, md5 in published.train_list if train else published.test_list:
        batch = _read(folder / name, md5)
        pixels.append(np.asarray(batch["data"], np.uint8).reshape(-1, 3, _SIDE, _SIDE))
        labels += batch["labels" if "labels" in batch else "fine_labels"]
    return np.concatenate(pixels).transpose(0, 2, 3, 1), labels, tuple(meta[published.meta["key"]])


def _read(path: Path, md5: str) -> dict[str, Any]:
    data = path.read_bytes()
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if digest != md5:
        raise DataError(
            f"{path}: is not the published file: its MD5 is {digest}, not {md5}",
            "delete it, and it is downloaded again",
        )
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no table of arrays")
    return content


class _ArraysOnly(pickle.Unpickler):
    """Builds plain values and NumPy arrays; any other name in a pickle is refused."""

    _NAMES: dict[tuple[str, str], Any] = {  # noqa: RUF012
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # How an array says that it is built: a function whose module was renamed in NumPy 2.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"names {module}.{name}, which no list of images needs: it is not read"
            ) from None
