"""Data sets that come with a package: today scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from fastcl_cli.data.images import Arrays
from fastcl_cli.errors import MissingLibraryError
from fastcl_cli.extras import pip_install

BUILTIN = ("digits",)
_DIGITS_TRAIN = 1000
_DIGITS_SIDE = 32


def digits(split: Literal["train", "val"]) -> Arrays:
    """The 1,797 digits of 8 x 8 pixels, in file order: the first 1,000 train, 797 are held out.

    Pixels 0..16 become 0..255; enlarged to 32 x 32, bicubic.

    Raises:
        MissingLibraryError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingLibraryError(
            "the built-in data set 'digits' needs scikit-learn", pip_install("digits")
        ) from error
    content = load_digits()
    rows = slice(None, _DIGITS_TRAIN) if split == "train" else slice(_DIGITS_TRAIN, None)
    small = np.rint(content.images[rows] * (255 / 16)).astype(np.uint8)
    size = (_DIGITS_SIDE, _DIGITS_SIDE)
    pixels = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in small]
    return Arrays(
        files=tuple(f"digits/{split}/{row}" for row in range(len(pixels))),
        pixels=np.stack([np.asarray(image) for image in pixels]),
        labels=tuple(int(label) for label in content.target[rows]),
        classes=tuple(str(digit) for digit in range(10)),
    )
