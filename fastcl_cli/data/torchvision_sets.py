"""Listing one of torchvision's image classification sets, downloaded where its files are missing.

torchvision finds, downloads, verifies and lists; the images themselves are decoded like those of
any folder.

Nothing is unpickled without limits: CIFAR's files are read by `cifar`; MNIST's are plain binary
(those of a very old torchvision, ``processed/*.pt``, are read by ``torch.load(weights_only=True)``,
which builds tensors only); MATLAB files hold arrays.
"""

from __future__ import annotations

import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np

from fastcl_cli.data.cifar import read_cifar
from fastcl_cli.data.images import Arrays, Folder, ImageSet
from fastcl_cli.data.torchvision_table import SETS, Arguments
from fastcl_cli.errors import DataError, MissingLibraryError
from fastcl_cli.extras import pip_install

_PATIENCE_S = 30.0
"""Seconds without an answer after which a download has failed."""


def open_set(
    name: str, split: Literal["train", "val"], root: Path, announce: Callable[[str], None]
) -> ImageSet:
    """List one part of a set, or all of one that has no parts; download what is missing.

    Args:
        name: a key of `SETS`.
        split: which part.
        root: the folder below which torchvision looks for the set's files, and puts them.
        announce: called with a line when a download starts or the set is not as published.

    Returns:
        Class names where torchvision has them, else "0", "1", ...; no labels where the set has
        none.

    Raises:
        DataError: the files are not there and cannot be downloaded, or cannot be read.
        MissingLibraryError: torchvision, or scipy for a set that needs it, is not installed.
    """
    spec = SETS[name]
    root = root.expanduser().absolute()
    datasets = _library(name)
    kind = getattr(datasets, spec.kind or name)

    def part(arguments: Arguments, download: bool) -> ImageSet:
        if name in ("CIFAR10", "CIFAR100"):
            pixels, labels, names = read_cifar(kind, root, **arguments, download=download)
            return _arrays(f"{name}/{split}", pixels, labels, names)
        dataset = kind(root=str(root), **arguments, download=download)
        classes = _class_names(dataset, spec.classes)
        if hasattr(dataset, "data"):
            return _held(f"{name}/{split}", dataset, classes)
        return _listed(root, dataset, classes)

    chosen = spec.val if split == "val" and spec.val else spec.train
    parts = [_obtain(name, root, partial(part, a), announce) for a in chosen]
    whole = _joined(name, root, parts)
    _check_labels(name, root, whole)
    published = spec.images[1 if chosen is spec.val else 0]
    if len(whole.files) != published:
        announce(
            f"warning: {name} ({split if spec.val else 'all'}) in {root} has "
            f"{len(whole.files):,} images, as published {published:,}: files may be missing"
        )
    if not spec.labelled:
        assert isinstance(whole, Arrays)
        return Arrays(whole.files, whole.pixels, None, None)
    return whole


def _library(name: str) -> Any:
    """torchvision's data sets."""
    if SETS[name].matlab and find_spec("scipy") is None:
        raise MissingLibraryError(f"{name} has MATLAB files, which need scipy", "pip install scipy")
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # the latter: made for another torch
        raise MissingLibraryError(
            f"{name} needs torchvision, which cannot be imported: {_reason(error)}",
            pip_install("train"),
        ) from error
    return datasets


def _obtain(
    name: str,
    root: Path,
    make: Callable[[bool], ImageSet],
    announce: Callable[[str], None],
) -> ImageSet:
    """Read a part from its files; where they are not there or not whole, download them first."""
    help = f"place its files by hand, as torchvision lays them out, in {root / SETS[name].folder}"
    try:
        return make(False)
    except DataError:
        raise
    except (FileNotFoundError, RuntimeError):  # torchvision's way to say: not found or corrupted
        announce(f"{name}: not whole in {root}: downloading it")
    except Exception as error:  # its readers raise whatever damaged files make them
        raise DataError(f"{name}: in {root}, cannot be read: {_reason(error)}", help) from error
    try:
        with _downloads():
            return make(True)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{name}: not whole in {root}, and cannot be downloaded: {_reason(error)}", help
        ) from error


