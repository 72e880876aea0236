"""MoCo-v3: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers"
(arXiv 2104.02057).

Kept from the published recipe: fixed sine-cosine position embeddings, a frozen random patch
projection (section 4.2 of the paper), xavier-uniform linear layers with query, key and value
counted apart, heads without biases whose last batch norm has no affine parameters, weight decay on
every trained parameter, loss times 2·temperature.

Departures, both on purpose: ViT-S has timm's 6 heads where the published code has 12, which timm
would load with wrong features; the heads' batch norms keep no running statistics, which nothing
ever reads. The published code averages the momentum encoder at the start of each step; averaging it
at the end with the next step's momentum (``momentum_lead`` = 1) is the same sequence of key
encoders, and what is saved then includes the last update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcl_cli.methods.base import Input, Loss, Method, encode
from fastcl_cli.model.ema import frozen_copy
from fastcl_cli.model.heads import mlp_head
from fastcl_cli.model.vit import Encoder
from fastcl_cli.processes import distributed


def contrast(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE of queries against keys (Algorithm 1 of the paper), times 2·temperature.

    -log(exp(q_i·k_i / T) / sum_j exp(q_i·k_j / T)), averaged over i, on L2-normalised vectors and
    in float32 or wider. The other images' keys, of the whole global batch, are the negatives.

    Args:
        query: (b, D), this process's, with gradient.
        key: (b, D), of the same images in the same order, without.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key = F.normalize(query.to(wide), dim=1), F.normalize(key.to(wide), dim=1)
    logits = query @ distributed.gather(key).T / temperature
    own = distributed.rank() * len(query)
    labels = own + torch.arange(len(query), device=query.device)
    return F.cross_entropy(logits, labels) * (2 * temperature)


class MoCo(Method):
    """Query encoder with projector and predictor, against the key encoder, its momentum copy."""

    momentum_lead = 1

    def __init__(self, backbone: Encoder, head: tuple[int, ...], temperature: float) -> None:
        super().__init__()
        hidden, out = head
        width = backbone.width
        self.temperature = temperature
        self.online = nn.ModuleDict(
            {
                "backbone": backbone,
                "projector": mlp_head((width, hidden, hidden, out), bias=False, last_norm=True),
                "predictor": mlp_head((out, hidden, out), bias=False, last_norm=True),
            }
        )
        self.target = nn.ModuleDict(
            {name: frozen_copy(self.online[name]) for name in ("backbone", "projector")}
        )

    def loss(
        self, online: Sequence[Input], target: Sequence[Input], epochs: float | Tensor
    ) -> Loss:
        """contrast(q1, k2) + contrast(q2, k1): a query's positive is the other view's key."""
        features = encode(self.online["backbone"], online, self.parts)
        queries = [self._query(x) for x in features]
        with torch.no_grad():
            keys = [self._key(x) for x in encode(self._target["backbone"], target, self.parts)]
        (q1, q2), (k1, k2) = queries, keys
        with torch.autocast(q1.device.type, enabled=False):
            value = contrast(q1, k2, self.temperature) + contrast(q2, k1, self.temperature)
        return Loss(value, features[0].detach())

    def collapse_loss(self, batch: int) -> float:
        return 2 * 2 * self.temperature * math.log(batch)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return True

    @property
    def _target(self) -> nn.ModuleDict:
        assert self.target is not None
        return self.target

    def _query(self, features: Tensor) -> Tensor:
        query: Tensor = self.online["predictor"](self.online["projector"](features))
        return query

    def _key(self, features: Tensor) -> Tensor:
        key: Tensor = self._target["projector"](features)
        return key


@torch.no_grad()
def initialise_backbone(backbone: Encoder) -> None:
    """MoCo-v3's initial weights: uniform in ±sqrt(6 / (fan_in + fan_out)), biases zero.

    For the joint query-key-value matrix fan_out is one third of its rows; for the patch projection
    fan_in is 3·p² and fan_out the width.
    """
    for name, module in backbone.vit.named_modules():
        if isinstance(module, nn.Linear):
            fan_out = module.out_features // (3 if name.endswith(".qkv") else 1)
            _uniform(module, module.in_features + fan_out)
    projection = backbone.vit.patch_embed.proj
    _uniform(projection, projection.weight[0].numel() + projection.out_channels)
    if backbone.vit.cls_token is not None:
        nn.init.normal_(backbone.vit.cls_token, std=1e-6)


def _uniform(layer: nn.Linear | nn.Conv2d, fans: int) -> None:
    bound = math.sqrt(6 / fans)
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
