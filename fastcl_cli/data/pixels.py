"""The pixels of views, by either of two back ends (see `views`), and what they work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.config import IMAGENET_MEAN, IMAGENET_STD
from fastcl_cli.data.resample import BLUR_REACH, Resize, blur_matrices, resize_matrices
from fastcl_cli.data.threads import kept_threads
from fastcl_cli.fused import fused

if TYPE_CHECKING:
    from fastcl_cli.data.view_loops import Band


@dataclass(frozen=True, slots=True)
class Normalisation:
    """``mean`` and ``std`` of each channel, in [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


IMAGENET = Normalisation()


@dataclass(frozen=True, eq=False)
class ViewPart:
    """What decides the V views of some images, whatever the views' side. Row i·V + v of the m in
    each tensor is view v of image i.

    Attributes:
        copies: V.
        box: int64 (m, 4), top, left, height and width of the crop in whole pixels.
        flip: bool (m,).
        linear, of_mean: float32 (m, 3, 3), which make from RGB in 0..255 the normalised colour
            linear·x + of_mean·µ + a constant of the normalisation.
        blurred: int64 (k,), the rows that are blurred.
        sigma: float32 (k,), the blur's standard deviation for each in pixels of the full view.
        solarize: bool (m,).
    """

    copies: int
    box: Tensor
    flip: Tensor
    linear: Tensor
    of_mean: Tensor
    blurred: Tensor
    sigma: Tensor
    solarize: Tensor


@dataclass(frozen=True)
class Space:
    """Normalised colours: ``offset`` is that of 0, (3, 1), and ``low`` and ``high`` are those of 0
    and 1, (3, 1, 1)."""

    offset: Tensor
    low: Tensor
    high: Tensor


@lru_cache(maxsize=16)
def colour_space(normalise: Normalisation, device: torch.device) -> Space:
    scale = torch.tensor(normalise.std, dtype=torch.float64)[:, None]
    centre = torch.tensor(normalise.mean, dtype=torch.float64)[:, None]
    low, high = ((b - centre) / scale for b in (0.0, 1.0))
    made = ((-centre / scale), low[:, :, None], high[:, :, None])
    return Space(*(value.float().to(device) for value in made))


@dataclass(frozen=True)
class Chunk:
    """Some of the images, uint8 (n, S, S, 3), and all that is needed to make their views (see
    `views.render_views`)."""

    images: Tensor
    part: ViewPart
    side: int
    reduction: Tensor | None
    resize: Resize
    normalise: Normalisation

    @property
    def space(self) -> Space:
        return colour_space(self.normalise, self.images.device)

    def bias(self, means: Tensor) -> Tensor:
        """The constant of the colour map, (m, 3, 1), from the channel means (m, 3) in 0..255."""
        return self.part.of_mean @ means[:, :, None] + self.space.offset


def matmul_views(chunk: Chunk, out: Tensor) -> None:
    """view = R · image · Cᵀ, with the colour between the two products, into (m, 3, s, s); neither
    clipped nor solarized yet (`finish_matmul_views`).

    All views of an image share its product with their row matrices, stacked. The colour also turns
    (rows, columns, RGB) into (RGB, rows, columns), so no pixel is moved for its own sake.
    """
    images, part = chunk.images, chunk.part
    count, source = images.shape[:2]
    rows = len(part.flip)
    top, left, height, width = part.box.unbind(1)
    upright = torch.zeros_like(part.flip)
    dtype = _product_dtype(images.device)
    R = resize_matrices(top, height, upright, source, chunk.side, chunk.resize).to(dtype)
    C = resize_matrices(left, width, part.flip, source, chunk.side, chunk.resize).to(dtype)
    X = images.view(count, source, source * 3).to(dtype)
    # The mean of R · X · Cᵀ over its pixels, without making it.
    along_rows = torch.bmm(R.mean(dim=1).view(count, part.copies, source), X)
    means = torch.bmm(C.mean(dim=1, keepdim=True), along_rows.view(rows, source, 3))[:, 0].float()
    if len(part.blurred):
        blur = blur_matrices(part.sigma, chunk.side).to(dtype)
        for matrices in (R, C):
            matrices.index_copy_(0, part.blurred, blur @ matrices.index_select(0, part.blurred))
    if chunk.reduction is not None:
        D = chunk.reduction.to(dtype)
        R, C = D @ R, D @ C
    side = R.shape[1]
    Y = torch.bmm(R.view(count, part.copies * side, source), X)
    Z = _recolour(Y.view(rows, side * source, 3), part.linear, chunk.bias(means))
    view = torch.bmm(Z.view(rows, 3 * side, source), C.transpose(1, 2))
    out.view(rows, 3 * side, side).copy_(view)


def _product_dtype(device: torch.device) -> torch.dtype:
    """float16 where float32 products may be computed in TF32: that has no more bits, and twice the
    bytes; and whole numbers up to 255 are exact in both."""
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return torch.float16
    return torch.float32


@fused
def _recolour(pixels: Tensor, linear: Tensor, bias: Tensor) -> Tensor:
    """linear · pixel + bias of (m, P, 3), by (m, 3, 3) and (m, 3, 1): (m, 3, P), in the dtype of
    the pixels.

    Written out: as a product of matrices it is too thin for a GPU's libraries to be fast at.
    """
    red, green, blue = pixels.unbind(2)
    channels = []
    for i in range(3):
        weight = linear[:, i, :, None]
        of_red, of_green, of_blue = weight[:, 0], weight[:, 1], weight[:, 2]
        channels.append(of_red * red + of_green * green + of_blue * blue + bias[:, i])
    return torch.stack(channels, dim=1).to(pixels.dtype)


def finish_matmul_views(out: Tensor, parts: Sequence[ViewPart], space: Space) -> None:
    """Clip and solarize what `matmul_views` has made of all ``parts``, in place."""
    solarize = torch.cat([part.solarize for part in parts])
    _clip_and_solarize(out, solarize, space.low, space.high)


@fused
def _clip_and_solarize(out: Tensor, solarize: Tensor, low: Tensor, high: Tensor) -> None:
    """Clip to [0, 1] and invert what is brighter than 1/2, where asked for: min(x, 1 - x).

    In normalised colours, so that normalising takes no pass of its own. In 8 bits the recipes
    invert from 128 up, which is everything brighter than 127.5 / 255.
    """
    clipped = torch.minimum(torch.maximum(out, low), high)
    inverted = torch.minimum(clipped, low + high - clipped)
    out.copy_(torch.where(solarize[:, None, None, None], inverted, clipped))


def loop_views(chunk: Chunk, out: Tensor) -> None:
    """What `matmul_views` and `finish_matmul_views` make, by loops over rows (see `view_loops`), on
    as many threads as torch has."""
    from fastcl_cli.data.view_loops import make_views  # which compiles

    part, space = chunk.part, chunk.space
    count, source = chunk.images.shape[:2]
    rows = len(part.flip)
    # Compiled code would read and write wherever it is told.
    assert rows == count * part.copies == len(out) and bool((part.box[:, :2] >= 0).all())
    assert bool((part.box[:, :2] + part.box[:, 2:] <= source).all())
    images = _array(chunk.images.reshape(count, source, 3 * source))
    box, flip, linear, of_mean = map(_array, (part.box, part.flip, part.linear, part.of_mean))
    sigma = _array(torch.zeros(rows).index_copy_(0, part.blurred, part.sigma))
    solarize = _array(part.solarize)
    reduction = _band(torch.empty(0, 1) if chunk.reduction is None else chunk.reduction)
    offset, low, high = (_array(c.view(3)) for c in (space.offset, space.low, space.high))

    def make(first: int, end: int) -> None:
        make_views(
            images, part.copies, (first, end), box, flip, linear, of_mean, sigma, solarize,
            chunk.resize == "bicubic", chunk.side, reduction, (offset, low, high), BLUR_REACH,
            out.numpy(),
        )  # fmt: skip

    threads = torch.get_num_threads()
    if threads == 1:
        make(0, rows)
        return
    # Short pieces: a blurred view takes twice as long as another.
    firsts = range(0, rows, -(-rows // (8 * threads)))
    ends = [*firsts[1:], rows]
    for _ in kept_threads("views", threads).map(make, firsts, ends):
        pass


def _array(tensor: Tensor) -> NDArray[Any]:
    """The same numbers for compiled code, which would be compiled again for another layout."""
    return tensor.contiguous().numpy()


def _band(matrix: Tensor) -> Band:
    """A matrix, (s, side), as a band as wide as its widest row."""
    used = (matrix != 0).to(torch.uint8)
    count, side = matrix.shape
    first = used.argmax(dim=1)
    end = side - used.flip(1).argmax(dim=1)
    width = int((end - first).max()) if count else 1
    first = first.clamp(max=side - width)
    weights = matrix.gather(1, first[:, None] + torch.arange(width))
    return _array(first), _array(weights.float())
