"""A safetensors file under timm's own names."""

from __future__ import annotations

from pathlib import Path

import timm

from fastcl_cli.checkpoint import save_backbone, timm_arguments, timm_line
from fastcl_cli.export.backbone import Backbone
from fastcl_cli.export.compare import Network


def write(path: Path, backbone: Backbone) -> None:
    """Write the file, which fastcl reads as well."""
    save_backbone(path, backbone.encoder, backbone.spec, backbone.step, backbone.resized_from)


def load(path: Path, backbone: Backbone) -> Network:
    """Load it as the printed line does."""
    arguments = timm_arguments(backbone.spec)
    network: Network = timm.create_model(
        backbone.spec.model.name, **arguments, checkpoint_path=str(path)
    ).eval()
    return network


def line(path: Path, backbone: Backbone) -> str:
    """The Python that loads it."""
    return timm_line(path, backbone.spec)
