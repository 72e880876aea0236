"""Batch norm over the global batch, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastcl_cli.processes import distributed


class GlobalBatchNorm(nn.BatchNorm1d):
    """torch's `BatchNorm1d` without running statistics; its mean and its (biased) variance are
    those of all processes' rows together.

    On one process it is torch's own, bit for bit. Parameters have torch's names. Processes may
    have different numbers of rows.
    """

    def __init__(self, features: int, *, affine: bool = True) -> None:
        super().__init__(features, affine=affine, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D), in x's dtype; statistics in float32 or wider."""
        if distributed.size() == 1:
            return super().forward(x)
        output: Tensor = _Normalise.apply(x, self.weight, self.bias, self.eps)
        return output


class _Normalise(torch.autograd.Function):
    """y = w·x̂ + b with x̂ = (x - mean) / sqrt(var + eps), mean and var over the rows of all.

    With g = w·dL/dy and means over the global batch, Ioffe and Szegedy (arXiv 1502.03167,
    section 3) give dL/dx = (g - mean(g) - x̂·mean(g·x̂)) / sqrt(var + eps). L is the sum of what the
    processes differentiate; dL/dw and dL/db are left as this process's own share of it, as for
    every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count, mean, variance = _global_moments(wide)
        scale = (variance + eps).rsqrt()
        normal = (wide - mean) * scale
        ctx.save_for_backward(normal, scale, weight)
        ctx.count = count
        output = normal if weight is None or bias is None else normal * weight + bias
        return output.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        normal, scale, weight = ctx.saved_tensors
        wide = upstream.to(normal.dtype)
        to_bias, to_weight = wide.sum(dim=0), (wide * normal).sum(dim=0)
        factor = scale if weight is None else weight * scale
        means = distributed.total(torch.stack([to_bias, to_weight])) / ctx.count
        to_x = ((wide - means[0] - normal * means[1]) * factor).to(upstream.dtype)
        if weight is None:
            return to_x, None, None, None
        return to_x, to_weight.to(weight.dtype), to_bias.to(weight.dtype), None


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of rows, mean (D,) and biased variance (D,) of all processes' rows.

    Each process sends its own moments, which are put together as in Chan, Golub and LeVeque
    (Stanford STAN-CS-79-773, eq. 2.1): sums of squares would cancel where the mean is large.
    """
    own_variance, own_mean = torch.var_mean(x, dim=0, correction=0)
    count = torch.full_like(own_mean, len(x))
    gathered = distributed.gather(torch.stack([count, own_mean, own_variance]).unsqueeze(0))
    counts, means, variances = gathered.unbind(dim=1)
    shares = counts / counts.sum(dim=0)
    mean = (shares * means).sum(dim=0)
    variance = (shares * (variances + (means - mean).square())).sum(dim=0)
    return counts.sum(dim=0), mean, variance
