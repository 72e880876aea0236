"""The random numbers of a view, and nothing else: no pixel is touched here.

A `ViewDraw` is drawn for the whole global batch from one explicit generator, with the same number
of draws whatever comes out, so the same seed gives the same views on any number of devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.config import Augmentation

Kind: TypeAlias = Literal["first", "second", "local"]
"""Of a view: the first global one, the second, or one of DINO's small ones."""
_WHICH: dict[Kind, int] = {"first": 0, "second": 1, "local": 2}

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest width / height of a crop."""
TRIES = 10
SIGMA = (0.1, 2.0)
"""Least and greatest standard deviation of the blur, in pixels of the full view."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_DRAWS = 2 * TRIES + 2 + 1 + 1 + 4 + 4 + 1 + 2 + 1


@dataclass(frozen=True, eq=False)
class ViewDraw:
    """What happens to each of N images in one view.

    Attributes:
        boxes: float64 (N, 4), the crop as (top, left, height, width), shares of the true image.
        flip: bool (N,), mirrored left to right.
        factors: float64 (N, 4), of brightness, contrast and saturation (1 = unchanged), and the
            hue's turn (0 = unchanged, 1 = all the way round).
        order: int64 (N, 4), the order in which those four are applied.
        jitter: bool (N,), whether they are.
        grayscale: bool (N,).
        blur: float64 (N,), standard deviation in pixels of the full view; 0 = no blur.
        solarize: bool (N,).
    """

    boxes: Tensor
    flip: Tensor
    factors: Tensor
    order: Tensor
    jitter: Tensor
    grayscale: Tensor
    blur: Tensor
    solarize: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def rows(self, index: slice | Tensor) -> ViewDraw:
        """The draws of some of the images, e.g. of one device's share of the batch."""
        return ViewDraw(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def stack(draws: Sequence[ViewDraw]) -> ViewDraw:
        """V draws of the same N images as one of N·V: all views of the first image, then of the
        next."""
        columns = ([getattr(draw, field.name) for draw in draws] for field in fields(ViewDraw))
        return ViewDraw(*(torch.stack(column, dim=1).flatten(0, 1) for column in columns))

    @staticmethod
    def plain(boxes: Tensor) -> ViewDraw:
        """Crops alone: no flip, no change of colour, no blur. ``boxes`` as in the attributes."""
        count = len(boxes)
        no = torch.zeros(count, dtype=torch.bool)
        return ViewDraw(
            boxes=boxes,
            flip=no,
            factors=torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64).repeat(count, 1),
            order=torch.arange(4).repeat(count, 1),
            jitter=no,
            grayscale=no,
            blur=torch.zeros(count, dtype=torch.float64),
            solarize=no,
        )


def draw_views(
    augmentation: Augmentation,
    view: Kind,
    heights: NDArray[np.int32] | Tensor,
    widths: NDArray[np.int32] | Tensor,
    generator: torch.Generator,
) -> ViewDraw:
    """Draw one view of each of N images.

    Args:
        augmentation: the recipe.
        view: which of its views: the first or second global one, or a local one.
        heights: (N,) true heights of the images; any unit, only the ratio to ``widths`` counts.
        widths: (N,) true widths.
        generator: a CPU generator; it moves by the same amount whatever is drawn.
    """
    which = _WHICH[view]
    count = len(heights)
    uniform = torch.rand(count, _DRAWS, dtype=torch.float64, generator=generator)
    area, aspect, place, flip, jitter, factor, order, gray, blur, solarize = torch.split(
        uniform, [TRIES, TRIES, 2, 1, 1, 4, 4, 1, 2, 1], dim=1
    )
    strength = augmentation.jitter
    low, high = torch.tensor(
        [
            [max(0.0, 1 - strength.brightness), 1 + strength.brightness],
            [max(0.0, 1 - strength.contrast), 1 + strength.contrast],
            [max(0.0, 1 - strength.saturation), 1 + strength.saturation],
            [-strength.hue, strength.hue],
        ],
        dtype=torch.float64,
    ).T
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * blur[:, 1]
    scale = augmentation.local_crop if view == "local" else augmentation.crop
    return ViewDraw(
        boxes=crop_boxes(
            torch.as_tensor(heights).double(), torch.as_tensor(widths).double(), scale,
            area, aspect, place,
        ),
        flip=flip[:, 0] < augmentation.flip,
        factors=low + (high - low) * factor,
        order=order.argsort(dim=1),
        jitter=jitter[:, 0] < strength.probability,
        grayscale=gray[:, 0] < augmentation.grayscale,
        blur=torch.where(blur[:, 0] < augmentation.blur[which], sigma, 0.0),
        solarize=solarize[:, 0] < augmentation.solarize[which],
    )  # fmt: skip


def crop_boxes(
    heights: Tensor, widths: Tensor, scale: tuple[float, float],
    area: Tensor, aspect: Tensor, place: Tensor,
) -> Tensor:  # fmt: skip
    """RandomResizedCrop's boxes (Szegedy et al., arXiv 1409.4842, section 6; torchvision's rule).

    The area is uniform in ``scale``, the logarithm of width / height uniform between those of
    `ASPECT`; the first of ten tries that fits into the image counts, and where none does, the
    largest centred crop of an allowed aspect. Unlike torchvision's, boxes are not rounded to whole
    pixels of the stored image: the view rounds them to the decoded one's.

    Args:
        heights, widths: float64 (N,).
        scale: least and greatest share of the image's area.
        area, aspect: float64 (N, TRIES), uniform in [0, 1).
        place: float64 (N, 2), likewise, for the top and the left.

    Returns:
        float64 (N, 4): top, left, height, width as shares of the image.
    """
    ratio = (math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * aspect).exp()
    share = scale[0] + (scale[1] - scale[0]) * area
    image_ratio = (widths / heights)[:, None]
    # height = sqrt(share·H·W / ratio) over H, width = sqrt(share·H·W · ratio) over W
    high = (share * image_ratio / ratio).sqrt()
    wide = (share * ratio / image_ratio).sqrt()
    fits = (high <= 1) & (wide <= 1)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    box = torch.cat([high.gather(1, first), wide.gather(1, first)], dim=1)
    fallback = torch.cat(
        [(image_ratio / ASPECT[0]).clamp(max=1), (ASPECT[1] / image_ratio).clamp(max=1)], dim=1
    )
    found = fits.any(dim=1, keepdim=True)
    size = torch.where(found, box, fallback)
    return torch.cat([torch.where(found, place, 0.5) * (1 - size), size], dim=1)
