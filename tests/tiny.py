"""The smallest real MoCo-v3: a timm ViT of 16 dimensions on 16-pixel images."""

from __future__ import annotations

import torch

from fastcl_cli.config import VitShape
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.methods.moco import MoCo

IMAGE, BASE, WIDTH, DEPTH, HEADS, T = 16, 4, 16, 2, 2, 0.2
OPTIONS = (("embed_dim", WIDTH), ("depth", DEPTH), ("num_heads", HEADS), ("patch_size", BASE))


def spec(seed: int = 0) -> BackboneSpec:
    shape = VitShape("vit_tiny_patch16_224", OPTIONS, BASE, WIDTH, DEPTH, HEADS, 4.0, 1)
    return BackboneSpec("moco", shape, IMAGE, "sincos", seed)


def moco(seed: int = 0) -> MoCo:
    backbone = build_backbone(spec(seed))
    backbone.vit.patch_embed.requires_grad_(False)
    torch.manual_seed(seed + 1)
    return MoCo(backbone, (24, 8), T)
