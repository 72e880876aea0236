"""The smallest real MoCo-v3: a timm ViT of 16 dimensions on 16-pixel images."""

from __future__ import annotations

from typing import Literal

import torch

from fastcl_cli.config import Method as MethodName
from fastcl_cli.config import VitShape
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.methods.moco import MoCo
from fastcl_cli.model.position import sincos_embedding
from fastcl_cli.model.vit import Encoder

IMAGE, BASE, WIDTH, DEPTH, HEADS, T = 16, 4, 16, 2, 2, 0.2
OPTIONS = (("embed_dim", WIDTH), ("depth", DEPTH), ("num_heads", HEADS), ("patch_size", BASE))


def spec(seed: int = 0, method: MethodName = "moco") -> BackboneSpec:
    shape = VitShape("vit_tiny_patch16_224", OPTIONS, BASE, WIDTH, DEPTH, HEADS, 4.0, 1)
    position: Literal["sincos", "learned"] = "sincos" if method == "moco" else "learned"
    return BackboneSpec(method, shape, IMAGE, position, seed)


def moco(seed: int = 0) -> MoCo:
    backbone = build_backbone(spec(seed))
    backbone.vit.patch_embed.requires_grad_(False)
    torch.manual_seed(seed + 1)
    return MoCo(backbone, (24, 8), T)


@torch.no_grad()
def exact(method: Method) -> Method:
    """The method in float64, with position codes that were not rounded to float32 on the way."""
    method.double()
    for network in (method.online, method.target):
        if network is not None:
            encoder = network["backbone"]
            assert isinstance(encoder, Encoder)
            if encoder.position == "sincos":
                code = sincos_embedding(encoder.base_grid, encoder.base_grid, encoder.width)
                encoder.vit.pos_embed[0, encoder.embedded_prefix :] = code
    return method
