"""What the methods' reference tests share: batches of views, and the update that follows a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import reference as ref
import torch
from tiny import BASE, DEPTH
from torch import Tensor

from fastcl_cli.compression.patches import reduction_matrix
from fastcl_cli.compression.tokens import draw_kept_tokens
from fastcl_cli.methods.base import Input, Method
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.train.device import Device
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.schedules import Values
from fastcl_cli.train.step import Trainer

BETAS = (0.9, 0.999)
ZERO = 1e-10
"""Gradients below this are zero in theory (a bias that a batch norm removes, say). AdamW divides by
sqrt(v) + 1e-8 and makes an update of their rounding, which two programs do not share."""


@dataclass(frozen=True)
class View:
    """A full-resolution view, and how each encoder sees it (None: it does not)."""

    pixels: Tensor
    online: tuple[int, Tensor | None]
    target: tuple[int, Tensor | None] | None
    paths: Tensor | None = None

    def input(self, encoder: str) -> Input | None:
        seen = self.online if encoder == "online" else self.target
        if seen is None:
            return None
        patch, kept = seen
        d = reduction_matrix(self.pixels.shape[-1], patch, BASE)
        pixels = self.pixels if d is None else d @ self.pixels @ d.T
        return Input(pixels, kept, self.paths if encoder == "online" else None)


@dataclass(frozen=True)
class Setting:
    """Compression of a batch: patch sides, and whether the online encoder drops half."""

    online_patch: int
    target_patch: int
    drop: bool
    drop_path: float = 0.0


SETTINGS = {
    "full": Setting(4, 4, False),
    "drop": Setting(4, 4, True),
    "drop+patch": Setting(8, 8, True),
    "patch on online": Setting(8, 4, False),
}


def batch(
    setting: Setting, sides: Sequence[int], targets: int, seed: int, images: int = 6
) -> list[View]:
    """Views of images with these sides; the first ``targets`` are seen by the target too."""
    g = torch.Generator().manual_seed(seed)
    views = []
    for index, side in enumerate(sides):
        grid = side // setting.online_patch
        kept = draw_kept_tokens(images, grid**2, max(1, grid**2 // 2), g) if setting.drop else None
        pixels = torch.randn(images, 3, side, side, dtype=torch.float64, generator=g)
        paths = None
        if setting.drop_path:
            paths = draw_paths(images, DEPTH, setting.drop_path, g).double()
        target = (setting.target_patch, None) if index < targets else None
        views.append(View(pixels, (setting.online_patch, kept), target, paths))
    return views


def inputs(views: Sequence[View], encoder: str) -> list[Input]:
    return [x for view in views if (x := view.input(encoder)) is not None]


ReferenceLoss = Callable[[ref.Params, ref.Params, Sequence[View], int], Tensor]


def check_updates(
    method: Method,
    batches: Sequence[Sequence[View]],
    values: Sequence[Values],
    reference_loss: ReferenceLoss,
    momentum_before: float | None,
    *,
    clip: float | None = None,
    skipped: Callable[[int, str], bool] = lambda index, name: False,
) -> None:
    """Train both on ``batches``; compare loss, gradients, weights and average after each update.

    With ``momentum_before`` the reference averages in the published MoCo order: the target moves
    at the start of each step, first with this momentum. Without, it moves at the end of it.
    """
    online = {k: v.detach().clone() for k, v in method.online.named_parameters()}
    target = {}
    if method.target is not None:
        target = {k: v.detach().clone() for k, v in method.target.named_parameters()}
    trained = sorted(method.trained())
    trainer = Trainer(
        method,
        build_optimizer(method, BETAS),
        type("Fixed", (), {"at": lambda self, step: values[step]})(),
        lambda step, segment, decoded: (  # type: ignore[arg-type]
            inputs(batches[step], "online"),
            inputs(batches[step], "target"),
        ),
        Device(torch.device("cpu"), "float32", 2),
        clip,
    )
    adam = ref.AdamW(BETAS)
    for index, views in enumerate(batches):
        value = values[index]
        if momentum_before is not None:
            before = momentum_before if index == 0 else values[index - 1].momentum
            target = _average(target, online, before)
        leaves = {k: v.clone().requires_grad_(k in trained) for k, v in online.items()}
        loss = reference_loss(leaves, target, views, index)
        gradients = dict(
            zip(trained, torch.autograd.grad(loss, [leaves[n] for n in trained]), strict=True)
        )
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        if clip is not None:
            gradients = {k: g * min(1, clip / float(g.norm())) for k, g in gradients.items()}
        gradients = {k: g for k, g in gradients.items() if not skipped(index, k)}

        result = trainer.step(index, None, None)  # type: ignore[arg-type]
        assert result.loss == pytest.approx(loss.item(), abs=1e-9)
        assert result.gradient_norm == pytest.approx(norm, abs=1e-9)
        own = dict(method.online.named_parameters())
        for name, gradient in gradients.items():
            assert (own[name].grad - gradient).abs().max() <= 1e-9, name
        decay = {n: value.weight_decay * method.decays(n, own[n]) for n in gradients}
        adam.update(online, gradients, value.lr, decay)
        for name, weight in online.items():
            if name in gradients and gradients[name].abs().max() < ZERO:
                continue
            off = float((own[name] - weight).detach().abs().max())
            assert off <= 1e-9, (index, name, off)
        if momentum_before is None:
            target = _average(target, online, value.momentum)
        _compare_target(method, target, None if momentum_before is None else online, value)


def _average(
    target: dict[str, Tensor], online: ref.Params, momentum: float | None
) -> dict[str, Tensor]:
    return {k: momentum * v + (1 - momentum) * online[k] for k, v in target.items()}  # type: ignore[operator]


def _compare_target(
    method: Method, target: dict[str, Tensor], online: ref.Params | None, value: Values
) -> None:
    """In the MoCo order the method's target is already that of the next step's start."""
    if method.target is None:
        return
    if online is not None:
        target = _average(target, online, value.momentum)
    for name, parameter in method.target.named_parameters():
        assert (parameter - target[name]).abs().max() <= 1e-9, name