@contextmanager
def _downloads() -> Iterator[None]:
    """While torchvision downloads: no waiting for ever, no archive that leads out of its folder.

    It sets no time limit itself, and unpacks by `tarfile`'s default, which before Python 3.14
    follows absolute names and links.
    """
    patience = socket.getdefaulttimeout()
    trust = tarfile.TarFile.__dict__.get("extraction_filter")
    socket.setdefaulttimeout(_PATIENCE_S)
    if hasattr(tarfile, "data_filter"):
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        socket.setdefaulttimeout(patience)
        if hasattr(tarfile, "data_filter"):
            tarfile.TarFile.extraction_filter = trust


def _reason(error: BaseException) -> str:
    """An exception's text as one line."""
    if isinstance(error, URLError):
        error = error.reason if isinstance(error.reason, BaseException) else error
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{text}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__


def _held(called: str, dataset: Any, classes: tuple[str, ...]) -> Arrays:
    """A set whose images torchvision keeps in memory: (N, 3, H, W), or grey (N, H, W)."""
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4:
        pixels = pixels.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return _arrays(called, pixels, labels, classes)


def _arrays(called: str, pixels: Any, labels: Any, classes: tuple[str, ...]) -> Arrays:
    files = tuple(f"{called}/{row}" for row in range(len(pixels)))
    return Arrays(files, pixels, tuple(int(label) for label in labels), classes)


def _listed(root: Path, dataset: Any, classes: tuple[str, ...]) -> Folder:
    """A set of image files, sorted: torchvision lists some in the order that the disk has them.

    Its own reading of an image is not used: it ignores orientation and transparency. The lists
    are private names in part, the same from torchvision 0.20 to 0.29.
    """
    if hasattr(dataset, "categories"):  # Caltech's, which makes a path when an image is read
        pairs = [(_caltech_file(dataset, row), dataset.y[row]) for row in range(len(dataset))]
    elif hasattr(dataset, "samples") or hasattr(dataset, "_samples"):
        pairs = dataset.samples if hasattr(dataset, "samples") else dataset._samples
    else:
        files = dataset._image_files if hasattr(dataset, "_image_files") else dataset._images
        pairs = list(zip(files, dataset._labels, strict=True))
    named = sorted((Path(file).relative_to(root).as_posix(), int(label)) for file, label in pairs)
    labels = tuple(label for _, label in named)
    return Folder(root, tuple(file for file, _ in named), labels, classes)


def _caltech_file(dataset: Any, row: int) -> Path:
    label, index = dataset.y[row], dataset.index[row]
    if type(dataset).__name__ == "Caltech101":
        folder, file = "101_ObjectCategories", f"image_{index:04d}.jpg"
    else:
        folder, file = "256_ObjectCategories", f"{label + 1:03d}_{index:04d}.jpg"
    return Path(dataset.root, folder, dataset.categories[label], file)


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """torchvision's names (the first of several synonyms), or numbers where it has none."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    if names is None:
        return tuple(str(number) for number in range(count))
    return tuple(name if isinstance(name, str) else name[0] for name in names)


def _joined(name: str, root: Path, parts: list[ImageSet]) -> ImageSet:
    """One set from several splits of files, which must have the same classes."""
    first, *others = parts
    if not others:
        return first
    files: list[tuple[str, int]] = []
    for part in parts:
        assert part.labels is not None and part.classes is not None and first.classes is not None
        different = sorted(set(part.classes) ^ set(first.classes))
        if different:
            raise DataError(
                f"{name}: in {root}, its splits differ in class {different[0]!r}: files are missing"
            )
        files += zip(part.files, part.labels, strict=True)
    files.sort()
    names, labels = (tuple(column) for column in zip(*files, strict=True))
    return Folder(root, names, labels, first.classes)


def _check_labels(name: str, root: Path, part: ImageSet) -> None:
    """There are images, each has a label, and each label has a name."""
    assert part.classes is not None and part.labels is not None
    if not part.files or len(part.files) != len(part.labels):
        raise DataError(
            f"{name}: in {root}, has {len(part.files):,} images and {len(part.labels):,} labels"
        )
    if SETS[name].labelled and not 0 <= min(part.labels) <= max(part.labels) < len(part.classes):
        raise DataError(
            f"{name}: in {root}, labels go from {min(part.labels)} to {max(part.labels)}, "
            f"but there are {len(part.classes)} classes"
        )
