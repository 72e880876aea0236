"""Makes ``fastcl_cli/vit_table.json`` from the installed timm.

    python tests/make_vit_table.py > fastcl_cli/vit_table.json

The table holds every plain ``VisionTransformer`` of timm whose features are its class token: patch
side, width, depth, heads, MLP ratio and prefix tokens. Other block types, pooled features and
rotary positions are left out, for fastcl's forward pass does not call them.
"""

from __future__ import annotations

import json
from typing import Any

import timm
import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer


def build(name: str, **options: Any) -> torch.nn.Module:
    """The model without weights: its shapes only."""
    with torch.device("meta"):
        model: torch.nn.Module = timm.create_model(
            name, num_classes=0, weight_init="skip", **options
        )
    return model


def row(model: torch.nn.Module) -> list[int | float] | None:
    """``[patch, width, depth, heads, mlp_ratio, prefix_tokens]``, or None where it does not fit."""
    if type(model) is not VisionTransformer or not model.has_class_token:
        return None
    block = model.blocks[0]
    plain = (
        type(block) is Block
        and type(block.mlp) is Mlp
        and type(model.patch_embed) is PatchEmbed
        and model.global_pool == "token"
        and model.pos_embed is not None
    )
    if not plain:
        return None
    patch, _ = model.patch_embed.patch_size
    ratio = block.mlp.fc1.out_features / model.embed_dim
    return [
        patch,
        model.embed_dim,
        len(model.blocks),
        block.attn.num_heads,
        ratio,
        model.num_prefix_tokens,
    ]


def generate() -> dict[str, list[int | float]]:
    rows = {name: row(build(name)) for name in timm.list_models(module="vision_transformer")}
    return {name: found for name, found in sorted(rows.items()) if found is not None}


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in generate().items()]
    print("{\n" + ",\n".join(lines) + "\n}")
