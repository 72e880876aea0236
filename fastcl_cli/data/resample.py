"""Resizing and blurring along one axis, as matrices.

Crop, flip, antialiased resize and Gaussian blur are linear and separable, so each is a matrix for
the rows and one for the columns: view = R · image · Cᵀ, different for every image of a batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from fastcl_cli.fused import fused

Resize = Literal["bilinear", "bicubic"]

BLUR_REACH = 8
"""Half the width of the blur's kernel: four of the widest blur's standard deviations."""


@fused
def resize_matrices(
    start: Tensor,
    length: Tensor,
    flip: Tensor,
    source: int,
    side: int,
    resize: Resize,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Antialiased resizing of an interval of ``source`` pixels to ``side``, as Pillow defines it.

    Output pixel i looks at the kernel (triangle, or Keys' cubic with a = -1/2) around its centre,
    widened by the scale where it shrinks; pixels outside of the interval count nothing, and the
    weights are normalised. Equal to ``F.interpolate(antialias=True)`` of the cropped image.

    Args:
        start, length: (N,) whole pixels, on the device to compute on.
        flip: bool (N,), whether the output runs backwards.

    Returns:
        (N, side, source) in ``dtype``, made in float32; rows sum to 1.
    """
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / side
    place = torch.arange(side, dtype=torch.float32, device=start.device)[:, None]
    place = torch.where(flip[:, None, None], side - 1 - place, place)
    pixel = torch.arange(source, dtype=torch.float32, device=start.device) + 0.5
    centre = start + scale * (place + 0.5)
    x = ((pixel - centre) / scale.clamp(min=1)).abs_()
    if resize == "bilinear":
        weights = x.neg_().add_(1).clamp_(min=0)
    else:
        near = ((1.5 * x - 2.5) * x).mul_(x).add_(1)
        far = (((-0.5 * x + 2.5).mul_(x)).sub_(4)).mul_(x).add_(2)
        weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    inside = (pixel > start) & (pixel < start + length)
    weights.mul_(inside)
    return weights.div_(weights.sum(dim=2, keepdim=True)).to(dtype)


def blur_weights(sigma: Tensor) -> Tensor:
    """A Gaussian's weights at the offsets -`BLUR_REACH` .. `BLUR_REACH`, normalised.

    Args:
        sigma: (N,), all > 0, in pixels.

    Returns:
        float32 (N, 2·BLUR_REACH + 1).
    """
    offset = torch.arange(-BLUR_REACH, BLUR_REACH + 1, dtype=torch.float32, device=sigma.device)
    return (-0.5 * (offset / sigma.float()[:, None]) ** 2).softmax(dim=1)


def blur_matrices(
    sigma: Tensor, side: int, reduction: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The same blur as matrices, the border reflected without repeating the edge pixel, and D,
    float32 (s, side), after it: a sum of one shift for each weight, so D is applied to those.

    Returns:
        (N, s, side) in ``dtype``; s = side without a reduction. Rows sum to 1.
    """
    taps = _reflected_taps(side, sigma.device)
    if reduction is not None:
        taps = reduction @ taps
    made = blur_weights(sigma).to(dtype) @ taps.flatten(1).to(dtype)
    return made.view(-1, *taps.shape[1:])


@lru_cache(maxsize=64)
def _reflected_taps(side: int, device: torch.device) -> Tensor:
    """Which pixel each offset of the blur falls on: 0 and 1, float32 (offsets, side, side)."""
    offset = torch.arange(-BLUR_REACH, BLUR_REACH + 1)[:, None]
    place = torch.arange(side) + offset
    if side > 1:
        period = 2 * (side - 1)
        place = place.remainder(period)
        place = torch.minimum(place, period - place)
    else:
        place = torch.zeros_like(place)
    return torch.nn.functional.one_hot(place, side).float().to(device)
