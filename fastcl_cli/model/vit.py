"""A timm Vision Transformer, and the compressed forward pass around it.

`Encoder` owns a timm ``VisionTransformer`` and calls its parts; it never forks its blocks and adds
no parameter, so the state dict of ``Encoder.vit`` has timm's own names and loads with
``timm.create_model``.

Letters for shapes: B images, g tokens per side, L = g² tokens before dropping, K tokens kept,
D width, p the base patch side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from fastcl_cli.compression.tokens import gather_tokens, patchify
from fastcl_cli.config import VitShape
from fastcl_cli.errors import ConfigError
from fastcl_cli.model.paths import Branch
from fastcl_cli.model.position import fixed_embedding, learned_embedding, sincos_embedding
from fastcl_cli.model.short_attention import MOST_TOKENS, tiles_of

Views: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None]"
"""What `Encoder.forward` takes: views, kept tokens, and factors of the residual branches."""


class Encoder(nn.Module):
    """A ViT that encodes low-resolution views with any grid and any subset of tokens.

    Args:
        vit: the network; its parameters keep timm's names.
        position: ``learned`` embeddings are resampled to the view's grid; ``sincos`` ones are
            fixed (the parameter holds the base grid's code and takes no gradient) and evaluated
            at the view's token centres.
    """

    def __init__(self, vit: VisionTransformer, position: Literal["learned", "sincos"]) -> None:
        super().__init__()
        self.vit = vit
        self.position = position
        self.patch: int = vit.patch_embed.patch_size[0]
        self.base_grid: int = vit.patch_embed.grid_size[0]
        self.width: int = vit.embed_dim
        self.depth: int = len(vit.blocks)
        # How a block is run, and whether images with few tokens go through it in one row;
        # `compiled.compile_blocks` has another way.
        self.run_block: Callable[[nn.Module, Tensor], Tensor] = _run_block
        self.packs = False
        for block in vit.blocks:
            block.drop_path1, block.drop_path2 = Branch(), Branch()
        # Prefix tokens that have an entry of their own in the position embedding.
        self.embedded_prefix: int = 0 if vit.no_embed_class else vit.num_prefix_tokens
        if position == "sincos":
            code = sincos_embedding(self.base_grid, self.base_grid, self.width)
            with torch.no_grad():
                vit.pos_embed.zero_()
                vit.pos_embed[0, self.embedded_prefix :] = code
            vit.pos_embed.requires_grad_(False)

    def forward(
        self, view: Tensor, kept: Tensor | None = None, paths: Tensor | None = None
    ) -> Tensor:
        """Features of views, as ``timm``'s ``forward_head(..., pre_logits=True)`` gives them.

        Args:
            view: (B, 3, g·p, g·p), normalised; for patches larger than p the low-resolution view
                of `compression.patches`.
            kept: int64 (B, K), the patch tokens to encode, or None for all g².
            paths: (depth, 2, B), factors of the residual branches (`draw_paths`), or None for 1.

        Returns:
            (B, D).
        """
        return self.encode([(view, kept, paths)])[0]

    def encode(self, groups: Sequence[Views]) -> list[Tensor]:
        """`forward` of groups of views, of a shape each.

        Where all have few tokens, and `packs` is set, they go through the blocks as one row of
        tokens: one kernel does what each group would have one for.
        """
        packed = self.in_one_row([self._tokens(*group) for group in groups])
        tokens = self._packed(groups) if packed else [self.tokens(*group) for group in groups]
        return [self.vit.forward_head(each, pre_logits=True) for each in tokens]

    def tokens(
        self, view: Tensor, kept: Tensor | None = None, paths: Tensor | None = None
    ) -> Tensor:
        """All output tokens after the final norm, prefix first: (B, prefix + K, D)."""
        x = self._embed(view, kept)
        self.set_paths(paths)
        for block in self.vit.blocks:
            x = self.run_block(block, x)
        output: Tensor = self.vit.norm(x)
        return output

    def _packed(self, groups: Sequence[Views]) -> list[Tensor]:
        """`tokens` of each group."""
        embedded = [self._embed(view, kept) for view, kept, _ in groups]
        shapes = tuple((x.shape[0], x.shape[1]) for x in embedded)
        x = torch.cat([each.flatten(0, 1) for each in embedded]).unsqueeze(0)
        self.set_paths(None)
        if groups[0][2] is not None:
            each_token = [
                paths.repeat_interleave(tokens, dim=2)
                for (_, _, paths), (_, tokens) in zip(groups, shapes, strict=True)
                if paths is not None
            ]
            self.set_paths(torch.cat(each_token, dim=2)[:, :, None, :, None])
        self.set_tiles(tiles_of(shapes, x.device))
        for block in self.vit.blocks:
            x = self.run_block(block, x)
        self.set_tiles(None)
        parts = self.vit.norm(x)[0].split([images * tokens for images, tokens in shapes])
        return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]

    def in_one_row(self, tokens: Sequence[int]) -> bool:
        """Whether images of so many tokens each go through the blocks as one row: `packs` is set,
        all have few, and products here are in 16 bits."""
        kind = self.vit.pos_embed.device.type
        return self.packs and max(tokens) <= MOST_TOKENS and torch.is_autocast_enabled(kind)

    def _tokens(self, view: Tensor, kept: Tensor | None, paths: Tensor | None) -> int:
        """That an image of such a group has in the blocks."""
        patches = (view.shape[-1] // self.patch) ** 2 if kept is None else kept.shape[1]
        return patches + int(self.vit.num_prefix_tokens)

    def last_tokens(self, view: Tensor, blocks: int) -> list[Tensor]:
        """What each of the last ``blocks`` blocks gives for all tokens, through the final norm.

        Returns:
            ``blocks`` tensors (B, prefix + L, D), the last block's at the end; it is `tokens`.
        """
        assert 1 <= blocks <= self.depth
        x = self._embed(view, None)
        self.set_paths(None)
        outputs = []
        for index, block in enumerate(self.vit.blocks):
            x = self.run_block(block, x)
            if index >= self.depth - blocks:
                outputs.append(self.vit.norm(x))
        return outputs

    def set_tiles(self, tiles: Tensor | None) -> None:
        """Tell every `ShortAttention` whose tokens the next ones are."""
        for block in self.vit.blocks:
            block.attn.tiles = tiles

    def set_paths(self, paths: Tensor | None) -> None:
        """Give every residual branch its factors: (depth, 2, B), or None for 1."""
        for index, block in enumerate(self.vit.blocks):
            for branch, module in enumerate((block.drop_path1, block.drop_path2)):
                # A copy: where a slice begins would be part of what is compiled.
                module.factor = None if paths is None else paths[index, branch].clone()

    def _embed(self, view: Tensor, kept: Tensor | None) -> Tensor:
        """The tokens that enter the first block."""
        # Dropping comes before the projection, which is linear in each patch: a dropped patch
        # costs nothing and its pixels get a gradient of exactly zero.
        patches = patchify(view, self.patch)
        position = self.position_embedding(math.isqrt(patches.shape[1]))
        prefix_position = position[:, : self.embedded_prefix]
        position = position[:, self.embedded_prefix :]
        if kept is not None:
            patches, position = gather_tokens(patches, kept), gather_tokens(position, kept)
        projection = self.vit.patch_embed.proj
        x = F.linear(patches, projection.weight.flatten(1), projection.bias)
        x = self.vit.patch_embed.norm(x) + position
        x = torch.cat([*self._prefix(len(x), prefix_position), x], dim=1)
        embedded: Tensor = self.vit.norm_pre(x)
        return embedded

    def position_embedding(self, grid: int) -> Tensor:
        """What is added to the tokens of a view with ``grid`` per side: (1, prefix + grid², D),
        the prefix being the tokens that have an entry of their own."""
        parameter: Tensor = self.vit.pos_embed
        if grid == self.base_grid:
            return parameter
        if self.position == "learned":
            return learned_embedding(parameter, grid, self.base_grid, self.embedded_prefix)
        code = fixed_embedding(grid, self.base_grid, self.width, parameter.dtype, parameter.device)
        return torch.cat([parameter[:, : self.embedded_prefix], code.unsqueeze(0)], dim=1)

    def _prefix(self, images: int, position: Tensor) -> list[Tensor]:
        given = [t for t in (self.vit.cls_token, self.vit.reg_token) if t is not None]
        if not given:
            return []
        prefix = torch.cat(given, dim=1)
        if self.embedded_prefix:
            prefix = prefix + position
        return [prefix.expand(images, -1, -1)]


def _run_block(block: nn.Module, x: Tensor) -> Tensor:
    if x.device.type == "cpu" and isinstance(block, Block):
        # torch's fused attention takes as long in bf16 as in float32 there, and its backward pass
        # several times as long as three batched products, which use the processor's bf16 units. It
        # is the better one in float32 (benchmarks/attention.py).
        block.attn.fused_attn = not torch.is_autocast_enabled("cpu")
    return block(x)  # type: ignore[no-any-return]


def build_vit(shape: VitShape, image: int, *, weight_init: str = "") -> VisionTransformer:
    """The timm model of a configuration, with random weights and without a classifier.

    Raises:
        ConfigError: timm does not know the name, or the model is not a plain ViT whose parts
            `Encoder` can call.
    """
    arguments = dict(shape.options)
    try:
        vit = timm.create_model(
            shape.name, num_classes=0, img_size=image, weight_init=weight_init, **arguments
        )
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ConfigError(f"timm cannot build {shape.name} {arguments}: {error}") from error
    if not isinstance(vit, VisionTransformer) or vit.pos_embed is None:
        raise ConfigError(
            f"{shape.name} is not a VisionTransformer with absolute position embeddings",
            "use a plain ViT of timm, such as vit_small_patch16_224",
        )
    return vit
