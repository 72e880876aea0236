"""What every format is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.config import IMAGENET_MEAN, IMAGENET_STD
from fastcl_cli.evaluate.images import default_crop_ratio
from fastcl_cli.methods.build import BackboneSpec
from fastcl_cli.model.vit import Encoder


@dataclass(frozen=True, slots=True)
class Backbone:
    """A ViT as it is exported, after ``step`` updates; ``resized_from`` is the image and the patch
    side that it was trained with, or None where they are its own."""

    encoder: Encoder
    spec: BackboneSpec
    step: int
    resized_from: tuple[int, int] | None

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How `fastcl probe` prepares an image, by timm's names."""
        return {
            "input_size": [3, self.spec.image, self.spec.image],
            "interpolation": "bicubic",
            "crop_pct": default_crop_ratio(self.spec.image),
            "crop_mode": "center",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        }

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What made it."""
        about: dict[str, Any] = {
            "fastcl": __version__,
            "method": self.spec.method,
            "step": self.step,
        }
        if self.resized_from is not None:
            about["resized_from"] = list(self.resized_from)
        return about
