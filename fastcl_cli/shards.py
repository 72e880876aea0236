"""Tensors of which each process holds a shard, some of the rows: FSDP2's way to train a network
that no device can hold whole (`train.sharding`).

What is done element by element is done on the shards, each by its own process. What is not, a norm
or a copy of the whole, is done here, by all processes together. Every function takes whole tensors,
too, and then does the plain thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastcl_cli.processes import distributed


def is_shard(value: Tensor) -> bool:
    """Whether a tensor stands for one that all processes hold together."""
    if distributed.size() == 1:
        return False
    from torch.distributed.tensor import DTensor  # most of a second

    return isinstance(value, DTensor)


def local(value: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, in the same memory."""
    own: Tensor = value.to_local() if is_shard(value) else value  # type: ignore[attr-defined]
    return own


def whole(value: Tensor) -> Tensor:
    """All rows of a tensor, on its device. Of a shard every process must ask for them."""
    full: Tensor = value.full_tensor() if is_shard(value) else value  # type: ignore[attr-defined]
    return full


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the processor's memory, for process 0 alone: the others get nothing.

    Of shards every process must come here. They are put together one at a time, so that no device
    ever holds more than one of them whole.
    """
    found = {}
    for name, value in tensors.items():
        full = whole(value.detach())
        if distributed.rank() == 0:
            found[name] = full.cpu()
    return found


@torch.no_grad()
def fill(own: Tensor, given: Tensor) -> None:
    """Copy a whole tensor into one of its shape, or the shard's rows of it into a shard."""
    if is_shard(own):
        # As torch.chunk deals rows out: the same number to each process while there are any.
        first = -(-len(given) // distributed.size()) * distributed.rank()
        own = local(own)
        given = given[first : first + len(own)]
    own.copy_(given)


def alike(given: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor of a parameter's shape, placed as the parameter is: its rows, its device."""
    if not is_shard(parameter):
        return given.to(parameter.device)
    own = torch.zeros_like(parameter, dtype=given.dtype)
    fill(own, given)
    return own


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each whole tensor, (n,), the same bits in all processes."""
    own = torch.stack(torch._foreach_norm([local(value) for value in tensors]))
    if not any(map(is_shard, tensors)):
        return own
    # In float64: a square may be too large, or too small, where its root is not.
    return distributed.total(own.double().square()).sqrt().to(own.dtype)


def mean_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradient of the mean of the processes' losses, as one vector: (parameters,), zeros where
    they do not depend on one; of sharded parameters this process's rows. ``.grad`` stays as it is.
    """
    if any(map(is_shard, parameters)):
        return _flat(_gradients_of_shards(loss, parameters))
    return distributed.average(_flat(torch.autograd.grad(loss, parameters, materialize_grads=True)))


def _gradients_of_shards(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """FSDP leaves gradients in ``.grad`` only."""
    assert all(map(is_shard, parameters))
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    found = [local(torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return found


def _flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def total_squared_length(rows: Tensor) -> float:
    """‖x‖² of a vector of which each process has some rows, accumulated in float64."""
    return float(distributed.total(torch.linalg.vector_norm(rows, dtype=torch.float64).square()))
