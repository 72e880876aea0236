"""Self-attention among few tokens on a GPU, several images at a time.

The libraries' attention kernels work on tiles of 64 or 128 tokens of one image and one head. A
compressed view has fewer (26 with half of its patches of 32 pixels, a local crop 5), and a tile of
them costs nearly as much as a full one. Here a tile holds as many whole images as fit; a token
attends to those of its own image, which is a matter of where the mask is. All of a tile stays on
the chip: the forward pass reads each query, key and value once, and the backward pass makes the
attention matrix again instead of storing anything.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

MOST_TOKENS = 64
_HEAD_WIDTHS = (16, 32, 64, 128)
"""That the kernels are written for: powers of two, and products take 16 at least."""


class ShortAttention(Attention):  # type: ignore[misc]
    """timm's attention layer, whose forward pass is that of this module where tokens are few and
    its products are in 16 bits."""

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        """(B, T, D) to (B, T, D); any other argument than ``x`` must be at its default."""
        assert not any([*rest, *named.values()])
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, self.head_dim)
        if _fits(qkv):
            out: Tensor = short_attention(qkv, self.scale)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        projected: Tensor = self.proj(out.reshape(B, T, -1))
        return projected


def _fits(qkv: Tensor) -> bool:
    half = qkv.dtype in (torch.bfloat16, torch.float16)
    return qkv.is_cuda and half and qkv.shape[1] <= MOST_TOKENS


def use_short_attention(block: nn.Module) -> None:
    """Have a timm block's attention done here, if it is plain enough for that."""
    layer = getattr(block, "attn", None)
    if layer is None or type(layer) is not Attention or find_spec("triton") is None:
        return
    extras = (getattr(layer, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    plain = all(extra is None or isinstance(extra, nn.Identity) for extra in extras)
    drops = layer.attn_drop.p or layer.proj_drop.p
    if plain and not drops and layer.head_dim in _HEAD_WIDTHS:
        layer.__class__ = ShortAttention  # it has the same parts, under the same names


def use_timm_attention(block: nn.Module) -> None:
    """Undo `use_short_attention`."""
    layer = getattr(block, "attn", None)
    if type(layer) is ShortAttention:
        layer.__class__ = Attention


@torch.library.custom_op("fastcl::short_attention", mutates_args=())
def short_attention(qkv: Tensor, scale: float) -> Tensor:
    """softmax(scale · Q·Kᵀ)·V of each image and head, (B, T, H, d), in the dtype of ``qkv``,
    (B, T, 3, H, d) with T <= `MOST_TOKENS`. Sums and the softmax are in float32."""
    from fastcl_cli.model.short_attention_kernels import forward

    return forward(qkv.contiguous(), scale)


@torch.library.custom_op("fastcl::short_attention_backward", mutates_args=())
def _backward(qkv: Tensor, upstream: Tensor, scale: float) -> Tensor:
    """The gradient by ``qkv``, in its shape and dtype, from that by the output."""
    from fastcl_cli.model.short_attention_kernels import backward

    return backward(qkv.contiguous(), upstream.contiguous(), scale)


@short_attention.register_fake
def _(qkv: Tensor, scale: float) -> Tensor:
    B, T, _, H, d = qkv.shape
    return qkv.new_empty(B, T, H, d)


@_backward.register_fake
def _(qkv: Tensor, upstream: Tensor, scale: float) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    qkv, ctx.scale = inputs
    ctx.save_for_backward(qkv)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    return _backward(*ctx.saved_tensors, upstream, ctx.scale), None


short_attention.register_autograd(_differentiate, setup_context=_keep)
