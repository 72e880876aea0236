"""Jitter and grayscale as one affine map of RGB per image.

With x a pixel, µ the mean pixel of the view before any change, and g the weights of luma:

    brightness f    y = f·x
    contrast f      y = f·x + (1 - f)·1gᵀ·(mean of the view at that point)
    saturation f    y = f·x + (1 - f)·1gᵀ·x
    hue h           y = rotation of x about the grey axis by 2πh
    grayscale       y = 1gᵀ·x

Each is linear in (x, µ), and the mean of an affine image is the affine image of the mean; so any
sequence of them is y = A·x + B·µ, composed in closed form without looking at a pixel, and contrast
is about the mean that the view has at its turn, as in the recipes.

Where this differs from torchvision (on photographs, of 255, held by tests):

- Each operation alone, hue aside: less than 0.05, for torchvision's luma weights sum to 0.9999.
- torchvision clips after each operation, a composed map once at the end: at the
  ends of MoCo-v3's strengths pixels differ by 2.9 on average over the orders, by 11 at worst
  (brightness up first, then contrast down).
- torchvision turns the hue in HSV, which keeps the largest and the smallest channel, where a
  rotation keeps their mean. The hue agrees to 0.005 turns, but pixels differ by 1.6 on average for
  a shift of 0.02 turns, 3.8 for 0.05 and 6.5 for 0.1: nearly as much as the shift moves them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastcl_cli.data.augment import CONTRAST, HUE, SATURATION, ViewDraw

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in a grey pixel (ITU-R BT.601)."""


def colour_maps(draw: ViewDraw) -> tuple[Tensor, Tensor]:
    """The colour changes of N views as y = A·x + B·µ.

    Returns:
        A and B, float64 (N, 3, 3), on the device of the draws.
    """
    factors = draw.factors
    count, device = len(factors), factors.device
    eye = torch.eye(3, dtype=torch.float64, device=device)
    gray = torch.tensor(LUMA, dtype=torch.float64, device=device).repeat(3, 1)
    A = eye.repeat(count, 1, 1)
    B = torch.zeros_like(A)
    hue = hue_rotation(factors[:, HUE])
    for turn in range(4):
        operation = draw.order[:, turn, None, None]
        f = factors.gather(1, draw.order[:, turn, None])[:, :, None]
        linear = torch.where(operation == SATURATION, f * eye + (1 - f) * gray, f * eye)
        linear = torch.where(operation == HUE, hue, linear)
        of_mean = torch.where(operation == CONTRAST, (1 - f) * gray, torch.zeros_like(gray))
        changed_A, changed_B = linear @ A, linear @ B + of_mean @ (A + B)
        applied = draw.jitter[:, None, None]
        A, B = torch.where(applied, changed_A, A), torch.where(applied, changed_B, B)
    to_gray = torch.where(draw.grayscale[:, None, None], gray, eye)
    return to_gray @ A, to_gray @ B


def hue_rotation(turns: Tensor) -> Tensor:
    """Rotations of RGB about the grey axis (1, 1, 1), by Rodrigues' formula.

    A third of a turn carries red to green, green to blue and blue to red, as in HSV.

    Args:
        turns: (N,).

    Returns:
        (N, 3, 3) in the dtype of ``turns``.
    """
    angle = 2 * math.pi * turns[:, None, None]
    eye = torch.eye(3).to(turns)
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]).to(turns) / math.sqrt(3)
    return angle.cos() * eye + (1 - angle.cos()) / 3 + angle.sin() * cross
