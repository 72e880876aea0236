"""A method whose weights are shared out over the processes (FSDP2), for networks that do not fit on
one device.

Of every tensor, of its gradient, of AdamW's averages and of the target each process holds 1/N. A
transformer block is put together from all processes just before it runs and let go of afterwards;
what is not in a block (embeddings, heads, prototypes) is whole while a loss is computed and its
gradient taken. Gradients are summed and dealt out as a block's are ready. Losses, and all that they
mix over the global batch, are those of `distributed`, so a step is that of data parallel processes.

FSDP does by hooks on modules what happens here: on the blocks, whose forward pass it watches, and
on the method, whose ``loss`` it does.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastcl_cli.methods.base import Method
from fastcl_cli.model.vit import Encoder
from fastcl_cli.processes import distributed


def place_method(method: Method, device: torch.device, *, shard: bool) -> Method:
    """Bring a method to this process's device, whole or (``shard``) this process's part of it. It
    is brought there block by block, so the device never holds the whole."""
    if not shard:
        return method.to(device)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    assert distributed.size() > 1
    mesh = init_device_mesh(device.type, (distributed.size(),))
    for encoder in _encoders(method):
        for block in encoder.vit.blocks:
            fully_shard(block, mesh=mesh)
        if method.parts > 1:
            encoder.run_block = _run_again
    fully_shard(method, mesh=mesh)
    register_fsdp_forward_method(method, "loss")
    return method


def is_sharded(method: Method) -> bool:
    """Whether `place_method` has shared it out."""
    if distributed.size() == 1:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(method, FSDPModule)


def _encoders(method: Method) -> list[Encoder]:
    networks = [network for network in (method.online, method.target) if network is not None]
    return [cast(Encoder, network["backbone"]) for network in networks]


def _run_again(block: nn.Module, x: Tensor) -> Tensor:
    """Run a block that may be run again in the backward pass (`methods.base.encode` in parts).

    There FSDP leaves a block as it finds it: in no torch is it let go of before its gradient is
    taken, in older ones it is not even put together for any but the last part.
    """
    block.unshard()  # type: ignore[operator]
    output: Tensor = block(x)
    block.reshard()  # type: ignore[operator]
    return output
