"""Checkpoints: safetensors files, written atomically, read without ever unpickling.

A *run checkpoint* (`run`) holds the method (``online.*``, ``target.*``, ...) and ``optimizer.*``; a
*backbone file* (`backbone`) holds one ViT under timm's own names.
"""

from fastcl_cli.checkpoint.backbone import (
    Weights,
    backbone_origin,
    copy_backbone,
    default_weights,
    load_backbone,
    save_backbone,
    timm_arguments,
    timm_line,
    whole_backbone,
)
from fastcl_cli.checkpoint.file import check_whole, is_finite
from fastcl_cli.checkpoint.run import RunHeader, load_run, read_run_header, save_run

__all__ = [
    "RunHeader",
    "Weights",
    "backbone_origin",
    "check_whole",
    "copy_backbone",
    "default_weights",
    "is_finite",
    "load_backbone",
    "load_run",
    "read_run_header",
    "save_backbone",
    "save_run",
    "timm_arguments",
    "timm_line",
    "whole_backbone",
]
