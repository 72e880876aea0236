"""Colour maps against torchvision's operations with the same parameters."""

from __future__ import annotations

import itertools

import pytest
import torch
from data_photos import squares
from torchvision.transforms import functional as TF

from fastcl_cli.data.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewDraw
from fastcl_cli.data.colour import colour_maps, hue_rotation

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
TORCHVISION = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}


def photographs() -> torch.Tensor:
    return squares(128).permute(0, 3, 1, 2).double() / 255


def changed(images: torch.Tensor, factors: list[float], order: list[int], gray: bool = False):
    """The images after our map, not clipped."""
    count = len(images)
    draw = ViewDraw.plain(WHOLE.repeat(count, 1))
    draw = ViewDraw(
        **{
            **vars(draw),
            "factors": torch.tensor(factors, dtype=torch.float64).repeat(count, 1),
            "order": torch.tensor(order).repeat(count, 1),
            "jitter": torch.ones(count, dtype=torch.bool),
            "grayscale": torch.full((count,), gray),
        }
    )
    A, B = colour_maps(draw)
    offset = B @ images.mean((2, 3))[:, :, None]
    return torch.einsum("nij,njhw->nihw", A, images) + offset[..., None]


def one(operation: int, factor: float) -> list[float]:
    factors = [1.0, 1.0, 1.0, 0.0]
    factors[operation] = factor
    return factors


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("operation", [BRIGHTNESS, CONTRAST, SATURATION])
def test_linear_operations_equal_torchvision(operation: int, factor: float) -> None:
    """Alone they agree to torchvision's luma weights, which sum to 0.9999 instead of 1."""
    images = photographs()
    actual = changed(images, one(operation, factor), [0, 1, 2, 3]).clamp(0, 1)
    expected = TORCHVISION[operation](images, factor)
    assert (actual - expected).abs().max() < 2e-4


def test_grayscale_equals_torchvision() -> None:
    images = photographs()
    actual = changed(images, [1, 1, 1, 0], [0, 1, 2, 3], gray=True)
    assert (actual - TF.rgb_to_grayscale(images, 3)).abs().max() < 2e-4


def test_any_order_without_clipping() -> None:
    """Composed exactly in all 24 orders, contrast about the mean at its turn.

    The first three commute where nothing is clipped (all keep or scale the luma); hue does not.
    """
    images = photographs() * 0.4 + 0.25
    factors = [1.2, 0.7, 1.3, 0.08]
    rotation = hue_rotation(torch.tensor([factors[HUE]], dtype=torch.float64))[0]
    results = []
    for order in itertools.permutations(range(4)):
        expected = images
        for operation in order:
            if operation == HUE:
                expected = torch.einsum("ij,njhw->nihw", rotation, expected)
            else:
                expected = TORCHVISION[operation](expected, factors[operation])
        assert 0 < expected.min() < expected.max() < 1
        actual = changed(images, factors, list(order))
        assert (actual - expected).abs().max() < 5e-4
        results.append(actual)
    assert (results[0] - results[-1]).abs().max() > 1e-2


def test_hue_is_a_rotation_that_agrees_with_hsv_at_thirds() -> None:
    images = photographs()
    for turn in (1 / 3, -1 / 3):
        actual = changed(images, one(HUE, turn), [0, 1, 2, 3])
        assert (actual - TF.adjust_hue(images, turn)).abs().max() < 1e-3
    R = hue_rotation(torch.tensor([0.03, -0.1, 0.5], dtype=torch.float64))
    assert torch.allclose(R @ R.mT, torch.eye(3).double().expand(3, 3, 3), atol=1e-12)
    assert torch.allclose(R.sum(2), torch.ones(3, 3).double(), atol=1e-12)
    assert torch.allclose(torch.linalg.det(R), torch.ones(3).double(), atol=1e-12)


def hsv_hue(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hue in turns and chroma of every pixel, by HSV's hexagon."""
    red, green, blue = images.unbind(1)
    most, least = images.amax(1), images.amin(1)
    chroma = most - least
    safe = chroma.clamp(min=1e-9)
    hue = torch.where(most == red, (green - blue) / safe % 6, (red - green) / safe + 4)
    hue = torch.where((most == green) & (most != red), (blue - red) / safe + 2, hue)
    return hue / 6, chroma


def test_the_stated_difference_of_hue() -> None:
    """The angle agrees; the brightness of the channels does not (HSV keeps the extreme ones)."""
    images = photographs() * 0.6 + 0.2
    for turn, most in ((0.05, 5.0), (0.1, 9.0)):
        for sign in (1, -1):
            actual = changed(images, one(HUE, sign * turn), [0, 1, 2, 3])
            expected = TF.adjust_hue(images, sign * turn)
            assert (actual - expected).abs().mean() * 255 < most
            (ours, _), (theirs, chroma) = hsv_hue(actual), hsv_hue(expected)
            turned = ((ours - theirs + 0.5) % 1 - 0.5).abs()
            assert (turned * chroma).sum() / chroma.sum() < 0.005


def test_the_stated_difference_of_clipping() -> None:
    """torchvision clips after each operation, a composed map once at the end."""
    images = photographs()
    differences = []
    for order in itertools.permutations(range(3)):
        for factors in ([1.4, 1.4, 1.2, 0.0], [0.6, 1.4, 0.8, 0.0], [1.4, 0.6, 1.2, 0.0]):
            expected = images
            for operation in order:
                expected = TORCHVISION[operation](expected, factors[operation])
            actual = changed(images, factors, [*order, HUE]).clamp(0, 1)
            differences.append((actual - expected).abs().mean().item())
    assert max(differences) < 0.05, max(differences)
    assert sum(differences) / len(differences) < 0.012, sum(differences) / len(differences)
