"""The kernels of `short_attention`, in Triton.

A program has one head of as many whole images as fit into a tile. With S = scale·Q·Kᵀ, P its
softmax by rows and O = P·V, the gradients are dV = Pᵀ·dO, dP = dO·Vᵀ,
dS = P ∘ (dP - rowsum(P ∘ dP)), dQ = scale·dS·K and dK = scale·dSᵀ·Q.
"""

# Triton's language is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILES = (16, 32, 64)


def forward(qkv: Tensor, scale: float) -> Tensor:
    """(B, T, 3, H, d), contiguous, to (B, T, H, d)."""
    B, T, _, H, d = qkv.shape
    out = qkv.new_empty(B, T, H, d)
    tile, images = _tile(T)
    _forward[(-(-B // images), H)](
        qkv, out, B * T, T, images * T, scale, H, d, tile, num_warps=_warps(tile)
    )
    return out


def backward(qkv: Tensor, upstream: Tensor, scale: float) -> Tensor:
    """(B, T, 3, H, d) and (B, T, H, d), both contiguous, to the shape of the first."""
    B, T, _, H, d = qkv.shape
    gradient = torch.empty_like(qkv)
    tile, images = _tile(T)
    _backward[(-(-B // images), H)](
        qkv, upstream, gradient, B * T, T, images * T, scale, H, d, tile, num_warps=_warps(tile)
    )
    return gradient


def _tile(tokens: int) -> tuple[int, int]:
    """Tokens of the tile that images of so many fill best, the smallest of equals; and how many
    images."""
    best = max(_TILES, key=lambda tile: (tile // tokens * tokens / tile, -tile))
    return best, best // tokens


def _warps(tile: int) -> int:
    return 4 if tile == 64 else 1


@triton.jit
def _forward(
    qkv, out, rows, tokens, used, scale, H: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr
):
    row = tl.arange(0, TILE)
    valid, at, own = _place(row, rows, used, H, D)
    q = tl.load(qkv + at, mask=valid, other=0.0)
    k = tl.load(qkv + at + H * D, mask=valid, other=0.0)
    v = tl.load(qkv + at + 2 * H * D, mask=valid, other=0.0)
    p = _weights(q, k, row // tokens, scale)
    tl.store(out + own, tl.dot(p.to(v.dtype), v).to(v.dtype), mask=valid)


@triton.jit
def _backward(
    qkv, upstream, gradient, rows, tokens, used, scale,
    H: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.arange(0, TILE)
    valid, at, own = _place(row, rows, used, H, D)
    q = tl.load(qkv + at, mask=valid, other=0.0)
    k = tl.load(qkv + at + H * D, mask=valid, other=0.0)
    v = tl.load(qkv + at + 2 * H * D, mask=valid, other=0.0)
    do = tl.load(upstream + own, mask=valid, other=0.0)
    p = _weights(q, k, row // tokens, scale)
    dp = tl.dot(do, tl.trans(v))
    ds = (scale * p * (dp - tl.sum(p * dp, 1)[:, None])).to(q.dtype)
    tl.store(gradient + at, tl.dot(ds, k).to(q.dtype), mask=valid)
    tl.store(gradient + at + H * D, tl.dot(tl.trans(ds), q).to(q.dtype), mask=valid)
    dv = tl.dot(tl.trans(p.to(v.dtype)), do).to(v.dtype)
    tl.store(gradient + at + 2 * H * D, dv, mask=valid)


@triton.jit
def _place(row, rows, used, H: tl.constexpr, D: tl.constexpr):
    """Which of a tile's rows there are, where their queries are, and where their outputs."""
    place = tl.program_id(0) * used + row
    valid = ((row < used) & (place < rows))[:, None]
    inner = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    place = place.to(tl.int64)[:, None]
    return valid, place * (3 * H * D) + inner, place * (H * D) + inner


@triton.jit
def _weights(q, k, image, scale):
    """The softmax over the tokens of a token's own image. What fills a tile up belongs to images
    of its own, so every row has something to attend to."""
    s = scale * tl.dot(q, tl.trans(k))
    s = tl.where(image[:, None] == image[None, :], s, float("-inf"))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]
