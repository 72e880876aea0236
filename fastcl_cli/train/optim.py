"""AdamW with the parameter groups of a method's recipe."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fastcl_cli.methods.base import Method
from fastcl_cli.shards import local, norms
from fastcl_cli.train.schedules import Values


def build_optimizer(method: Method, betas: tuple[float, float]) -> AdamW:
    """Fused AdamW (Loshchilov and Hutter, arXiv 1711.05101); rates are set before each update.

    Two groups: parameters that decay, and the others (their ``decays`` entry says which).
    """
    parameters = method.trained()
    groups = []
    for decays in (True, False):
        members = [p for n, p in parameters.items() if method.decays(n, p) is decays]
        if members:
            groups.append({"params": members, "decays": decays})
    return AdamW(groups, lr=0.0, betas=betas, weight_decay=0.0, fused=True)


def set_values(optimizer: AdamW, values: Values) -> None:
    """Put one step's learning rate and weight decay into the optimizer."""
    for group in optimizer.param_groups:
        group["lr"] = values.lr
        group["weight_decay"] = values.weight_decay if group["decays"] else 0.0


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, a float32 scalar on their device."""
    norm: Tensor = norms([p.grad for p in parameters if p.grad is not None]).norm()
    return norm


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale each gradient tensor whose own Euclidean norm is above ``limit`` down to it, in place.

    DINO's recipe clips tensor by tensor, which is not the usual clipping of the joint norm.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    factors = limit / norms(gradients).clamp(min=limit)
    torch._foreach_mul_([local(gradient) for gradient in gradients], factors.unbind())
