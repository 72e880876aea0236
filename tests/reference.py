"""Slow, plain float64 forms of networks and updates, written from the papers' formulas.

They share no code with the package: parameters are a flat dict of tensors, every layer is spelled
out, and a large patch is taken from the full-resolution view with a PI-resized kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Params = Mapping[str, Tensor]


def upsampling(small: int, large: int) -> Tensor:
    """Bilinear upsampling as a matrix, one output sample at a time."""
    matrix = torch.zeros(large, small, dtype=torch.float64)
    for i in range(large):
        x = min(max((i + 0.5) * small / large - 0.5, 0.0), small - 1.0)
        low = min(math.floor(x), small - 1)
        high = min(low + 1, small - 1)
        matrix[i, low] += 1 - (x - low)
        matrix[i, high] += x - low
    return matrix


def resized_kernel(kernel: Tensor, patch: int) -> Tensor:
    """w_P = pinv(Bᵀ) w with the full matrix B = b (x) b."""
    out, channels, base, _ = kernel.shape
    b = upsampling(base, patch)
    full = torch.kron(b, b)
    flat = kernel.reshape(out * channels, base * base)
    return (torch.linalg.pinv(full.T) @ flat.T).T.reshape(out, channels, patch, patch)


def linear(x: Tensor, p: Params, name: str) -> Tensor:
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def layer_norm(x: Tensor, p: Params, name: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attention(x: Tensor, p: Params, name: str, heads: int) -> Tensor:
    width = x.shape[-1]
    d = width // heads
    q, k, v = linear(x, p, f"{name}.qkv").split(width, dim=-1)
    parts = []
    for h in range(heads):
        s = slice(h * d, (h + 1) * d)
        scores = q[..., s] @ k[..., s].transpose(-1, -2) / math.sqrt(d)
        e = scores.exp()
        parts.append(e / e.sum(-1, keepdim=True) @ v[..., s])
    return linear(torch.cat(parts, dim=-1), p, f"{name}.proj")


def vit(
    view: Tensor,
    p: Params,
    depth: int,
    heads: int,
    patch: int,
    position: Tensor,
    kept: Tensor | None,
    paths: Tensor | None = None,
) -> Tensor:
    """[CLS] features of full-resolution views (B, 3, H, H) cut into ``patch``-pixel tokens.

    ``position`` is (1 + L, D), the class token's entry first; ``paths`` (depth, 2, B) are factors
    of the residual branches.
    """
    kernel = resized_kernel(p["patch_embed.proj.weight"], patch)
    grid = view.shape[-1] // patch
    rows = []
    for b in range(len(view)):
        tokens = []
        for n in range(grid * grid) if kept is None else kept[b].tolist():
            i, j = divmod(n, grid)
            block = view[b, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            token = (kernel * block).sum(dim=(1, 2, 3)) + p["patch_embed.proj.bias"]
            tokens.append(token + position[1 + n])
        rows.append(torch.stack([p["cls_token"][0, 0] + position[0], *tokens]))
    x = torch.stack(rows)
    for i in range(depth):
        name = f"blocks.{i}"
        first, second = (1, 1) if paths is None else paths[i].reshape(2, -1, 1, 1)
        x = x + first * attention(layer_norm(x, p, f"{name}.norm1"), p, f"{name}.attn", heads)
        hidden = gelu(linear(layer_norm(x, p, f"{name}.norm2"), p, f"{name}.mlp.fc1"))
        x = x + second * linear(hidden, p, f"{name}.mlp.fc2")
    return layer_norm(x, p, "norm")[:, 0]


def batch_norm(x: Tensor, p: Params, name: str) -> Tensor:
    """Over the batch, biased variance; affine where the parameters are there."""
    mean = x.mean(0)
    var = ((x - mean) ** 2).mean(0)
    y = (x - mean) / torch.sqrt(var + 1e-5)
    if f"{name}.weight" in p:
        y = y * p[f"{name}.weight"] + p[f"{name}.bias"]
    return y


def below(p: Params, prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in p.items() if k.startswith(prefix)}


class AdamW:
    """Loshchilov and Hutter, algorithm 2, with bias correction; one tensor at a time."""

    def __init__(self, betas: tuple[float, float], eps: float = 1e-8) -> None:
        self.b1, self.b2 = betas
        self.eps = eps
        self.t: dict[str, int] = {}
        self.m: dict[str, Tensor] = {}
        self.v: dict[str, Tensor] = {}

    def update(
        self, p: dict[str, Tensor], gradients: Params, lr: float, decay: Mapping[str, float]
    ) -> None:
        for name, g in gradients.items():
            self.t[name] = t = self.t.get(name, 0) + 1
            m = self.b1 * self.m.get(name, torch.zeros_like(g)) + (1 - self.b1) * g
            v = self.b2 * self.v.get(name, torch.zeros_like(g)) + (1 - self.b2) * g**2
            self.m[name], self.v[name] = m, v
            m_hat, v_hat = m / (1 - self.b1**t), v / (1 - self.b2**t)
            step = m_hat / (v_hat.sqrt() + self.eps)
            p[name] = (p[name] - lr * decay[name] * p[name] - lr * step).detach()
