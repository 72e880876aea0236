"""Self-attention among few tokens on a GPU, several images at a time and whatever their shapes.

The libraries' attention kernels work on tiles of 64 or 128 tokens of one image and one head. A
compressed view has fewer (26 with half of its patches of 32 pixels, a local crop 5), and a tile of
them costs nearly as much as a full one. Here a tile holds as many whole images as fit; a token
attends to those of its own image, which is a matter of where the mask is. All of a tile stays on
the chip: the forward pass reads each query, key and value once, and the backward pass makes the
attention matrix again instead of storing anything.

Everything else in a block treats each token alone. So images of different shapes (global and local
views) can go through it in one row of tokens, and only their tiles differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, int]
"""Images, and tokens of each."""

MOST_TOKENS = 64
"""Of an image: a tile has so many."""
_HEAD_WIDTHS = (16, 32, 64, 128)
"""That the kernels are written for: powers of two, and products take 16 at least."""


class ShortAttention(Attention):  # type: ignore[misc]
    """timm's attention layer, for images of one shape or, with ``tiles``, for a row of tokens.

    Attributes:
        tiles: of `tiles_of`, which images the tokens belong to; None: each image has its row.
    """

    tiles: Tensor | None = None

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """(B, T, D) to (B, T, D), with ``tiles`` (1, N, D) to (1, N, D). Any other argument than
        ``x`` must be at its default."""
        assert not any([*rest, *named.values()])
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B * T, 3, self.num_heads, self.head_dim)
        if self.tiles is not None:
            out: Tensor = short_attention(qkv, self.tiles, self.scale)
        else:
            q, k, v = qkv.unflatten(0, (B, T)).permute(2, 0, 3, 1, 4).unbind(0)
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        projected: Tensor = self.proj(out.reshape(B, T, -1))
        return projected


def use_short_attention(block: nn.Module) -> bool:
    """Have a timm block's attention done here; whether it is plain enough for that."""
    layer = getattr(block, "attn", None)
    if layer is None or type(layer) is not Attention or find_spec("triton") is None:
        return type(layer) is ShortAttention
    extras = (getattr(layer, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    plain = all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
    drops = layer.attn_drop.p or layer.proj_drop.p
    if not plain or drops or layer.head_dim not in _HEAD_WIDTHS:
        return False
    layer.__class__ = ShortAttention  # it has the same parts, under the same names
    return True


def use_timm_attention(block: nn.Module) -> None:
    """Undo `use_short_attention`."""
    layer = getattr(block, "attn", None)
    if type(layer) is ShortAttention:
        layer.__class__ = Attention


@lru_cache(maxsize=256)
def tiles_of(shapes: Sequence[Shape], device: torch.device) -> Tensor:
    """Where the tiles of images of these shapes are, one shape after the other in a row of tokens:
    int32 (tiles, 3), the first token, the number of tokens, and the tokens of an image.

    Made once: to copy it at every step would wait for the GPU.
    """
    tiles, start = [], 0
    for images, tokens in shapes:
        step, end = MOST_TOKENS // tokens * tokens, start + images * tokens
        tiles += [(at, min(step, end - at), tokens) for at in range(start, end, step)]
        start = end
    return torch.tensor(tiles, dtype=torch.int32, device="cpu").to(device)


@torch.library.custom_op("fastcl::short_attention", mutates_args=())
def short_attention(qkv: Tensor, tiles: Tensor, scale: float) -> Tensor:
    """softmax(scale · Q·Kᵀ)·V of each image and head.

    Args:
        qkv: (N, 3, H, d), queries, keys and values of a row of tokens.
        tiles: of these, from `tiles_of`.

    Returns:
        (N, H, d) in the dtype of ``qkv``; sums and the softmax are in float32.
    """
    from fastcl_cli.model.short_attention_kernels import forward

    return forward(qkv.contiguous(), tiles, scale)


@torch.library.custom_op("fastcl::short_attention_backward", mutates_args=())
def _backward(qkv: Tensor, upstream: Tensor, tiles: Tensor, scale: float) -> Tensor:
    """The gradient by ``qkv``, in its shape and dtype, from that by the output."""
    from fastcl_cli.model.short_attention_kernels import backward

    return backward(qkv.contiguous(), upstream.contiguous(), tiles, scale)


@short_attention.register_fake
def _(qkv: Tensor, tiles: Tensor, scale: float) -> Tensor:
    N, _, H, d = qkv.shape
    return qkv.new_empty(N, H, d)


@_backward.register_fake
def _(qkv: Tensor, upstream: Tensor, tiles: Tensor, scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
    qkv, tiles, ctx.scale = inputs
    ctx.save_for_backward(qkv, tiles)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
    qkv, tiles = ctx.saved_tensors
    return _backward(qkv, upstream, tiles, ctx.scale), None, None


short_attention.register_autograd(_differentiate, setup_context=_keep)
