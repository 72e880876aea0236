"""From a configuration to a method with its initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fastcl_cli.config import Method as MethodName
from fastcl_cli.config import RunConfig, VitShape
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.dino import DINO
from fastcl_cli.methods.moco import MoCo, initialise_backbone
from fastcl_cli.methods.simclr import SimCLR
from fastcl_cli.model.vit import Encoder, build_vit
from fastcl_cli.rng import derive_seed


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """All that decides a backbone's structure and its initial weights."""

    method: MethodName
    model: VitShape
    image: int
    position: Literal["learned", "sincos"]
    seed: int

    @classmethod
    def of(cls, config: RunConfig, seed: int) -> BackboneSpec:
        return cls(config.method, config.model, config.image, config.position, seed)


def build_backbone(spec: BackboneSpec) -> Encoder:
    """A backbone with the initial weights that a method's recipe gives it, on the CPU in float32.

    The weights are a function of ``spec`` alone; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "initial backbone", 0))
        encoder = Encoder(build_vit(spec.model, spec.image), spec.position)
        if spec.method == "moco":
            initialise_backbone(encoder)
    return encoder


def build_method(config: RunConfig, seed: int) -> Method:
    """The method of a run, on the CPU in float32, with initial weights drawn from ``seed``.

    Raises:
        ConfigError: timm cannot build the model.
    """
    backbone = build_backbone(BackboneSpec.of(config, seed))
    backbone.vit.patch_embed.requires_grad_(not config.freeze_patch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial heads", 0))
        method = _on_top(backbone, config)
    method.parts = config.accumulate
    return method


def _on_top(backbone: Encoder, config: RunConfig) -> Method:
    if config.method == "moco":
        return MoCo(backbone, config.head, config.temperature)
    if config.method == "simclr":
        return SimCLR(backbone, config.head, config.temperature)
    assert config.teacher_temperature is not None
    return DINO(
        backbone,
        config.head,
        config.head_norm,
        config.temperature,
        config.teacher_temperature,
        config.center_momentum,
        config.freeze_last_layer,
        config.norm_last_layer,
    )
