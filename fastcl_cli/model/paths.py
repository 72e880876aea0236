"""Stochastic depth (Huang et al., arXiv 1603.09382) whose draws are made outside the model.

timm's own draws come from the global generator inside the forward pass. Here a residual branch is
multiplied by a factor that was drawn beforehand, so that the same forward can be repeated, and a
measurement can draw its own factors and touch nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def draw_paths(images: int, depth: int, rate: float, generator: torch.Generator) -> Tensor:
    """Factors of each residual branch for each image: 0 (skipped) or 1 / (1 - p).

    Block i of ``depth`` is skipped with p = rate·i / (depth - 1); its attention and its MLP branch
    are drawn apart.

    Returns:
        float32 (depth, 2, images).
    """
    p = torch.linspace(0, rate, depth).reshape(depth, 1, 1)
    kept = torch.rand(depth, 2, images, generator=generator) >= p
    return kept / (1 - p)


class Branch(nn.Module):
    """Stands where timm's blocks have a ``DropPath``: multiplies by ``factor``, if it is set:
    (B,), or what can be multiplied with (B, T, D).

    It has no parameters, so the model's tensor names stay timm's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factor: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is None:
            return x
        factor = self.factor.reshape(-1, 1, 1) if self.factor.ndim == 1 else self.factor
        return x * factor.to(x.dtype)
