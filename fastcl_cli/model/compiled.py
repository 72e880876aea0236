"""Running the transformer's blocks on a GPU: compiled, once for all of them and for every shape.

What is compiled is one block, not the network: all blocks run the same code on other weights, so
one compilation of some seconds serves the whole depth of both encoders. Batch and number of tokens
are symbols in it, so a phase with another compression finds its code ready. (What runs in another
precision, k-NN during a run, is compiled when it first comes.) Matrix products go to the vendor's
library either way; what is gained is that everything between them (norms, GELU, casts, residuals)
takes one pass over the memory instead of several. Attention among few tokens has
a kernel of its own (`short_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fastcl_cli.model.short_attention import (
    Shape,
    tiles_of,
    use_short_attention,
    use_timm_attention,
)
from fastcl_cli.model.vit import Encoder

Groups: TypeAlias = tuple[Shape, ...]
"""What an encoder sees in one step (`Encoder.encode`)."""

_VARIANTS = 32
"""Of a block's code: torch gives up after 8."""


class CompilationError(Exception):
    """Blocks cannot be compiled on this machine."""


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """A block's output, (B, T, D)."""
    return block(x)  # type: ignore[no-any-return]


def compile_blocks(
    online: Encoder,
    target: Encoder | None,
    online_groups: Sequence[Groups],
    target_groups: Sequence[Groups],
    *,
    dropped_paths: bool,
    backend: str = "inductor",
) -> None:
    """Compile the blocks of both encoders, in the current autocast state, and run one for all that
    they will see, so that all is compiled when this returns.

    Code is made for the first groups' size, though it is right for any: the largest goes first.

    Args:
        dropped_paths: whether the online encoder's branches will have factors.
        backend: torch's name of it.

    Raises:
        CompilationError: it cannot be done here; blocks run as they are.
    """
    # Both encoders, with and without gradients, for few tokens and many: each is one.
    torch._dynamo.config.recompile_limit = max(_VARIANTS, torch._dynamo.config.recompile_limit)
    encoders = [(online, online_groups, dropped_paths)]
    if target is not None:
        encoders.append((target, target_groups, False))
    try:
        compiled = torch.compile(run_block, dynamic=True, backend=backend)
        for encoder, groups, dropped in encoders:
            encoder.run_block = compiled
            taken = [use_short_attention(block) for block in encoder.vit.blocks]
            encoder.packs = all(taken) and next(encoder.parameters()).is_cuda
            for shapes in sorted(set(groups), key=_tokens, reverse=True):
                _try(encoder, shapes, dropped)
    except Exception as error:  # whatever a compiler, or one that is missing, may raise
        for encoder, *_ in encoders:
            encoder.run_block, encoder.packs = run_block, False
            for block in encoder.vit.blocks:
                use_timm_attention(block)
        lines = str(error).strip().splitlines() or [""]
        raise CompilationError(f"{type(error).__name__}: {lines[0]}") from error


def _try(encoder: Encoder, groups: Groups, dropped_paths: bool) -> None:
    """Forward, and backward where there are gradients, through one block; none is left behind."""
    device = next(encoder.parameters()).device
    if encoder.in_one_row([tokens for _, tokens in groups]):
        encoder.set_tiles(tiles_of(groups, device))
        row = _tokens(groups)
        factors = torch.ones(encoder.depth, 2, 1, row, 1, device=device)
        _try_one(encoder, (1, row), factors if dropped_paths else None)
        encoder.set_tiles(None)
        return
    for images, tokens in groups:
        factors = torch.ones(encoder.depth, 2, images, device=device)
        _try_one(encoder, (images, tokens), factors if dropped_paths else None)


def _try_one(encoder: Encoder, shape: Shape, factors: Tensor | None) -> None:
    block = encoder.vit.blocks[0]
    parameters = [p for p in block.parameters() if p.requires_grad]
    encoder.set_paths(factors)
    x = torch.ones(*shape, encoder.width, device=next(block.parameters()).device)
    with torch.set_grad_enabled(bool(parameters)):
        output = encoder.run_block(block, x.requires_grad_(bool(parameters)))
    if parameters:
        torch.autograd.grad(output.sum(), [x, *parameters])
    encoder.set_paths(None)


def _tokens(groups: Groups) -> int:
    return sum(images * tokens for images, tokens in groups)
