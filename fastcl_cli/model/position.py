"""Position embeddings for any grid, always made from the base parameter, never chained.

Base-grid units: token i of g on an axis whose base grid has G tokens stands at its centre,
u = (i + 1/2)·G/g - 1/2. A global view of patch side P has G/g = P/p; a local view is stretched over
the base grid, as DINO's interpolation of learned embeddings does.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@lru_cache(maxsize=128)
def sincos_embedding(grid: int, base_grid: int, dim: int, temperature: float = 10000.0) -> Tensor:
    """MoCo-v3's fixed two-dimensional sine-cosine code at the token centres of a grid.

    With omega_k = temperature**(-k / (dim/4)), the token in row i, column j at (u_i, u_j) gets
    [sin(u_i omega), cos(u_i omega), sin(u_j omega), cos(u_j omega)]: rows first, which is what the
    published code does and what its checkpoints therefore hold.

    Returns:
        float64 (grid², dim), row-major.
    """
    assert dim % 4 == 0
    quarter = dim // 4
    omega = temperature ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    centre = (torch.arange(grid, dtype=torch.float64, device="cpu") + 0.5) * base_grid / grid - 0.5
    angle = torch.outer(centre, omega)
    code = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = code[:, None, :].expand(grid, grid, -1)
    columns = code[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, dim)


@lru_cache(maxsize=128)
def fixed_embedding(
    grid: int, base_grid: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`sincos_embedding` where it is used: a copy to a GPU at every step would wait for it."""
    return sincos_embedding(grid, base_grid, dim).to(device, dtype)


@lru_cache(maxsize=128)
def resampling_matrix(
    grid: int, base_grid: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Bicubic, antialiased resampling of one axis: a matrix (grid, base_grid), made in float64."""
    identity = torch.eye(base_grid, dtype=torch.float64, device="cpu")[None, None]
    size = (grid, base_grid)
    matrix = F.interpolate(identity, size=size, mode="bicubic", antialias=True)[0, 0]
    return matrix.to(device, dtype)


def learned_embedding(parameter: Tensor, grid: int, base_grid: int, prefix: int) -> Tensor:
    """Learned embeddings (1, prefix + G², D) resampled to a grid: (1, prefix + g², D).

    What timm's ``resample_abs_pos_embed`` computes, as two products with a matrix that is made
    once, and in the parameter's own precision. Differentiable; prefix entries pass unchanged.
    """
    W = resampling_matrix(grid, base_grid, parameter.dtype, parameter.device)
    width = parameter.shape[-1]
    table = parameter[0, prefix:].reshape(base_grid, base_grid, width)
    resampled = torch.einsum("ai,bj,ijd->abd", W, W, table).reshape(1, grid * grid, width)
    return torch.cat([parameter[:, :prefix], resampled], dim=1)
