"""Random token dropout, drawn outside the model."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_kept_tokens(
    images: int,
    tokens: int,
    kept: int,
    generator: torch.Generator,
    rows: slice = slice(None),
) -> Tensor:
    """Choose ``kept`` of ``tokens`` patch tokens for each image, uniformly among all subsets.

    The draw is on the CPU, from ``generator`` alone, and takes ``images`` x ``tokens`` numbers from
    it whatever ``kept`` is. ``rows`` are the images whose choice is wanted: sorting is what costs.

    Returns:
        int64 (rows, kept), indices into the row-major grid, increasing in each row.
    """
    assert 1 <= kept <= tokens
    # In float64 a tie (which argsort would break by position) has probability below 1e-11.
    scores = torch.rand(images, tokens, generator=generator, dtype=torch.float64)[rows]
    return scores.argsort(dim=1)[:, :kept].sort(dim=1).values


def patchify(view: Tensor, patch: int) -> Tensor:
    """Cut views into patches in the order of a convolution kernel's weights.

    Args:
        view: (B, C, g·p, g·p).
        patch: p.

    Returns:
        (B, g², C·p·p), patches row-major over the grid, values ordered (channel, row, column).
    """
    images, channels, height, width = view.shape
    assert height % patch == 0 and width % patch == 0
    rows, columns = height // patch, width // patch
    cut = view.reshape(images, channels, rows, patch, columns, patch)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(images, rows * columns, -1)


def gather_tokens(tokens: Tensor, kept: Tensor) -> Tensor:
    """Rows ``kept`` (B, K) of ``tokens`` (B or 1, L, D): (B, K, D)."""
    tokens = tokens.expand(len(kept), -1, -1)
    return tokens.gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
