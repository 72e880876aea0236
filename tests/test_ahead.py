"""What stands between a batch and a GPU, on the CPU: batches prepared in a thread, tensors that
travel together, blocks that are compiled once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcl_cli.errors import DataError
from fastcl_cli.methods.build import build_method
from fastcl_cli.model.compiled import CompilationError, compile_blocks
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.model.vit import Encoder
from fastcl_cli.plan import Segment
from fastcl_cli.schedule import Loaded, load
from fastcl_cli.train.ahead import Ahead, Source, prepared_ahead
from fastcl_cli.train.inputs import Batch, InputMaker
from fastcl_cli.train.recorded import alone
from fastcl_cli.train.synthetic import SyntheticImages
from fastcl_cli.transfer import in_one_copy

CPU = torch.device("cpu")


def steps(loaded: Loaded, count: int, closed: list[bool]) -> Source:
    """Batches of four random images; `closed` tells that the generator was."""

    def source() -> Generator[tuple[int, Segment, Batch], None, None]:
        try:
            for step in range(count):
                generator = torch.Generator().manual_seed(step)
                pixels = torch.randint(0, 256, (4, 32, 32, 3), generator=generator).byte()
                batch = Batch(pixels, np.arange(4) + 4 * step, slice(0, 4))
                yield step, loaded.plan.segments[0], batch
            raise DataError("the fourth is damaged")
        finally:
            closed.append(True)

    return source()


def maker(loaded: Loaded) -> InputMaker:
    return InputMaker(loaded.config, SyntheticImages(), 3, CPU)


@pytest.mark.parametrize("name", ["quickstart", "quickstart_dino"])
def test_a_batch_prepared_ahead_is_the_same_batch(name: str) -> None:
    loaded = load(name)
    make = maker(loaded)
    with pytest.raises(DataError, match="the fourth"), Ahead(steps(loaded, 3, []), make) as ahead:
        plain = steps(loaded, 3, [])
        for step, segment, ready in ahead:
            number, _, batch = next(plain)
            assert step == number
            for mine, theirs in zip(
                make(step, segment.views, ready), make(step, segment.views, batch), strict=True
            ):
                for a, b in zip(mine, theirs, strict=True):
                    assert torch.equal(a.pixels, b.pixels)
                    assert (a.kept is None) == (b.kept is None)
                    assert a.kept is None or torch.equal(a.kept, b.kept)  # type: ignore[arg-type]
                    assert a.paths is None or torch.equal(a.paths, b.paths)  # type: ignore[arg-type]
    assert step == 2


def test_nothing_is_prepared_while_a_step_is_recorded() -> None:
    loaded, begun = load("quickstart"), threading.Event()

    def source() -> Generator[tuple[int, Segment, Batch], None, None]:
        for item in steps(loaded, 3, []):
            begun.set()
            yield item

    with alone:
        ahead = Ahead(source(), maker(loaded))
        own = ahead.__enter__()
        assert not begun.wait(0.3)
    assert next(own)[0] == 0 and begun.is_set()
    ahead.__exit__()


def test_leaving_early_closes_the_source_and_ends_the_thread() -> None:
    loaded, closed = load("quickstart"), []  # type: ignore[var-annotated]
    before = threading.active_count()
    with Ahead(steps(loaded, 100, closed), maker(loaded)) as ahead:
        next(ahead)
    assert closed == [True] and threading.active_count() == before
    with prepared_ahead(steps(loaded, 100, closed), maker(loaded)) as plain:
        assert threading.active_count() == before  # nothing runs ahead on the CPU
        next(plain)
    assert closed == [True, True]


@dataclass(frozen=True)
class Tree:
    number: int
    small: Tensor
    several: tuple[Tensor | None, ...]


def test_tensors_that_travel_together_arrive_as_they_were() -> None:
    tree = Tree(
        7,
        torch.tensor([True, False, True]),
        (torch.arange(6).view(2, 3), None, torch.rand(5, dtype=torch.float64), torch.empty(0, 4)),
    )
    sent = in_one_copy((tree, torch.ones(3, 3)[:, 1]), CPU)
    (there, column) = sent
    assert there.number == 7 and there.several[1] is None
    pairs = [(there.small, tree.small), (column, torch.ones(3))]
    pairs += [(there.several[i], tree.several[i]) for i in (0, 2, 3)]  # type: ignore[misc]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    storages = {mine.untyped_storage().data_ptr() for mine, _ in pairs if mine.numel()}
    assert len(storages) == 1  # one copy


def graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("name", ["quickstart", "quickstart_dino"])
def test_compiled_blocks_serve_every_shape_without_compiling_again(name: str) -> None:
    """Values and gradients of plain ones, in shapes that were tried before and others."""
    torch.manual_seed(0)
    method = build_method(load(name).config, 0)
    assert method.target is not None
    online, target = method.online["backbone"], method.target["backbone"]
    assert isinstance(online, Encoder) and isinstance(target, Encoder)
    plain, plain_target = copy.deepcopy(online), copy.deepcopy(target)
    compile_blocks(
        online, target, [((8, 13),), ((6, 65),)], [((8, 17), (6, 65))], dropped_paths=True,
        backend="aot_eager",
    )  # fmt: skip
    made = graphs()
    for images, side, kept in ((8, 32, 12), (6, 32, None), (3, 24, None), (5, 16, 3)):
        view = torch.randn(images, 3, side, side)
        tokens = None if kept is None else torch.arange(kept).repeat(images, 1)
        paths = draw_paths(images, online.depth, 0.3, torch.Generator().manual_seed(1))
        direction = torch.randn(images, online.width)
        gradients = []
        for encoder in (online, plain):
            encoder.zero_grad()
            output = encoder(view, tokens, paths)
            (output * direction).sum().backward()
            qkv = encoder.vit.blocks[1].attn.qkv.weight.grad
            gradients.append((output.detach(), qkv))
        for mine, theirs in zip(*gradients, strict=True):
            assert (mine - theirs).norm() < 1e-5 * theirs.norm()
        with torch.no_grad():
            assert torch.allclose(target(view), plain_target(view), atol=1e-5)
    assert graphs() == made


def test_blocks_that_cannot_be_compiled_run_as_they_are() -> None:
    encoder = build_method(load("quickstart_simclr").config, 0).online["backbone"]
    assert isinstance(encoder, Encoder)
    view = torch.randn(2, 3, 32, 32)
    before = encoder(view)
    with pytest.raises(CompilationError, match="no_such_backend"):
        compile_blocks(
            encoder, None, [((2, 65),)], [], dropped_paths=False, backend="no_such_backend"
        )
    assert torch.allclose(encoder(view), before, atol=1e-5)
