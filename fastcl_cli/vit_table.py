"""Shapes of timm's Vision Transformers, so that a schedule can be checked without timm.

``vit_table.json`` is generated from timm (``tests/make_vit_table.py``), and a test holds it to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fastcl_cli.config import VitShape

OPTIONS = ("embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio")
"""timm's arguments that a schedule may override; all of them sizes."""


@cache
def _table() -> dict[str, list[int | float]]:
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    table: dict[str, list[int | float]] = json.loads(text)
    return table


def model_names() -> list[str]:
    """timm names that a schedule's ``model`` may have, sorted."""
    return list(_table())


def vit_shape(name: str, options: Mapping[str, int | float]) -> VitShape:
    """The shape of the timm model ``name`` with ``options`` (keys of `OPTIONS`) overriding it.

    Raises:
        KeyError: the table does not have the name.
    """
    patch, width, depth, heads, ratio, prefix = _table()[name]
    return VitShape(
        name=name,
        options=tuple(options.items()),
        patch=int(options.get("patch_size", patch)),
        embed_dim=int(options.get("embed_dim", width)),
        depth=int(options.get("depth", depth)),
        num_heads=int(options.get("num_heads", heads)),
        mlp_ratio=float(options.get("mlp_ratio", ratio)),
        prefix_tokens=int(prefix),
    )
