"""The kernels of `short_attention`, in Triton.

A program has one head of a tile, which holds whole images. With S = scale·Q·Kᵀ, P its softmax by
rows and O = P·V, the gradients are dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P ∘ (dP - rowsum(P ∘ dP)),
dQ = scale·dS·K and dK = scale·dSᵀ·Q.
"""

# Triton's language is not typed.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastcl_cli.model.short_attention import MOST_TOKENS

_WARPS = 4


def forward(qkv: Tensor, tiles: Tensor, scale: float) -> Tensor:
    """(N, 3, H, d), contiguous, to (N, H, d)."""
    N, _, H, d = qkv.shape
    out = qkv.new_empty(N, H, d)
    grid = (len(tiles), H)
    _forward[grid](qkv, out, tiles, scale, H, d, MOST_TOKENS, num_warps=_WARPS)
    return out


def backward(qkv: Tensor, upstream: Tensor, tiles: Tensor, scale: float) -> Tensor:
    """(N, 3, H, d) and (N, H, d), both contiguous, to the shape of the first."""
    _, _, H, d = qkv.shape
    gradient = torch.empty_like(qkv)
    grid = (len(tiles), H)
    _backward[grid](qkv, upstream, gradient, tiles, scale, H, d, MOST_TOKENS, num_warps=_WARPS)
    return gradient


@triton.jit
def _forward(qkv, out, tiles, scale, H: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr):
    image, valid, at, own = _place(tiles, H, D, TILE)
    q = tl.load(qkv + at, mask=valid, other=0.0)
    k = tl.load(qkv + at + H * D, mask=valid, other=0.0)
    v = tl.load(qkv + at + 2 * H * D, mask=valid, other=0.0)
    p = _weights(q, k, image, scale)
    tl.store(out + own, tl.dot(p.to(v.dtype), v).to(v.dtype), mask=valid)


@triton.jit
def _backward(
    qkv, upstream, gradient, tiles, scale, H: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr
):
    image, valid, at, own = _place(tiles, H, D, TILE)
    q = tl.load(qkv + at, mask=valid, other=0.0)
    k = tl.load(qkv + at + H * D, mask=valid, other=0.0)
    v = tl.load(qkv + at + 2 * H * D, mask=valid, other=0.0)
    do = tl.load(upstream + own, mask=valid, other=0.0)
    p = _weights(q, k, image, scale)
    dp = tl.dot(do, tl.trans(v))
    ds = (scale * p * (dp - tl.sum(p * dp, 1)[:, None])).to(q.dtype)
    tl.store(gradient + at, tl.dot(ds, k).to(q.dtype), mask=valid)
    tl.store(gradient + at + H * D, tl.dot(tl.trans(ds), q).to(q.dtype), mask=valid)
    dv = tl.dot(tl.trans(p.to(v.dtype)), do).to(v.dtype)
    tl.store(gradient + at + 2 * H * D, dv, mask=valid)


@triton.jit
def _place(tiles, H: tl.constexpr, D: tl.constexpr, TILE: tl.constexpr):
    """Which image a tile's rows are of, which rows there are, and where their queries and their
    outputs are."""
    tile = tiles + 3 * tl.program_id(0)
    first, used, tokens = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    row = tl.arange(0, TILE)
    inner = tl.program_id(1) * D + tl.arange(0, D)[None, :]
    place = (first + row).to(tl.int64)[:, None]
    return (
        row // tokens,
        (row < used)[:, None],
        place * (3 * H * D) + inner,
        place * (H * D) + inner,
    )


@triton.jit
def _weights(q, k, image, scale):
    """The softmax over the tokens of a token's own image. What fills a tile up belongs to images
    of its own, so every row has something to attend to."""
    s = scale * tl.dot(q, tl.trans(k))
    s = tl.where(image[:, None] == image[None, :], s, float("-inf"))
    p = tl.exp(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]
