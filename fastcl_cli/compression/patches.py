"""Larger patches without new parameters, in two equal forms.

Let p be the model's own patch side and P >= p the side that a schedule asks for. Bilinear
upsampling p -> P is separable: the p² -> P² matrix is B = b (x) b with the one-dimensional P x p
matrix b of `bilinear_matrix`.

- `pi_resize` is the reference, FlexiViT's pseudo-inverse resize of the *kernel* (Beyer et al.,
  arXiv 2212.08013, eq. 4): w_P = pinv(Bᵀ) w, so that an upsampled patch gives the same token.
- `reduction_matrix` is what training uses: the same inner product with the pseudo-inverse moved to
  the *image*, <x, pinv(Bᵀ) w> = <pinv(B) x, w> = <pinv(b) X pinv(b)ᵀ, W>. The view becomes
  (side/P)·p pixels wide and goes through the unchanged p-kernel, so augmentation, copies and the
  projection shrink by (p/P)² too.

The two agree to rounding (float64: 1e-12), in values and in the gradient of the base kernel.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def bilinear_matrix(small: int, large: int) -> Tensor:
    """Bilinear upsampling of ``small`` samples to ``large`` ones, as a float64 matrix.

    Pixel centres are at half-integers (``align_corners=False``), the border is repeated, and there
    is no antialiasing, as FlexiViT has it. Shape (large, small); its rows sum to 1.
    """
    assert 1 <= small <= large
    centre = (torch.arange(large, dtype=torch.float64, device="cpu") + 0.5) * small / large - 0.5
    left = centre.floor()
    share = centre - left
    rows = torch.arange(large, device="cpu")
    matrix = torch.zeros(large, small, dtype=torch.float64, device="cpu")
    for index, weight in ((left, 1 - share), (left + 1, share)):
        matrix.index_put_((rows, index.long().clamp(0, small - 1)), weight, accumulate=True)
    return matrix


@lru_cache(maxsize=256)
def reduction_matrix(side: int, patch: int, base: int) -> Tensor | None:
    """The matrix D that reduces one axis of a view to its low-resolution form.

    D = blockdiag(pinv(b), ..., pinv(b)), one block for each patch: a view of ``side`` pixels cut
    into patches of ``patch`` becomes D · view · Dᵀ, of (side / patch) · base pixels, whose patches
    of ``base`` pixels give through the base kernel what the original patches give through the
    PI-resized one. D · 1 = 1, so D leaves constants alone and commutes with affine colour.

    Returns:
        float64 (side / patch · base, side), or None where patch == base and D is the identity.
    """
    assert side % patch == 0 and patch >= base
    if patch == base:
        return None
    block = torch.linalg.pinv(bilinear_matrix(base, patch))
    return torch.kron(torch.eye(side // patch, dtype=block.dtype, device="cpu"), block)


def pi_resize(kernel: Tensor, patch: int) -> Tensor:
    """FlexiViT's pseudo-inverse resize of a patch-embedding kernel; differentiable.

    Args:
        kernel: (D, C, p, p), the base kernel.
        patch: P >= p, the patch side to resize to.

    Returns:
        (D, C, P, P) in the kernel's dtype.
    """
    base = kernel.shape[-1]
    if patch == base:
        return kernel
    inverse = torch.linalg.pinv(bilinear_matrix(base, patch)).to(kernel)
    return torch.einsum("pP,dcpq,qQ->dcPQ", inverse, kernel, inverse)
