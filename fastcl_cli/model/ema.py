"""The momentum copy of a network."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from fastcl_cli.shards import local

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """A deep copy whose parameters take no gradient."""
    target = copy.deepcopy(module)
    target.requires_grad_(False)
    return target


@torch.no_grad()
def update_average(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- momentum · target + (1 - momentum) · online, parameter by parameter, in place.

    ``online`` may have parameters that ``target`` lacks (a predictor): they are not averaged.
    Buffers are left alone. Of networks that are shared out each process averages its own rows.
    """
    source = dict(online.named_parameters())
    names, averages = zip(*target.named_parameters(), strict=True)
    towards = [local(source[name]) for name in names]
    torch._foreach_lerp_([local(average) for average in averages], towards, 1 - momentum)
