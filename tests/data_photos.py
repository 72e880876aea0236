"""Real photographs and small betons for the tests of the data path."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastcl_cli.data.beton import CHECKS, HEADER
from fastcl_cli.data.writer import BetonWriter, page_size


@lru_cache(maxsize=1)
def photos() -> tuple[Image.Image, ...]:
    """scikit-learn's two sample photographs (640 x 427) and two crops of them, RGB."""
    from sklearn.datasets import load_sample_images

    images = [Image.fromarray(image) for image in load_sample_images().images]
    return (*images, images[0].crop((300, 100, 640, 400)), images[1].crop((0, 50, 250, 427)))


def squares(side: int) -> torch.Tensor:
    """The photographs squashed to squares: uint8 (4, side, side, 3)."""
    resized = [np.asarray(photo.resize((side, side), Image.Resampling.BOX)) for photo in photos()]
    return torch.from_numpy(np.stack(resized))


def drop_checksums(data: bytearray) -> None:
    """Make of a beton's bytes what FFCV's own tools would have written."""
    table_at = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    data[table_at - CHECKS.itemsize : table_at] = bytes(CHECKS.itemsize)


def write_beton(path: Path, images: int, seed: int = 0) -> Path:
    """A labelled beton of random crops of the photographs, of different shapes."""
    from io import BytesIO

    random = np.random.default_rng(seed)
    with BetonWriter(path, images, True, page_size(384)) as writer:
        for index in range(images):
            photo = photos()[index % 4]
            width, height = (int(random.integers(100, side + 1)) for side in photo.size)
            left, top = (
                int(random.integers(0, room - size + 1))
                for room, size in zip(photo.size, (width, height), strict=True)
            )
            crop = photo.crop((left, top, left + width, top + height))
            buffer = BytesIO()
            crop.save(buffer, "JPEG", quality=90)
            writer.add(buffer.getvalue(), height, width, index % 5)
        writer.finish()
    return path
