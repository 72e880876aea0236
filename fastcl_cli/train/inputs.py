"""From decoded images to what each encoder sees at one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastcl_cli.compression.patches import reduction_matrix
from fastcl_cli.compression.tokens import draw_kept_tokens
from fastcl_cli.config import RunConfig
from fastcl_cli.data.augment import Kind, draw_views
from fastcl_cli.data.pixels import ViewPart
from fastcl_cli.data.views import prepare_views, render_views
from fastcl_cli.methods.base import Input
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.plan import Tokens, View
from fastcl_cli.rng import derive_seed
from fastcl_cli.transfer import to_device


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


@dataclass(frozen=True)
class Drawn:
    """The random draws of a view's copies for a batch, in this process's rows.

    Attributes:
        pixels: what decides them, whatever the view's side.
        online, target: of each copy, the patch tokens that an encoder keeps, int64 (b, K), or None
            for all.
        paths: of each copy, the online encoder's `draw_paths`, (depth, 2, b), or None for 1.
    """

    pixels: tuple[ViewPart, ...]
    online: tuple[Tensor | None, ...]
    target: tuple[Tensor | None, ...]
    paths: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Prepared:
    """A batch of b images with all that is drawn for it, where its pixels are rendered."""

    images: Tensor
    drawn: tuple[Drawn, ...]


class InputMaker:
    """Makes the inputs of both encoders, with every random draw keyed by (seed, purpose, step).

    `prepare` draws, on the CPU, for the whole global batch, of which a process takes its rows, and
    brings all of it to ``device``; it changes nothing, so it may run ahead, in another thread.
    `render` makes the pixels there. Views that both encoders see with the same patch are rendered
    once.
    """

    def __init__(self, config: RunConfig, data: Sizes, seed: int, device: torch.device) -> None:
        self._augmentation = config.augmentation
        self._base_patch = config.model.patch
        self._depth, self._drop_path = config.model.depth, config.drop_path
        self._heights, self._widths = data.heights, data.widths
        self._seed = seed
        self.device = device

    def __call__(
        self, step: int, views: Sequence[View], batch: Batch | Prepared
    ) -> tuple[list[Input], list[Input]]:
        """Inputs of the online and of the target encoder, global views first."""
        ready = batch if isinstance(batch, Prepared) else self.prepare(step, views, batch)
        return self.render(views, ready)

    def prepare(self, step: int, views: Sequence[View], batch: Batch) -> Prepared:
        """All that a step draws and needs, on the device; ``batch`` is not needed any more then."""
        drawn, first = [], 0
        for view in views:
            drawn.append(self._draw(view, range(first, first + view.count), step, batch))
            first += view.count
        images = batch.images.to(self.device, non_blocking=True)
        ready = Prepared(images, to_device(tuple(drawn), self.device))
        if self.device.type == "cuda":
            # The loader decodes into the same page-locked memory again.
            torch.cuda.current_stream().synchronize()
        return ready

    def render(self, views: Sequence[View], ready: Prepared) -> tuple[list[Input], list[Input]]:
        """The pixels of every view, as the encoders take them."""
        online: list[Input] = []
        target: list[Input] = []
        for view, drawn in zip(views, ready.drawn, strict=True):
            rendered: dict[int, tuple[Tensor, ...]] = {}
            for tokens, kept, paths, inputs in (
                (view.online, drawn.online, drawn.paths, online),
                (view.target, drawn.target, [None] * view.count, target),
            ):
                if tokens is None:
                    continue
                if tokens.patch not in rendered:
                    rendered[tokens.patch] = self._pixels(ready.images, drawn, tokens).unbind(1)
                inputs += map(Input, rendered[tokens.patch], kept, paths)
        return online, target

    def _draw(self, view: View, numbers: Sequence[int], step: int, batch: Batch) -> Drawn:
        draws = []
        for copy, number in enumerate(numbers):
            generator = self._generator(f"view {number}", step)
            heights, widths = self._heights[batch.indices], self._widths[batch.indices]
            kind = kind_of(view, copy)
            draw = draw_views(self._augmentation, kind, heights, widths, generator)
            draws.append(draw.rows(batch.rows))
        source = batch.images.shape[1]
        return Drawn(
            prepare_views(draws, source, self.device),
            tuple(self._kept(f"online tokens {n}", step, batch, view.online) for n in numbers),
            tuple(self._kept(f"target tokens {n}", step, batch, view.target) for n in numbers),
            tuple(self._paths(n, step, batch) for n in numbers),
        )

    def _pixels(self, images: Tensor, drawn: Drawn, tokens: Tokens) -> Tensor:
        side = tokens.grid * tokens.patch
        reduction = _reduction(side, tokens.patch, self._base_patch, self.device)
        return render_views(images, drawn.pixels, side, reduction, self._augmentation.resize)

    def _kept(self, purpose: str, step: int, batch: Batch, tokens: Tokens | None) -> Tensor | None:
        """None where every token is kept: the encoder then gathers nothing."""
        if tokens is None or tokens.kept == tokens.grid**2:
            return None
        generator = self._generator(purpose, step)
        images, total = len(batch.indices), tokens.grid**2
        return draw_kept_tokens(images, total, tokens.kept, generator, batch.rows)

    def _paths(self, number: int, step: int, batch: Batch) -> Tensor | None:
        if self._drop_path == 0:
            return None
        generator = self._generator(f"paths {number}", step)
        paths = draw_paths(len(batch.indices), self._depth, self._drop_path, generator)
        return paths[..., batch.rows]

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, purpose, step))


@lru_cache(maxsize=256)
def _reduction(side: int, patch: int, base: int, device: torch.device) -> Tensor | None:
    matrix = reduction_matrix(side, patch, base)
    return None if matrix is None else matrix.to(device, torch.float32)


def kind_of(view: View, copy: int) -> Kind:
    """The part of the recipe that a copy of a view follows."""
    if view.name == "local":
        return "local"
    return "first" if copy == 0 else "second"
