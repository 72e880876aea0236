"""From decoded images to what each encoder sees at one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastcl_cli.compression.patches import reduction_matrix
from fastcl_cli.compression.tokens import draw_kept_tokens
from fastcl_cli.config import RunConfig
from fastcl_cli.data.augment import ViewDraw, draw_views
from fastcl_cli.data.views import make_view
from fastcl_cli.methods.base import Input
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.plan import Tokens, View
from fastcl_cli.rng import derive_seed


@dataclass(frozen=True)
class Batch:
    """A global batch of B images as one process has it.

    Attributes:
        images: uint8 (b, S, S, 3), the decoded images of this process.
        indices: int64 (B,), which image of the data each one of the whole batch is.
        rows: which b of the B are here.
    """

    images: Tensor
    indices: npt.NDArray[np.int64]
    rows: slice


class Sizes(Protocol):
    """What must be known of the images to draw their views: int32 (N,) heights and widths."""

    @property
    def heights(self) -> npt.NDArray[np.int32]: ...

    @property
    def widths(self) -> npt.NDArray[np.int32]: ...


def decoded_side(image: int, data: Sizes) -> int:
    """Side of the decoded square: 8/7 of the view, as in the usual 256 for 224, but no more than
    the data set's largest image has."""
    stored = int(max(data.heights.max(), data.widths.max()))
    return max(min(round(image * 8 / 7), stored), 2)


Kind: TypeAlias = Literal["first", "second", "local"]


class InputMaker:
    """Makes the inputs of both encoders, with every random draw keyed by (seed, purpose, step).

    Views that both encoders see with the same patch are rendered once. Draws are made on the CPU
    for the whole global batch, and a process takes its rows; pixels are rendered on ``device``.
    """

    def __init__(self, config: RunConfig, data: Sizes, seed: int, device: torch.device) -> None:
        self._augmentation = config.augmentation
        self._base_patch = config.model.patch
        self._depth, self._drop_path = config.model.depth, config.drop_path
        self._heights, self._widths = data.heights, data.widths
        self._seed = seed
        self._device = device

    def __call__(
        self, step: int, views: Sequence[View], batch: Batch
    ) -> tuple[list[Input], list[Input]]:
        """Inputs of the online and of the target encoder, global views first."""
        images = batch.images.to(self._device)
        online: list[Input] = []
        target: list[Input] = []
        for number, (kind, view) in enumerate(each_view(views)):
            draw = self._draw(kind, number, step, batch)
            rendered: dict[int, Tensor] = {}
            for tokens, side, inputs in (
                (view.online, "online", online),
                (view.target, "target", target),
            ):
                if tokens is None:
                    continue
                if tokens.patch not in rendered:
                    rendered[tokens.patch] = self._render(images, draw, tokens)
                kept = self._kept(f"{side} tokens {number}", step, batch, tokens)
                paths = self._paths(number, step, batch) if side == "online" else None
                inputs.append(Input(rendered[tokens.patch], kept, paths))
        return online, target

    def _draw(self, kind: Kind, number: int, step: int, batch: Batch) -> ViewDraw:
        generator = self._generator(f"view {number}", step)
        heights, widths = self._heights[batch.indices], self._widths[batch.indices]
        drawn = draw_views(self._augmentation, kind, heights, widths, generator)
        return drawn.rows(batch.rows)

    def _render(self, images: Tensor, draw: ViewDraw, tokens: Tokens) -> Tensor:
        side = tokens.grid * tokens.patch
        reduction = reduction_matrix(side, tokens.patch, self._base_patch)
        return make_view(images, draw, side, reduction, self._augmentation.resize)

    def _kept(self, purpose: str, step: int, batch: Batch, tokens: Tokens) -> Tensor | None:
        """None where every token is kept: the encoder then gathers nothing."""
        if tokens.kept == tokens.grid**2:
            return None
        generator = self._generator(purpose, step)
        images, total = len(batch.indices), tokens.grid**2
        kept = draw_kept_tokens(images, total, tokens.kept, generator, batch.rows)
        return kept.to(self._device)

    def _paths(self, number: int, step: int, batch: Batch) -> Tensor | None:
        if self._drop_path == 0:
            return None
        generator = self._generator(f"paths {number}", step)
        paths = draw_paths(len(batch.indices), self._depth, self._drop_path, generator)
        return paths[..., batch.rows].to(self._device)

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, purpose, step))


def each_view(views: Sequence[View]) -> Iterator[tuple[Kind, View]]:
    """Every single view of an image, with the part of the recipe that it follows."""
    for view in views:
        for copy in range(view.count):
            if view.name == "local":
                yield "local", view
            else:
                yield ("first" if copy == 0 else "second"), view
