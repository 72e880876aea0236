"""The pixels of a view: crop, flip, resize, blur, low-resolution reduction and colour in batch.

Two back ends compute the same thing. ``matmul`` (GPUs) makes a row and a column matrix for each
view, with the blur and the reduction folded in, and takes two batched products. ``loops`` (CPUs)
goes row by row and takes only the entries of those matrices that are not 0. In float32 they differ
by less than 0.02 of 255.

The recipes change colours first and blur afterwards, on the full view, and clip to [0, 1] after
each change. Here the order is crop, flip, resize, blur, reduction D, colour, clip, solarize,
normalise:

- Blur and D leave constants alone and are linear, the colour is affine per pixel: they commute
  exactly, but for the clipping in between. Contrast is about the mean of the full view without
  blur, as in the recipes.
- Clipping and solarize come after D instead of before it: for patches of 32 in place of 16 that
  moves pixels by 0.2 of 255 on average (photographs, MoCo-v3's second view), and by 2 in the
  views that are solarized.

Against the recipe done with Pillow in 8 bits: 0.3 of 255 on average where colours are not
jittered, 3.8 where they are, half of it from the hue (see `colour`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.data.augment import ViewDraw
from fastcl_cli.data.colour import colour_maps
from fastcl_cli.data.pixels import (
    IMAGENET,
    Chunk,
    Normalisation,
    ViewPart,
    loop_views,
    matmul_views,
)
from fastcl_cli.data.resample import Resize
from fastcl_cli.transfer import to_device

Backend = Literal["auto", "matmul", "loops"]
_ROWS = 2048
"""Views made at once by matrices: bounds the memory that they need besides the result (1 to 2 MB
each of 224 pixels from 256)."""


def prepare_views(
    draws: Sequence[ViewDraw],
    source: int,
    device: torch.device,
    normalise: Normalisation = IMAGENET,
) -> tuple[ViewPart, ...]:
    """All of V views that follows from their random numbers alone: computed on the CPU, before any
    pixel is at hand, in the parts that `render_views` works on at once on ``device``.

    Args:
        draws: the random numbers of the same N images for each view. Boxes are rounded to whole
            pixels of the decoded square.
        source: S, the decoded square's side.
    """
    draw, copies = ViewDraw.stack(draws), len(draws)
    scale = torch.tensor(normalise.std, dtype=torch.float64)[:, None]
    A, B = colour_maps(draw)
    linear, of_mean = (A / (255 * scale)).float(), (B / (255 * scale)).float()
    box = snap(draw.boxes, source)
    at_once = max(1, _ROWS // copies) * copies
    if _backend_of(device) == "loops":
        at_once = max(1, len(draw))
    parts = []
    for start in range(0, len(draw), at_once):
        rows = slice(start, start + at_once)
        sigma = draw.blur[rows]
        blurred = sigma.nonzero()[:, 0]
        part = ViewPart(
            copies,
            box[rows],
            draw.flip[rows],
            linear[rows],
            of_mean[rows],
            blurred,
            sigma[blurred].float(),
            draw.solarize[rows],
        )
        parts.append(part)
    return tuple(parts)


@torch.no_grad()
def render_views(
    images: Tensor,
    parts: Sequence[ViewPart],
    side: int,
    reduction: Tensor | None,
    resize: Resize,
    normalise: Normalisation = IMAGENET,
    backend: Backend = "auto",
) -> Tensor:
    """V normalised views of each image, all of one size.

    Args:
        images: uint8 (N, S, S, 3), decoded squares of the whole images.
        parts: of these N images, from `prepare_views`, on their device.
        side: of the full view, in pixels.
        reduction: D, float32 (s, side) on the images' device, whose rows sum to 1; None stands for
            the identity.
        resize: the kernel of the antialiased resize.
        normalise: as it was given to `prepare_views`.
        backend: "auto" takes "matmul" for images on a GPU and "loops" on the CPU.

    Returns:
        float32 (N, V, 3, s, s) on the images' device, s = side without a reduction. On a GPU where
        float32 products may be computed in TF32, "matmul" computes in float16, which has as many
        bits: within 1/255, and 0.1/255 on average.
    """
    assert images.dtype == torch.uint8 and images.shape[1] == images.shape[2]
    assert reduction is None or reduction.shape[1] == side
    device, copies = images.device, parts[0].copies
    if backend == "auto":
        backend = _backend_of(device)
    render = matmul_views if backend == "matmul" else loop_views
    made: list[Tensor] = []
    row = 0
    with torch.autocast(device.type, enabled=False):
        for part in parts:
            end = row + len(part.flip)
            chosen = images[row // copies : end // copies]
            made.append(render(Chunk(chosen, part, side, reduction, resize, normalise)))
            row = end
    assert row == len(images) * copies
    out = made[0] if len(made) == 1 else torch.cat(made)
    return out.view(-1, copies, *out.shape[1:])


def make_view(
    images: Tensor,
    draw: ViewDraw,
    side: int,
    reduction: Tensor | None,
    resize: Resize,
    normalise: Normalisation = IMAGENET,
    backend: Backend = "auto",
) -> Tensor:
    """`prepare_views` and `render_views` of one view, for images and random numbers both at hand.

    Args:
        draw: the random numbers of these N images, on the CPU.
        reduction: D, (s, side), of any dtype and on any device.

    Returns:
        float32 (N, 3, s, s).
    """
    assert len(draw) == len(images)
    device = images.device
    parts = to_device(prepare_views([draw], images.shape[1], device, normalise), device)
    matrix = None if reduction is None else reduction.to(device, torch.float32)
    return render_views(images, parts, side, matrix, resize, normalise, backend)[:, 0]


def eval_view(
    images: Tensor,
    heights: NDArray[np.int32] | Tensor,
    widths: NDArray[np.int32] | Tensor,
    side: int,
    crop_ratio: float = 0.875,
    normalise: Normalisation = IMAGENET,
    backend: Backend = "auto",
) -> Tensor:
    """The centre crop that features are judged on: no randomness.

    As if the image were resized so that its short side has side / crop_ratio pixels and the middle
    ``side`` x ``side`` cut out, in one bicubic antialiased resize. ``heights`` and ``widths`` are
    the true ones, (N,); the rest as for `make_view`.

    Returns:
        float32 (N, 3, side, side), normalised.
    """
    size = torch.stack([torch.as_tensor(heights), torch.as_tensor(widths)], dim=1).double()
    share = crop_ratio * size.amin(dim=1, keepdim=True) / size
    draw = ViewDraw.plain(torch.cat([(1 - share) / 2, share], dim=1))
    return make_view(images, draw, side, None, "bicubic", normalise, backend)


def snap(boxes: Tensor, source: int) -> Tensor:
    """Boxes as whole pixels of a square of ``source`` pixels: int64 (N, 4), never empty."""
    first = (boxes[:, :2] * source).round().long().clamp(0, source - 1)
    end = ((boxes[:, :2] + boxes[:, 2:]) * source).round().long().clamp(max=source)
    return torch.cat([first, torch.maximum(end - first, torch.ones_like(first))], dim=1)


def _backend_of(device: torch.device) -> Literal["matmul", "loops"]:
    return "loops" if device.type == "cpu" else "matmul"
