"""Whether what was exported computes what the backbone computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastcl_cli.compression.patches import reduction_matrix
from fastcl_cli.errors import CheckpointError, RunFailedError
from fastcl_cli.model.vit import Encoder

Network: TypeAlias = Callable[[Tensor], Tensor]
"""From images (B, 3, side, side), normalised, to features (B, D)."""

BATCH = 3
TOLERANCE = 1e-4
"""Greatest difference allowed, over the greatest feature: what float32 loses in forty blocks is a
tenth of it, and what another interpolation changes is a hundred times as much."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The greatest difference of a feature, and the greatest feature, both absolute."""

    difference: float
    feature: float

    @property
    def is_rounding(self) -> bool:
        # So written that NaN is not.
        return self.difference <= TOLERANCE * self.feature


@torch.no_grad()
def compare(network: Network, encoder: Encoder, image: int, patch: int) -> Difference:
    """Compare features of random images under an exported network and the encoder that it is of.

    The two ways are independent where sizes differ: the encoder sees the low-resolution view
    through its own kernel, as in training, and not the resized kernel.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, image, image, generator=generator)
    view, D = images, reduction_matrix(image, patch, encoder.patch)
    if D is not None:
        view = (D @ images.double() @ D.T).float()
    ours = encoder.eval()(view)
    theirs = network(images)
    return Difference(float((theirs - ours).abs().max()), float(ours.abs().max()))


def require_rounding(found: Difference, name: str) -> None:
    """Refuse an export whose features differ by more than rounding.

    Raises:
        RunFailedError: they do.
        CheckpointError: the checkpoint's own are not finite.
    """
    if not math.isfinite(found.feature):
        raise CheckpointError(f"{name}: the checkpoint's features are not finite; nothing written")
    if not found.is_rounding:
        raise RunFailedError(
            f"{name}: its features differ from the checkpoint's by up to {found.difference:.2g} "
            f"(of at most {found.feature:.2g}), which is more than rounding; nothing was written",
            "the installed timm or onnxscript computes something else: try another version",
        )
