"""Gradients of real networks on real images, paired over compressions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.source import open_split
from fastcl_cli.errors import UsageError
from fastcl_cli.gradient_error.paired import PairedGradients, Views, adam_scale, measure
from fastcl_cli.methods.base import Method
from fastcl_cli.methods.build import build_method
from fastcl_cli.plan import Compression
from fastcl_cli.rng import derive_seed
from fastcl_cli.schedule import Loaded, Request, compile_text
from fastcl_cli.schedule.resolve import full_views, views_of
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import InputMaker
from fastcl_cli.train.optim import build_optimizer

SCHEDULES = {
    "moco": "method moco; head 32 16;",
    "simclr": "method simclr; head 32 16;",
    "dino": "method dino; head 32 16 64; locals 2 16; drop_path 0.2;",
}
REST = """
data digits; image 32; batch 64; precision float32; warmup 1 epochs;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
epochs 0-2: full;
"""
CPU = Device(torch.device("cpu"), "float32", 1)
SEED, BATCH = 7, 16


def views(loaded: Loaded, drop: str, patch: int) -> Views:
    compression = Compression(Fraction(drop), patch)
    target = Compression(Fraction(0), patch) if loaded.config.method != "simclr" else None
    return views_of(loaded.config, compression, target)


class Problem:
    def __init__(self, method: str, loader: DecodedLoader) -> None:
        self.loaded = compile_text(SCHEDULES[method] + REST, "test.fcs", Request())
        self.config = self.loaded.config
        self.method: Method = build_method(self.config, SEED)
        self.loader = loader
        self.gradients = PairedGradients(
            self.method, self.config, loader.beton, lambda: loader, CPU, SEED, BATCH
        )


@pytest.fixture(scope="module")
def loader() -> DecodedLoader:
    data = open_split("digits", "train", announce=lambda text: None)
    return DecodedLoader(data, 32, 1)


@pytest.fixture(params=SCHEDULES)
def problem(request: pytest.FixtureRequest, loader: DecodedLoader) -> Problem:
    return Problem(request.param, loader)


def taken(problem: Problem, number: int, setting: Views, epochs: float = 0.5) -> Tensor:
    (pair,) = problem.gradients.batches([number])
    return problem.gradients.gradient(*pair[:1], setting, pair[1], epochs)


def test_the_vector_is_the_gradient_of_the_loss(problem: Problem) -> None:
    """What `backward` leaves in ``.grad``, for the same views, in the order of the parameters."""
    setting = views(problem.loaded, "0.5", 16)
    make = InputMaker(
        problem.config, problem.loader.beton, derive_seed(SEED, "gradient error", 0), CPU.device
    )
    ((number, batch),) = problem.gradients.batches([3])
    vector = problem.gradients.gradient(number, setting, batch, 0.5)
    problem.method.loss(*make(3, setting, batch), 0.5).value.backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in problem.method.trained().values()]
    assert all(g is not None for g in grads)
    assert torch.equal(vector, torch.cat([g.reshape(-1) for g in grads if g is not None]))


def test_measure_is_the_formula_on_all_the_gradients(problem: Problem) -> None:
    """Every gradient kept, every product of two different draws, in float64."""
    full = full_views(problem.config)
    settings = [views(problem.loaded, "0.5", 8), full, views(problem.loaded, "0", 16)]
    found = measure(problem.gradients, full, settings, 0.5, groups=2, pairs=3, first=40)
    for group in range(2):
        numbers = range(40 + 3 * group, 43 + 3 * group)
        g = torch.stack([taken(problem, n, full) for n in numbers]).double()
        for setting, error in zip(settings, found, strict=True):
            c = torch.stack([taken(problem, n, setting) for n in numbers]).double()
            d = c - g
            mean = c.mean(0)
            products = [(i, j) for i in range(3) for j in range(3) if i != j]
            assert error.signal[group] == pytest.approx(
                sum(float(g[i] @ g[j]) for i, j in products) / 6, rel=1e-4, abs=1e-9
            )
            assert error.bias2[group] == pytest.approx(
                sum(float(d[i] @ d[j]) for i, j in products) / 6, rel=1e-4, abs=1e-9
            )
            assert error.variance[group] == pytest.approx(
                sum(float((x - mean) @ (x - mean)) for x in c) / 2, rel=1e-4
            )
    assert found[1].bias2 == (0.0, 0.0)
    assert found[0].batch == BATCH and found[0].pairs == 3


def test_both_see_the_same_images_and_augmentation(problem: Problem) -> None:
    """Dropping changes which tokens are kept and not a pixel; the paths are the same."""
    make = problem.gradients._inputs
    ((number, batch),) = problem.gradients.batches([5])
    full, _ = make(number, full_views(problem.config), batch)
    dropped, _ = make(number, views(problem.loaded, "0.5", 8), batch)
    for one, other in zip(full, dropped, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert one.kept is None and other.kept is not None
        if one.paths is not None:
            assert torch.equal(one.paths, other.paths)  # type: ignore[arg-type]
    (number, batch) = next(iter(problem.gradients.batches([6])))
    another, _ = make(number, full_views(problem.config), batch)
    assert not torch.equal(full[0].pixels, another[0].pixels)


def test_batches_are_drawn_independently(loader: DecodedLoader) -> None:
    """Two of them share b²/N images on average; disjoint ones would share none."""
    gradients = Problem("moco", loader).gradients
    chosen = [gradients._choose(number) for number in range(400)]
    assert all(len(set(c.tolist())) == BATCH for c in chosen)
    shared = [len(np.intersect1d(a, b)) for a, b in zip(chosen[::2], chosen[1::2], strict=True)]
    expected = BATCH**2 / loader.beton.images
    spread = (expected / len(shared)) ** 0.5
    assert abs(np.mean(shared) - expected) < 3 * spread
    counts = np.bincount(np.concatenate(chosen), minlength=loader.beton.images)
    assert abs(counts.var() / counts.mean() - 1) < 0.2


def test_measuring_changes_nothing(problem: Problem) -> None:
    before = {k: v.clone() for k, v in problem.method.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    full = full_views(problem.config)
    measure(problem.gradients, full, [views(problem.loaded, "0.5", 8)], 0.5, groups=1, pairs=2)
    assert all(torch.equal(before[k], v) for k, v in problem.method.state_dict().items())
    assert all(p.grad is None for p in problem.method.parameters())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_adams_metric_is_the_step_that_it_takes(loader: DecodedLoader) -> None:
    """Without momentum and decay AdamW moves each weight by lr · g · scale exactly."""
    problem = Problem("moco", loader)
    optimizer = build_optimizer(problem.method, (0.0, 0.99))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    parameters = list(problem.method.trained().values())
    draws = torch.Generator().manual_seed(0)
    for update in range(100):
        if update in (0, 99):
            with pytest.raises(UsageError, match="100 updates"):
                adam_scale(problem.method, optimizer)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=draws)
        before = torch.cat([p.detach().clone().reshape(-1) for p in parameters]).double()
        optimizer.step()
    after = torch.cat([p.detach().reshape(-1) for p in parameters]).double()
    gradient = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    step = 1e-3 * (gradient * adam_scale(problem.method, optimizer)).double()
    assert torch.allclose(before - after, step, rtol=1e-3, atol=1e-6)
    plain = taken(problem, 1, full_views(problem.config))
    scale = adam_scale(problem.method, optimizer)
    problem.gradients.precondition = scale
    assert torch.equal(taken(problem, 1, full_views(problem.config)), plain * scale)


def test_frozen_parameters_are_not_felt(loader: DecodedLoader) -> None:
    problem = Problem("dino", loader)
    optimizer: AdamW = build_optimizer(problem.method, (0.9, 0.999))
    frozen = problem.method.frozen(0.0)
    assert frozen
    for _ in range(100):
        for p in problem.method.trained().values():
            p.grad = None if any(p is f for f in frozen) else torch.ones_like(p)
        optimizer.step()
    scale = adam_scale(problem.method, optimizer)
    sizes = [p.numel() for p in problem.method.trained().values()]
    for p, part in zip(problem.method.trained().values(), scale.split(sizes), strict=True):
        assert bool((part == 0).all()) == any(p is f for f in frozen)
