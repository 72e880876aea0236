"""Which patch sides an image can be cut into."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import gcd

from fastcl_cli.schedule import ast
from fastcl_cli.schedule.diagnostics import FaultError, listed


@cache
def valid_patches(image: int, model_patch: int) -> Sequence[int]:
    """Patch sides that divide the image, from the model's own upwards.

    Empty where the model's own does not: then the image is at fault, and said to be.
    """
    if image % model_patch:
        return ()
    return tuple(p for p in range(model_patch, image + 1) if image % p == 0)


def require_patch(number: ast.Number, image: int, model_patch: int) -> None:
    """Refuse a patch side, a whole number, that is not among `valid_patches`.

    Raises:
        FaultError: FCS012, with the nearest ones that are.
    """
    side = int(number.value)
    valid = valid_patches(image, model_patch)
    if not valid or side in valid:
        return
    near = [str(p) for p in sorted(sorted(valid, key=lambda p: (abs(p - side), p))[:4])]
    help = f"use {listed(near)}"
    if side < model_patch:
        message = f"patch {side} is smaller than the model's own, {model_patch}"
    else:
        message = f"patch {side} does not divide {image}"
        other = _nearest_image(side, model_patch, image)
        if other <= 2 * image:
            help = f"use {', '.join(near)}, or image {other}"
    raise FaultError("FCS012", number.span, message, help)


def _nearest_image(patch: int, model_patch: int, image: int) -> int:
    """The image side nearest to ``image`` that both patch sides divide."""
    step = patch * model_patch // gcd(patch, model_patch)
    return max(1, (2 * image + step) // (2 * step)) * step
