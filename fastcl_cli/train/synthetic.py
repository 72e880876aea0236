"""Images for timing steps where there is no data."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from fastcl_cli.config import IMAGENET_IMAGES
from fastcl_cli.data.loader import Decoded


class SyntheticImages:
    """Images that are not there, of a packed photograph's usual size."""

    images = IMAGENET_IMAGES
    heights = np.full(images, 288, np.int32)
    widths = np.full(images, 384, np.int32)


class SyntheticLoader:
    """Random pixels in memory in place of a `DecodedLoader`: every batch shows the same ones."""

    def __init__(self, side: int) -> None:
        self._side = side

    @contextmanager
    def stream(
        self, indices: NDArray[np.int64], batch_size: int
    ) -> Generator[Iterator[Decoded], None, None]:
        """As `DecodedLoader.stream`; nothing is decoded."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, self._side, self._side, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        if torch.cuda.is_available():
            pixels = pixels.pin_memory()
        yield (
            Decoded(pixels, torch.from_numpy(indices[start : start + batch_size]))
            for start in range(0, len(indices), batch_size)
        )
