"""Patch scaling and token dropout, held to their definitions in float64."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from fastcl_cli.compression.patches import bilinear_matrix, pi_resize, reduction_matrix
from fastcl_cli.compression.tokens import draw_kept_tokens, gather_tokens, patchify

SIZES = [(4, 8), (8, 12), (16, 20), (16, 28), (16, 32), (14, 56), (16, 56)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def upsampled(patches: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(patches, size=(side, side), mode="bilinear", antialias=False)


@pytest.mark.parametrize(("base", "patch"), SIZES)
def test_bilinear_matrix_is_torch_bilinear_upsampling(base: int, patch: int) -> None:
    x = torch.randn(2, 3, base, base, dtype=torch.float64, generator=generator())
    b = bilinear_matrix(base, patch)
    assert torch.allclose(b @ x @ b.T, upsampled(x, patch), atol=1e-12)


@pytest.mark.parametrize(("base", "patch"), SIZES)
def test_pi_resize_keeps_inner_products_of_upsampled_patches(base: int, patch: int) -> None:
    """FlexiViT's defining property: <upsample(x), resize(w)> = <x, w>, for every x."""
    x = torch.randn(5, 3, base, base, dtype=torch.float64, generator=generator(1))
    w = torch.randn(7, 3, base, base, dtype=torch.float64, generator=generator(2))
    resized = torch.einsum("ncpq,dcpq->nd", upsampled(x, patch), pi_resize(w, patch))
    assert torch.allclose(resized, torch.einsum("ncpq,dcpq->nd", x, w), atol=1e-10)


@pytest.mark.parametrize(("base", "patch"), SIZES)
def test_pi_resize_is_the_joint_pseudo_inverse(base: int, patch: int) -> None:
    """The separable form equals pinv(Bᵀ) w with the full matrix B of the paper."""
    w = torch.randn(2, 1, base, base, dtype=torch.float64, generator=generator(3))
    eye = torch.eye(base * base, dtype=torch.float64).reshape(-1, 1, base, base)
    full = upsampled(eye, patch).reshape(base * base, -1).T
    expected = (torch.linalg.pinv(full.T) @ w.reshape(2, -1).T).T.reshape(2, 1, patch, patch)
    assert torch.allclose(pi_resize(w, patch), expected, atol=1e-10)


@pytest.mark.parametrize(("base", "patch"), SIZES)
def test_low_resolution_view_equals_pi_resize(base: int, patch: int) -> None:
    """Tokens, and gradients of the base kernel, are the same by both paths, on any image."""
    grid = 3
    view = torch.rand(2, 3, grid * patch, grid * patch, dtype=torch.float64, generator=generator(4))
    w = torch.randn(5, 3, base, base, dtype=torch.float64, generator=generator(5))
    reduction = reduction_matrix(grid * patch, patch, base)
    assert reduction is not None
    by_kernel, by_image = w.clone().requires_grad_(), w.clone().requires_grad_()
    reference = F.conv2d(view, pi_resize(by_kernel, patch), stride=patch)
    tokens = F.conv2d(reduction @ view @ reduction.T, by_image, stride=base)
    assert (tokens - reference).abs().max() <= 1e-10
    reference.square().sum().backward()
    tokens.square().sum().backward()
    assert by_kernel.grad is not None and by_image.grad is not None
    assert (by_kernel.grad - by_image.grad).abs().max() <= 1e-10 * by_kernel.grad.abs().max()


def test_area_downsampling_is_not_the_same() -> None:
    """The negative control: the plain way to shrink a view gives other tokens."""
    view = torch.rand(1, 3, 96, 96, dtype=torch.float64, generator=generator(6))
    w = torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=generator(7))
    reference = F.conv2d(view, pi_resize(w, 32), stride=32)
    area = F.conv2d(F.interpolate(view, size=(48, 48), mode="area"), w, stride=16)
    assert (area - reference).norm() > 0.05 * reference.norm()


def test_reduction_keeps_constants_and_is_none_for_the_base_patch() -> None:
    reduction = reduction_matrix(224, 28, 16)
    assert reduction is not None
    assert reduction.shape == (128, 224)
    assert torch.allclose(reduction.sum(dim=1), torch.ones(128, dtype=torch.float64), atol=1e-12)
    assert reduction_matrix(224, 16, 16) is None


def test_patchify_orders_values_like_a_convolution() -> None:
    view = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=generator(8))
    w = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator(9))
    tokens = patchify(view, 4) @ w.flatten(1).T
    expected = F.conv2d(view, w, stride=4).flatten(2).transpose(1, 2)
    assert torch.allclose(tokens, expected, atol=1e-12)


@pytest.mark.parametrize(("tokens", "kept"), [(49, 25), (196, 98), (9, 1), (9, 9)])
def test_kept_tokens_are_a_subset_of_the_asked_size(tokens: int, kept: int) -> None:
    drawn = draw_kept_tokens(64, tokens, kept, generator())
    assert drawn.shape == (64, kept)
    assert drawn.min() >= 0 and drawn.max() < tokens
    assert (drawn.diff(dim=1) > 0).all(), "increasing, so no token twice"


def test_all_subsets_are_equally_likely() -> None:
    """Chi-square over the 20 subsets of 3 out of 6: 99.9 % point of chi2(19) is 43.8."""
    drawn = draw_kept_tokens(20_000, 6, 3, generator(1)).tolist()
    counts = Counter(tuple(row) for row in drawn)
    subsets = list(combinations(range(6), 3))
    expected = len(drawn) / len(subsets)
    statistic = sum((counts[s] - expected) ** 2 / expected for s in subsets)
    assert statistic < 43.8
    assert set(counts) == set(subsets)


def test_draws_depend_on_the_generator_alone() -> None:
    first = draw_kept_tokens(8, 49, 25, generator(3))
    torch.rand(5)
    assert torch.equal(first, draw_kept_tokens(8, 49, 25, generator(3)))
    assert not torch.equal(first, draw_kept_tokens(8, 49, 25, generator(4)))
    state = torch.get_rng_state()
    draw_kept_tokens(8, 49, 25, generator(3))
    assert torch.equal(state, torch.get_rng_state())


def test_gather_takes_the_named_rows() -> None:
    tokens = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    kept = torch.tensor([[0, 4], [1, 2]])
    assert torch.equal(gather_tokens(tokens, kept)[1], tokens[1, [1, 2]])
    shared = gather_tokens(tokens[:1], kept)
    assert torch.equal(shared[1], tokens[0, [1, 2]])
    assert math.prod(shared.shape) == 2 * 2 * 3
