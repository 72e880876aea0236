"""Analytic cost of training, in floating point operations of matrix products.

A multiplication with its addition counts 2, as `torch.utils.flop_counter` counts. For one image's
view with K patch tokens and n = K + prefix tokens, a ViT of width D, depth d and MLP ratio r needs

    F = 2·K·3p²·D  +  d · (2·n·D²·(4 + 2r) + 4·n²·D)

(patch projection; then per block query, key, value and output 4·D², the MLP 2r·D², and the two
attention products, n²·D each: Kaplan et al., arXiv 2001.08361, section 2.1, with the attention
term kept, which is not small at short widths). The projection costs 3p² inputs with the *base*
patch side p whatever the patch, because the trainer projects the low-resolution view, and only kept
tokens are projected. Norms, activations and softmaxes are not counted.

The backward pass is counted as twice the forward pass. The target encoder has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastcl_cli.config import Method, RunConfig, VitShape
from fastcl_cli.plan import View


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Forward operations for one image's contribution to the gradient, over all its views."""

    online: int
    target: int

    @property
    def training(self) -> int:
        """Forward and backward: 3·online + target."""
        return 3 * self.online + self.target


def encoder_flops(model: VitShape, kept: int) -> int:
    """Forward operations of a ViT on one view with ``kept`` patch tokens."""
    width = model.embed_dim
    tokens = kept + model.prefix_tokens
    hidden = int(width * model.mlp_ratio)
    projection = 2 * kept * 3 * model.patch**2 * width
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 4 * tokens**2 * width
    return projection + model.depth * block


def _mlp_flops(*sizes: int) -> int:
    return 2 * sum(a * b for a, b in pairwise(sizes))


def head_flops(method: Method, width: int, head: Sequence[int]) -> tuple[int, int]:
    """Forward operations of the heads on one feature vector: (online, target).

    MoCo-v3: projector of three layers, online followed by a predictor of two. SimCLR: projector of
    three. DINO: three layers to the bottleneck, then the prototypes.
    """
    if method == "dino":
        hidden, bottleneck, prototypes = head
        both = _mlp_flops(width, hidden, hidden, bottleneck, prototypes)
        return both, both
    hidden, out = head
    projector = _mlp_flops(width, hidden, hidden, out)
    if method == "simclr":
        return projector, 0
    return projector + _mlp_flops(out, hidden, out), projector


def loss_flops(method: Method, head: Sequence[int], batch: int) -> int:
    """Forward operations of the loss for one image, over all its views.

    MoCo-v3 multiplies a query of each of the two views with ``batch`` keys. SimCLR multiplies each
    of the two views with all 2·``batch``. DINO's cross-entropy holds no matrix product.
    """
    if method == "moco":
        return 2 * (2 * batch * head[1])
    if method == "simclr":
        return 2 * (2 * 2 * batch * head[1])
    return 0


def forward_flops(config: RunConfig, views: Sequence[View], batch: int) -> ForwardFlops:
    """Forward operations for one image in a batch of ``batch``, seen in ``views``."""
    head_online, head_target = head_flops(config.method, config.model.embed_dim, config.head)
    online = loss_flops(config.method, config.head, batch)
    target = 0
    for view in views:
        online += view.count * (encoder_flops(config.model, view.online.kept) + head_online)
        if view.target is not None:
            target += view.count * (encoder_flops(config.model, view.target.kept) + head_target)
    return ForwardFlops(online, target)


def repeated_flops(config: RunConfig, views: Sequence[View]) -> int:
    """Forward operations that ``accumulate`` makes the online backbone do a second time for one
    image: no part of the sample cost, which is the compression's."""
    if config.accumulate == 1:
        return 0
    return sum(view.count * encoder_flops(config.model, view.online.kept) for view in views)


def unit_flops(config: RunConfig) -> int:
    """Operations of one unit: a forward pass of the uncompressed encoder on one full image."""
    return encoder_flops(config.model, (config.image // config.model.patch) ** 2)


def units_per_image(config: RunConfig, full_views: Sequence[View]) -> float:
    """U: encoder forward passes that one image costs without compression, in units.

    MoCo-v3 2 + 2, SimCLR 2, DINO 2 + 2 and what its local views amount to (8 of side 96 at patch
    16: 1.3). The paper's budgets count the same passes: a symmetric MoCo-v3 loss is two queries and
    two keys.
    """
    total = 0
    for view in full_views:
        total += view.count * encoder_flops(config.model, view.online.kept)
        if view.target is not None:
            total += view.count * encoder_flops(config.model, view.target.kept)
    return total / unit_flops(config)
