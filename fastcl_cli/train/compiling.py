"""Compiling what a plan's phases run, before they begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from fastcl_cli.methods.base import Method
from fastcl_cli.model.compiled import CompilationError, Groups, compile_blocks
from fastcl_cli.model.vit import Encoder
from fastcl_cli.plan import Plan, Tokens
from fastcl_cli.processes import distributed
from fastcl_cli.train.device import Device


def compile_method(
    method: Method,
    plan: Plan,
    device: Device,
    announce: Callable[[str], None],
    *,
    dropped_paths: bool,
) -> None:
    """Compile the encoders' blocks for all phases of ``plan`` where that pays: on a GPU.

    On the CPU products take nearly all of the time, and compiling would take a minute. Where it
    cannot be done, training goes on without, and ``announce`` says so.
    """
    if device.device.type != "cuda":
        return
    announce("compiling the transformer's blocks, once for all phases")
    online = cast(Encoder, method.online["backbone"])
    target = None if method.target is None else cast(Encoder, method.target["backbone"])
    prefix = online.vit.num_prefix_tokens
    try:
        with device.autocast():
            compile_blocks(
                online,
                target,
                list(_groups(plan, method.parts, prefix, target=False)),
                list(_groups(plan, method.parts, prefix, target=True)),
                dropped_paths=dropped_paths,
            )
    except CompilationError as error:
        announce(f"training goes on without compiled blocks, slower: {error}")


def _groups(plan: Plan, parts: int, prefix: int, *, target: bool) -> Iterator[Groups]:
    """What an encoder sees at once (`methods.base.encode`)."""
    for segment in plan.segments:
        images = segment.batch // distributed.size()
        groups = []
        for view in segment.views:
            tokens: Tokens | None = view.target if target else view.online
            if tokens is not None:
                groups.append((-(-images * view.count // parts), tokens.kept + prefix))
        if parts == 1:
            yield tuple(groups)
        else:
            yield from ((group,) for group in groups)
