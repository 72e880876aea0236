"""The pixels of views, by either of two back ends (see `views`), and what they work on."""

from __future__ import annotations

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
_CENTRE = 128
"""Of the pixels 0 to 255."""


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


def matmul_views(chunk: Chunk) -> Tensor:
    """view = R · image · Cᵀ, then its colours: float32 (m, 3, s, s).

    All views of an image share its product with their row matrices, stacked. Pixels are about 0
    until then, where 16 bits are finest; as rows of R and C sum to 1, the colour's constant makes
    up for it.
    """
    images, part = chunk.images, chunk.part
    count, source = images.shape[:2]
    rows = len(part.flip)
    top, left, height, width = part.box.unbind(1)
    upright = torch.zeros_like(part.flip)
    dtype = _product_dtype(images.device)
    R = resize_matrices(top, height, upright, source, chunk.side, chunk.resize, dtype)
    C = resize_matrices(left, width, part.flip, source, chunk.side, chunk.resize, dtype)
    X = _centred_planes(images, dtype).view(count, source, 3 * source)
    # The mean of R · X · Cᵀ over its pixels, without making it.
    along_rows = torch.bmm(R.mean(dim=1).view(count, part.copies, source), X)
    means = torch.bmm(along_rows.view(rows, 3, source), C.mean(dim=1)[:, :, None])[:, :, 0]
    after = chunk.reduction
    if len(part.blurred):
        plain = torch.eye(chunk.side, device=images.device) if after is None else after
        blur = blur_matrices(part.sigma, chunk.side, after, dtype)
        after = plain.to(dtype).repeat(rows, 1, 1).index_copy_(0, part.blurred, blur)
    if after is not None:
        R, C = after.to(dtype) @ R, after.to(dtype) @ C
    side = R.shape[1]
    Y = torch.bmm(R.view(count, part.copies * side, source), X)
    view = torch.bmm(Y.view(rows, side * 3, source), C.transpose(1, 2)).view(rows, side, 3, side)
    bias = chunk.bias(means.float() + _CENTRE) + _CENTRE * part.linear.sum(dim=2, keepdim=True)
    space = chunk.space
    return _coloured(view, part.linear, bias, part.solarize, space.low, space.high)


def _product_dtype(device: torch.device) -> torch.dtype:
    """float16 where float32 products may be computed in TF32: that has no more bits, and twice the
    bytes; and whole numbers up to 255 are exact in both."""
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return torch.float16
    return torch.float32


@fused
def _centred_planes(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 (n, S, S, 3) less `_CENTRE`, with the channels of a row one after the other: (n, S, 3,
    S), whole numbers in ``dtype``."""
    return (images.to(dtype) - _CENTRE).transpose(2, 3).contiguous()


@fused
def _coloured(
    pixels: Tensor, linear: Tensor, bias: Tensor, solarize: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """linear · pixel + bias of (m, s, 3, s), by (m, 3, 3) and (m, 3, 1), clipped to [0, 1] and
    inverted where it is brighter than 1/2 and that is asked for, min(x, 1 - x): (m, 3, s, s).

    In normalised colours, so that normalising takes no pass of its own. In 8 bits the recipes
    invert from 128 up, which is everything brighter than 127.5 / 255. The product is written out:
    it is too thin for a GPU's libraries to be fast at.
    """
    mixed = bias[:, :, :, None]
    for j in range(3):
        mixed = mixed + linear[:, :, j, None, None] * pixels[:, None, :, j]
    clipped = torch.minimum(torch.maximum(mixed, low), high)
    inverted = torch.minimum(clipped, low + high - clipped)
    return torch.where(solarize[:, None, None, None], inverted, clipped)


def loop_views(chunk: Chunk) -> Tensor:
    """What `matmul_views` makes, by loops over rows (see `view_loops`), on as many threads as torch
    has."""
    from fastcl_cli.data.view_loops import make_views  # which compiles

    part, space = chunk.part, chunk.space
    count, source = chunk.images.shape[:2]
    rows = len(part.flip)
    # Compiled code would read and write wherever it is told.
    assert rows == count * part.copies and bool((part.box[:, :2] >= 0).all())
    assert bool((part.box[:, :2] + part.box[:, 2:] <= source).all())
    side = chunk.side if chunk.reduction is None else len(chunk.reduction)
    out = torch.empty(rows, 3, side, side)
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
        return out
    # Short pieces: a blurred view takes twice as long as another.
    firsts = range(0, rows, -(-rows // (8 * threads)))
    ends = [*firsts[1:], rows]
    for _ in kept_threads("views", threads).map(make, firsts, ends):
        pass
    return out


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
