"""SimCLR on ViT: Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations" (arXiv 2002.05709), with the recipe that SLIP (arXiv 2112.12750) gives it for ViTs.

Kept from SLIP: learned position embeddings and a trained patch projection, a three-layer head with
biases and without a last batch norm, temperature 0.1, no weight decay on biases and norms.
Departures, both on purpose: ViT-S has timm's 6 heads where SLIP has 12, and the head's batch norms
keep no running statistics. SLIP fixes its peak rate at 3.2e-3 for 4,096 images; here it is the same
rate written as 2e-4 per 256, so that it follows the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcl_cli.methods.base import Input, Loss, Method, encode
from fastcl_cli.model.heads import mlp_head
from fastcl_cli.model.vit import Encoder
from fastcl_cli.processes import distributed


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross entropy (eq. 1 of the paper), averaged over all.

    Of the 2B embeddings, i's positive p is the other view of its image and every other embedding
    but itself is a negative: -log(exp(s_ip / T) / sum_{k != i} exp(s_ik / T)), s the cosine. B is
    the global batch: gradients flow to the other processes' embeddings, too.

    Args:
        first, second: (b, D), the two views of each image of this process, in the same order.
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    z = F.normalize(torch.cat([first, second]).to(wide), dim=1)
    every = torch.cat([distributed.gather(view) for view in z.chunk(2)])
    logits = z @ every.T / temperature
    images = torch.arange(len(first), device=z.device) + distributed.rank() * len(first)
    itself = torch.cat([images, images + len(every) // 2])
    logits.scatter_(1, itself.unsqueeze(1), float("-inf"))
    return F.cross_entropy(logits, itself.roll(len(first)))


class SimCLR(Method):
    """One encoder with a projector; every other embedding of the batch is a negative."""

    def __init__(self, backbone: Encoder, head: tuple[int, ...], temperature: float) -> None:
        super().__init__()
        hidden, out = head
        sizes = (backbone.width, hidden, hidden, out)
        self.temperature = temperature
        self.online = nn.ModuleDict(
            {"backbone": backbone, "projector": mlp_head(sizes, bias=True, last_norm=False)}
        )
        self.target = None

    def loss(
        self, online: Sequence[Input], target: Sequence[Input], epochs: float | Tensor
    ) -> Loss:
        features = encode(self.online["backbone"], online, self.parts)
        first, second = (self.online["projector"](x) for x in features)
        with torch.autocast(first.device.type, enabled=False):
            value = nt_xent(first, second, self.temperature)
        return Loss(value, features[0].detach())

    def collapse_loss(self, batch: int) -> float:
        return math.log(2 * batch - 1)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2
