"""A backbone made for another image and another patch side, without training.

Nothing here is approximate but what the position embeddings are: the patch projection becomes the
PI-resized kernel (`compression.patches.pi_resize`), and the position embeddings become those that
the `Encoder` itself uses on a view of that grid.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fastcl_cli.compression.patches import pi_resize
from fastcl_cli.errors import UsageError
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.model.vit import Encoder
from fastcl_cli.vit_table import vit_shape

MAX_GRID = 128
"""Tokens a side: more would take hours to compare."""
MAX_PATCH_RATIO = 16
"""Patch side over the model's own: the projection grows with its square."""


def check_sizes(spec: BackboneSpec, image: int, patch: int) -> None:
    """Make sure that a backbone can be resized to an image and a patch side, in pixels.

    Raises:
        UsageError: naming sides that can be used.
    """
    own = spec.model.patch
    if not own <= patch <= own * MAX_PATCH_RATIO:
        raise UsageError(
            f"patch {patch}: the model's own is {own}, and it can be resized to sides "
            f"from {own} to {own * MAX_PATCH_RATIO}",
            f"use --patch {min(max(patch, own), own * MAX_PATCH_RATIO)}",
        )
    if not patch <= image <= patch * MAX_GRID:
        raise UsageError(
            f"image {image}: with patch {patch} it has from {patch} (one patch) "
            f"to {patch * MAX_GRID} pixels a side ({MAX_GRID} patches)",
            f"use --image {min(max(image, patch), patch * MAX_GRID)}",
        )
    if image % patch:
        below = image // patch * patch
        near = [p for p in range(own, own * MAX_PATCH_RATIO + 1) if image % p == 0]
        near = sorted(sorted(near, key=lambda p: (abs(p - patch), p))[:3])
        ways = [f"--image {below} or {below + patch}"]
        if near:
            ways.append(f"--patch {' or '.join(map(str, near))}")
        raise UsageError(
            f"patch {patch} does not divide image {image}", f"use {', or '.join(ways)}"
        )


@torch.no_grad()
def resized(
    encoder: Encoder, spec: BackboneSpec, image: int, patch: int
) -> tuple[Encoder, BackboneSpec]:
    """The backbone as a model of its own for ``image`` pixels cut into patches of ``patch``.

    Sine-cosine embeddings on another grid are in units of the grid that the model was trained on,
    which the new model does not know: there they count as learned.

    Raises:
        UsageError: as `check_sizes`.
    """
    check_sizes(spec, image, patch)
    if (image, patch) == (spec.image, spec.model.patch):
        return encoder, spec
    grid = image // patch
    options = dict(spec.model.options)
    if patch != spec.model.patch:
        options["patch_size"] = patch
    position = spec.position if grid == encoder.base_grid else "learned"
    made = replace(spec, image=image, model=vit_shape(spec.model.name, options), position=position)
    tensors = encoder.vit.state_dict()
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = pi_resize(kernel.double(), patch).to(kernel)
    tensors["pos_embed"] = encoder.position_embedding(grid)
    other = build_backbone(made)
    other.vit.load_state_dict(tensors)
    return other, made
