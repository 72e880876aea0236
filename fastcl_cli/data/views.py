"""The pixels of a view: crop, flip, resize, blur, low-resolution reduction and colour in batch.

Two back ends compute the same thing. ``matmul`` (GPUs) makes one row and one column matrix per
image, with the blur and the reduction folded in, and takes two batched products. ``crop`` (CPUs,
where it is several times cheaper) loops over ``F.interpolate(antialias=True)`` of uint8 crops.
They differ by the rounding of the resized pixels to 8 bits, which the ``crop`` back end does as
the recipes do (and which also clips what a bicubic resize overshoots).

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
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.config import IMAGENET_MEAN, IMAGENET_STD
from fastcl_cli.data.augment import ViewDraw
from fastcl_cli.data.colour import colour_maps
from fastcl_cli.data.resample import (
    Resize,
    blur_matrices,
    blur_weights,
    resize_matrices,
)

Backend = Literal["auto", "matmul", "crop"]
_CHUNK = {"matmul": 256, "crop": 32}
"""Images worked on at once: bounds the memory that a view needs besides its result."""


@dataclass(frozen=True)
class _Chunk:
    """Some of the images, and all that is needed to make their views.

    S is the decoded side, V the full view's, s the result's. ``reduction`` is float32 (s, V) or
    None; ``box`` int64 (n, 4) whole pixels, on the CPU; ``linear`` (n, 3, 3) and ``of_mean``
    (n, 3, 3) give from RGB in 0..255 the normalised colour linear·x + of_mean·µ + ``offset``.
    """

    images: Tensor
    draw: ViewDraw
    box: Tensor
    side: int
    reduction: Tensor | None
    resize: Resize
    linear: Tensor
    of_mean: Tensor
    offset: Tensor

    def bias(self, means: Tensor) -> Tensor:
        """The constant of the colour map, (n, 3, 1), from the channel means (n, 3) in 0..255."""
        return self.of_mean @ means[:, :, None] + self.offset


@torch.no_grad()
def make_view(
    images: Tensor,
    draw: ViewDraw,
    side: int,
    reduction: Tensor | None,
    resize: Resize,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    backend: Backend = "auto",
) -> Tensor:
    """One normalised view of each image.

    Args:
        images: uint8 (N, S, S, 3), decoded squares of the whole images.
        draw: the random numbers of these N images, on the CPU. Its boxes are rounded to whole
            pixels of the decoded square.
        side: V, the full view's side in pixels.
        reduction: D, (s, V), whose rows sum to 1; None stands for the identity.
        resize: the kernel of the antialiased resize.
        mean, std: of each channel, in [0, 1].
        backend: "auto" takes "matmul" for images on a GPU and "crop" on the CPU.

    Returns:
        float32 (N, 3, s, s) on the images' device, s = V without a reduction. Where float32
        products are computed in TF32 (torch.set_float32_matmul_precision), so is "matmul".
    """
    assert images.dtype == torch.uint8 and images.shape[1] == images.shape[2]
    assert len(draw) == len(images) and (reduction is None or reduction.shape[1] == side)
    if backend == "auto":
        backend = "crop" if images.device.type == "cpu" else "matmul"
    device = images.device
    scale = torch.tensor(std, dtype=torch.float64)[:, None]
    centre = torch.tensor(mean, dtype=torch.float64)[:, None]
    A, B = colour_maps(draw)
    linear = (A / (255 * scale)).float().to(device)
    of_mean = (B / (255 * scale)).float().to(device)
    offset = (-centre / scale).float().to(device)
    low, high = (((b - centre) / scale).float().to(device)[:, :, None] for b in (0.0, 1.0))
    box = snap(draw.boxes, images.shape[1])
    matrix = None if reduction is None else reduction.to(device, torch.float32)
    result = side if matrix is None else len(matrix)
    out = torch.empty(len(images), 3, result, result, device=device)
    render = _matmul if backend == "matmul" else _crop
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(images), _CHUNK[backend]):
            part = slice(start, start + _CHUNK[backend])
            chunk = _Chunk(
                images[part], draw.rows(part), box[part], side, matrix, resize,
                linear[part], of_mean[part], offset,
            )  # fmt: skip
            render(chunk, out[part])
            _clip_and_solarize(out[part], chunk.draw.solarize, low, high)
    return out


def eval_view(
    images: Tensor,
    heights: NDArray[np.int32] | Tensor,
    widths: NDArray[np.int32] | Tensor,
    side: int,
    crop_ratio: float = 0.875,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
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
    return make_view(images, draw, side, None, "bicubic", mean, std, backend)


def snap(boxes: Tensor, source: int) -> Tensor:
    """Boxes as whole pixels of a square of ``source`` pixels: int64 (N, 4), never empty."""
    first = (boxes[:, :2] * source).round().long().clamp(0, source - 1)
    end = ((boxes[:, :2] + boxes[:, 2:]) * source).round().long().clamp(max=source)
    return torch.cat([first, torch.maximum(end - first, torch.ones_like(first))], dim=1)


def _matmul(chunk: _Chunk, out: Tensor) -> None:
    """view = R · image · Cᵀ, with the colour between the two products.

    The product with the colour's 3 x 3 matrix also turns (rows, columns, RGB) into (RGB, rows,
    columns), so no pixel is moved for its own sake.
    """
    images, device = chunk.images, chunk.images.device
    count, source = images.shape[:2]
    top, left, height, width = chunk.box.to(device, non_blocking=True).unbind(1)
    flip = chunk.draw.flip.to(device, non_blocking=True)
    R = resize_matrices(top, height, torch.zeros_like(flip), source, chunk.side, chunk.resize)
    C = resize_matrices(left, width, flip, source, chunk.side, chunk.resize)
    X = images.reshape(count, source, source * 3).float()
    # The mean of R · X · Cᵀ over its pixels, without making it.
    along_rows = torch.bmm(R.mean(dim=1, keepdim=True), X).view(count, source, 3)
    means = torch.bmm(C.mean(dim=1, keepdim=True), along_rows)[:, 0]
    blurred = chunk.draw.blur.nonzero()[:, 0]
    if len(blurred):
        rows = blurred.to(device)
        blur = blur_matrices(chunk.draw.blur[blurred].to(device), chunk.side)
        R[rows], C[rows] = blur @ R[rows], blur @ C[rows]
    if chunk.reduction is not None:
        R, C = chunk.reduction @ R, chunk.reduction @ C
    side = R.shape[1]
    Y = torch.bmm(R, X).view(count, side * source, 3)
    Z = torch.baddbmm(chunk.bias(means), chunk.linear, Y.transpose(1, 2))
    torch.bmm(
        Z.view(count, 3 * side, source), C.transpose(1, 2), out=out.view(count, 3 * side, side)
    )


def _crop(chunk: _Chunk, out: Tensor) -> None:
    """Crops resized one by one in 8 bits; colour, blur and reduction in batch."""
    count, side = len(chunk.images), chunk.side
    resized = torch.empty(count, 3, side, side, dtype=torch.uint8)
    boxes, flips = chunk.box.tolist(), chunk.draw.flip.tolist()
    for image, (top, left, height, width), flip, target in zip(
        chunk.images, boxes, flips, resized, strict=True
    ):
        crop = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
        view = F.interpolate(crop, (side, side), mode=chunk.resize, antialias=True)[0]
        target.copy_(view.flip(2) if flip else view)
    X = resized.flatten(2).float()
    full = out if chunk.reduction is None else torch.empty(count, 3, side, side)
    flat = full.view(count, 3, side * side)
    torch.bmm(chunk.linear, X, out=flat)
    flat += chunk.bias(X.mean(dim=2))
    blurred = chunk.draw.blur.nonzero()[:, 0]
    sigma = chunk.draw.blur[blurred]
    if chunk.reduction is None:
        _blur(full, blurred, sigma)
        return
    D = chunk.reduction
    torch.matmul(D, full @ D.T, out=out)
    if len(blurred):
        DG = (D @ blur_matrices(sigma, side))[:, None]
        out[blurred] = DG @ (full[blurred] @ DG.mT)


def _blur(views: Tensor, rows: Tensor, sigma: Tensor) -> None:
    """Gaussian blur, in place, of some rows of (n, 3, V, V), one standard deviation for each.

    The same weights as `blur_matrices`, applied on the CPU by OpenCV (which FFCV needs anyway):
    about four times faster than torch's grouped convolution or a dense product.
    """
    if not len(rows):
        return
    import cv2

    planes, kernels = views.numpy(), blur_weights(sigma).numpy()
    border = cv2.BORDER_REFLECT_101
    for row, kernel in zip(rows.tolist(), kernels, strict=True):
        for plane in planes[row]:
            plane[:] = cv2.sepFilter2D(plane, -1, kernel, kernel, borderType=border)


def _clip_and_solarize(out: Tensor, solarize: Tensor, low: Tensor, high: Tensor) -> None:
    """Clip to [0, 1] and invert what is brighter than 1/2, where asked for: min(x, 1 - x).

    In normalised colours, where 0 and 1 are ``low`` and ``high``, (3, 1, 1), so that normalising
    takes no pass of its own. In 8 bits the recipes
    invert from 128 up, which is everything brighter than 127.5 / 255.
    """
    torch.minimum(torch.maximum(out, low, out=out), high, out=out)
    rows = solarize.nonzero()[:, 0].to(out.device)
    if len(rows):
        chosen = out[rows]
        out[rows] = torch.minimum(chosen, low + high - chosen)
