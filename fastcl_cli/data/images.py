"""Finding image files, and turning any of them into plain 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from fastcl_cli.data.beton import MAX_PIXELS
from fastcl_cli.errors import DataError


@dataclass(frozen=True)
class Folder:
    """The image files of a folder.

    Attributes:
        root: the folder.
        files: paths relative to ``root``, sorted.
        labels: the class of each file, or None where the images lie in ``root`` itself.
        classes: the names of the classes, sorted: the subfolders of ``root``.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None

    def select(self, rows: Sequence[int]) -> Folder:
        """The same folder with some of its files."""
        labels = None if self.labels is None else tuple(self.labels[row] for row in rows)
        return Folder(self.root, tuple(self.files[row] for row in rows), labels, self.classes)

    def image(self, row: int) -> Path:
        """Where an image lies, for `load_rgb`."""
        return self.root / self.files[row]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images held in memory, as small data sets come.

    Attributes:
        files: what each image is called, as it has no file of its own.
        pixels: uint8 (N, height, width) grey or (N, height, width, 3) RGB.
        labels: the class of each image, or None.
        classes: the names of the classes 0, 1, ..., or None without labels.
    """

    files: tuple[str, ...]
    pixels: NDArray[np.uint8]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None

    def image(self, row: int) -> NDArray[np.uint8]:
        """An image's pixels, for `load_rgb`."""
        pixels: NDArray[np.uint8] = self.pixels[row]
        return pixels


ImageSet = Folder | Arrays


def list_folder(root: Path, classes: Sequence[str] | None = None) -> Folder:
    """List the images of a folder with one subfolder per class, or of a flat one (no labels).

    A file counts as an image by its ending; whether it can be read is seen when it is. Hidden
    files are left out, links are followed.

    Args:
        classes: the class names to number the labels by (a validation set's labels must be its
            training set's); by default the subfolders that hold images.

    Raises:
        DataError: no such folder, no images, images both beside and in subfolders, or a subfolder
            that is not among ``classes``.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder", "name a folder of images, or a beton")
    endings = _endings()
    try:
        found = sorted(_walk(root, endings))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not found:
        raise DataError(
            f"{root}: holds no images", "images end in .jpg, .png, .webp, ... (what Pillow reads)"
        )
    flat = [name for name in found if "/" not in name]
    if len(flat) == len(found):
        return Folder(root, tuple(found), None, None)
    if flat:
        raise DataError(
            f"{root}: holds images of its own ({flat[0]}) beside class folders",
            "move every image into the folder of its class, or all into one folder",
        )
    names = [name.split("/", 1)[0] for name in found]
    known = sorted(set(names)) if classes is None else list(classes)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise DataError(
            f"{root}: class {unknown[0]!r} is not among the {len(known)} of the training set",
            "training and validation folders need the same class names",
        )
    number = {name: index for index, name in enumerate(known)}
    return Folder(root, tuple(found), tuple(number[name] for name in names), tuple(known))


def _endings() -> frozenset[str]:
    return frozenset(Image.registered_extensions())


def _walk(root: Path, endings: frozenset[str]) -> list[str]:
    """Image files below ``root``, relative, with forward slashes."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=fail):
        here = Path(folder)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
        prefix = here.relative_to(root).as_posix()
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings:  # noqa: PTH122
                found.append(name if prefix == "." else f"{prefix}/{name}")
    return found


class BadImageError(Exception):
    """An image that cannot be used; the text says why, in a few words."""


def load_rgb(image: Path | NDArray[np.uint8], max_side: int) -> Image.Image:
    """Decode an image file, or take pixels, to 8-bit RGB, its long side at most ``max_side``.

    The first frame; turned as its EXIF orientation says; transparency on white; 16 bits scaled to
    8; palettes, grey, CMYK and the like converted.

    Args:
        image: a file, or uint8 (height, width) or (height, width, 3).
        max_side: in pixels.

    Raises:
        BadImageError: it is empty, damaged, too large, or of a kind that has no plain RGB.
    """
    if isinstance(image, Path):
        return _load_file(image, max_side)
    return _to_rgb(Image.fromarray(image), max_side)


def _load_file(path: Path, max_side: int) -> Image.Image:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise BadImageError("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data)) as image:
                return _to_rgb(image, max_side)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"has more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise BadImageError("needs more memory than there is") from None
    except Exception as error:  # Pillow's decoders raise whatever a hostile file makes them
        raise BadImageError(f"is damaged: {error}") from error


def _to_rgb(image: Image.Image, max_side: int) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"has {width} x {height} pixels; {MAX_PIXELS:,} are allowed")
    if width < 1 or height < 1:
        raise BadImageError("has no pixels")
    image.load()
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I") or turned.mode == "F":
        turned = _from_wide(turned)
    if turned.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        white = Image.new("RGBA", turned.size, (255, 255, 255, 255))
        turned = Image.alpha_composite(white, turned)
    rgb = turned.convert("RGB")
    long = max(rgb.size)
    if long > max_side:
        width, height = (max(1, round(side * max_side / long)) for side in rgb.size)
        rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return rgb


def _from_wide(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (modes "I;16" and, within its range, "I") to 8 bits."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadImageError(f"has pixels of mode {image.mode!r} outside of 16 bits")
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
