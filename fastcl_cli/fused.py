"""Element by element work, in one pass over a GPU's memory instead of one for each operation.

What is decorated is written for the CPU, where it runs as it stands; on a GPU it is compiled, once
for all shapes. A GPU on which that cannot be done runs it as it stands, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose first argument is a tensor that says where it runs.

    Arguments are tensors and what is the same in every call of a phase. One that is a slice of
    another tensor is copied, for where it begins would be compiled; so it cannot be changed.
    """
    compiled: Callable[P, R] | None = None

    @wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        nonlocal compiled
        first = arguments[0]
        assert isinstance(first, Tensor)
        if first.device.type == "cpu":
            return function(*arguments, **named)
        if compiled is None:
            compiled = torch.compile(function, dynamic=True)
            try:
                return compiled(*map(_whole, arguments), **named)  # type: ignore[arg-type]
            except Exception as error:  # whatever a compiler, or one that is missing, may raise
                warnings.warn(
                    f"{function.__name__} runs slower, not compiled: {error}", stacklevel=2
                )
                compiled = function
        return compiled(*map(_whole, arguments), **named)  # type: ignore[arg-type]

    return call


def _whole(argument: object) -> object:
    if not isinstance(argument, Tensor):
        return argument
    whole = argument.clone() if argument.storage_offset() else argument.detach()
    return whole.contiguous()
