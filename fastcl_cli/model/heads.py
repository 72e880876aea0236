"""Projection and prediction heads."""

from __future__ import annotations

import itertools

from torch import nn

from fastcl_cli.model.norm import GlobalBatchNorm


def mlp_head(sizes: tuple[int, ...], *, bias: bool, last_norm: bool) -> nn.Sequential:
    """A multi-layer perceptron with batch norm and ReLU on the hidden layers.

    Args:
        sizes: widths from input to output; ``len(sizes) - 1`` linear layers.
        bias: whether the linear layers have one.
        last_norm: whether the output passes a batch norm without affine parameters.

    The batch norms are over the global batch. They keep no running statistics: a head is never used
    in evaluation, and a buffer that nothing reads would only have to be saved, averaged and kept
    equal between devices.
    """
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(sizes))
    for index, (inner, outer) in enumerate(pairs):
        layers.append(nn.Linear(inner, outer, bias=bias))
        if index < len(pairs) - 1:
            layers.append(GlobalBatchNorm(outer))
            layers.append(nn.ReLU(inplace=True))
        elif last_norm:
            layers.append(GlobalBatchNorm(outer, affine=False))
    return nn.Sequential(*layers)
