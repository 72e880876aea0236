"""A folder as Hugging Face's hub holds a timm model: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm

from fastcl_cli.checkpoint import timm_arguments
from fastcl_cli.export.backbone import Backbone
from fastcl_cli.export.compare import Network
from fastcl_cli.export.place import HF_CONFIG, HF_WEIGHTS
from fastcl_cli.tensor_file import write_tensors


def write(path: Path, backbone: Backbone) -> None:
    """Write the folder."""
    path.mkdir()
    tensors = backbone.encoder.vit.state_dict()
    write_tensors(
        path / HF_WEIGHTS,
        {name: value.contiguous() for name, value in tensors.items()},
        {"format": "pt"},  # what the hub's readers look for
    )
    (path / HF_CONFIG).write_text(json.dumps(config(backbone), indent=2) + "\n", encoding="utf-8")


def config(backbone: Backbone) -> dict[str, Any]:
    """``config.json``: the architecture, what its constructor must be told, and how images are
    prepared."""
    spec, vit = backbone.spec, backbone.encoder.vit
    arguments = {k: v for k, v in timm_arguments(spec).items() if k != "num_classes"}
    return {
        "architecture": spec.model.name,
        "num_classes": 0,
        "num_features": vit.num_features,
        "global_pool": vit.global_pool,
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": 0,
            **backbone.preprocessing,
            "fixed_input_size": True,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "fastcl": dict(backbone.provenance),
    }


def load(path: Path, backbone: Backbone) -> Network:
    """Load it as the printed line does."""
    network: Network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    return network


def line(path: Path, backbone: Backbone) -> str:
    """The Python that loads it."""
    return f"timm.create_model({f'local-dir:{path}'!r}, pretrained=True)"
