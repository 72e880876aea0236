"""AdamW with the parameter groups of a method's recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fastcl_cli.methods.base import Method
from fastcl_cli.train.schedules import Values


def trained_parameters(method: Method) -> dict[str, nn.Parameter]:
    """Parameters that get gradients, by their name in ``method.online``."""
    return {n: p for n, p in method.online.named_parameters() if p.requires_grad}


def build_optimizer(method: Method, betas: tuple[float, float]) -> AdamW:
    """Fused AdamW (Loshchilov and Hutter, arXiv 1711.05101); rates are set before each update.

    Two groups: parameters that decay, and the others (their ``decays`` entry says which).
    """
    parameters = trained_parameters(method)
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
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scale each gradient tensor whose own Euclidean norm is above ``limit`` down to it, in place.

    DINO's recipe clips tensor by tensor, which is not the usual clipping of the joint norm.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    scales = [(limit / norm.clamp(min=limit)) for norm in norms]
    torch._foreach_mul_(gradients, scales)


def optimizer_tensors(method: Method, optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state as ``NAME/exp_avg``, ``NAME/exp_avg_sq`` and ``NAME/step``."""
    return {
        f"{name}/{key}": value
        for name, parameter in trained_parameters(method).items()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(method: Method, optimizer: AdamW, tensors: Mapping[str, Tensor]) -> None:
    """Put the state of `optimizer_tensors` back; a parameter without an entry has not been
    updated yet.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape than its parameter.
    """
    parameters = trained_parameters(method)
    shapes = {
        f"{name}/{key}": torch.Size([]) if key == "step" else parameter.shape
        for name, parameter in parameters.items()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    for entry, value in tensors.items():
        if entry not in shapes:
            raise ValueError(f"{entry} is unknown")
        if value.shape != shapes[entry]:
            raise ValueError(f"{entry} is {tuple(value.shape)}, not {tuple(shapes[entry])}")
        name, key = entry.rsplit("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][key] = value.to(parameter.device)
    for name, parameter in parameters.items():
        if len(optimizer.state.get(parameter, {})) not in (0, 3):
            raise ValueError(f"the state of {name} is not whole")
