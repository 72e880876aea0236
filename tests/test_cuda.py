"""What holds on a GPU; without one these are skipped."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcl_cli.data.augment import draw_views
from fastcl_cli.data.views import make_view
from fastcl_cli.errors import NumericalError
from fastcl_cli.model.short_attention import short_attention, tiles_of
from fastcl_cli.schedule import load
from fastcl_cli.train.compiling import compile_method
from fastcl_cli.train.inputs import InputMaker
from fastcl_cli.train.synthetic import SyntheticImages
from tests.steps import QUICKSTARTS, batch, device, quick, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("view", ["first", "second"])
def test_views_are_the_cpus(precision: str, view: str) -> None:
    """To 0.01 of 255 in float32, and 0.5 where less will do."""
    images = batch(40, 256).images // 2 + 60
    config = load("moco_full").config
    sizes = np.full(40, 300), np.full(40, 400)
    draws = draw_views(config.augmentation, view, *sizes, torch.Generator().manual_seed(1))
    expected = make_view(images, draws, 224, None, "bicubic", backend="matmul")
    with tf32(precision == "tf32"):
        actual = make_view(images.cuda(), draws, 224, None, "bicubic").cpu()
    # Where a pixel is inverted from half brightness up, a small difference is one.
    worst = (actual - expected).abs().flatten(1)[~draws.solarize].max() * 255 * 0.229
    assert worst < (0.5 if precision == "tf32" else 0.01)


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_a_step_is_the_cpus(name: str) -> None:
    loaded = quick(name)
    segment = loaded.plan.segments[0]
    seen = batch(16, 32)
    results = []
    for kind in ("cpu", "cuda"):
        own = trainer(loaded, device(kind, "float32"))
        # The same pixels for both: how they are made is compared above.
        views = InputMaker(loaded.config, SyntheticImages(), 0, torch.device("cpu"))
        online, target = views(3, segment.views, seen)
        moved = [
            [type(x)(*(None if t is None else t.to(kind) for t in (x.pixels, x.kept, x.paths)))
             for x in side]
            for side in (online, target)
        ]  # fmt: skip
        with tf32(False):
            loss = own.method.loss(moved[0], moved[1], 1.0).value
            loss.backward()
        gradients = [p.grad.cpu() for p in own.method.trained().values() if p.grad is not None]
        results.append((float(loss.detach()), torch.cat([g.flatten() for g in gradients])))
    (a, g), (b, h) = results
    assert a == pytest.approx(b, rel=1e-4)
    assert (g - h).norm() < 1e-3 * g.norm()


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_compiled_blocks_compute_what_blocks_compute(name: str) -> None:
    """In every phase, and no phase compiles anything."""
    from torch._dynamo.utils import counters

    loaded, where = quick(name), device("cuda", "float32")
    plain = trainer(loaded, where)
    compiled = copy.deepcopy(plain)
    told: list[str] = []
    dropped = loaded.config.drop_path > 0
    compile_method(compiled.method, loaded.plan, where, told.append, dropped_paths=dropped)
    assert len(told) == 1, told
    graphs = counters["stats"]["unique_graphs"]
    seen = batch(16, 32)
    for segment in loaded.plan.segments:
        step = segment.first_step
        a, b = (one.step(step, segment.views, seen) for one in (plain, compiled))
        assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-3)
        assert float(a.gradient_norm) == pytest.approx(float(b.gradient_norm), rel=1e-2)
    made = counters["stats"]["unique_graphs"] - graphs
    assert made <= 4  # what makes views and DINO's loss, at its first use


@pytest.mark.parametrize("tokens", [6, 26, 49])
def test_short_attention_is_attention(tokens: int) -> None:
    """To the rounding of 16 bits, in values and gradient."""
    qkv = torch.randn(33, tokens, 3, 6, 64, device="cuda", dtype=torch.bfloat16)
    upstream = torch.randn(33, tokens, 6, 64, device="cuda", dtype=torch.bfloat16)
    exact = qkv.double().requires_grad_()
    q, k, v = exact.permute(2, 0, 3, 1, 4)
    expected = ((q @ k.transpose(2, 3) / 8).softmax(dim=3) @ v).transpose(1, 2)
    (gradient,) = torch.autograd.grad(expected, exact, upstream.double())
    qkv.requires_grad_()
    tiles = tiles_of(((33, tokens),), qkv.device)
    actual = short_attention(qkv.flatten(0, 1), tiles, 1 / 8).view_as(upstream)
    (own,) = torch.autograd.grad(actual, qkv, upstream)
    assert (actual - expected).norm() < 5e-3 * expected.norm()
    assert (own - gradient).norm() < 1e-2 * gradient.norm()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", QUICKSTARTS)
def test_recorded_steps_train_as_steps_do(name: str, compiled: bool) -> None:
    """Over changes of phase and of batch, and of what counts in epochs."""
    loaded, where = quick(name), device("cuda", "bf16")
    plain = trainer(loaded, where)
    if compiled:
        dropped = loaded.config.drop_path > 0
        compile_method(plain.method, loaded.plan, where, print, dropped_paths=dropped)
    recorded = copy.deepcopy(plain)
    plain.differentiated.recorder = None
    assert recorded.differentiated.recorder is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="steps are launched")
        for segment in loaded.plan.segments:
            for step in range(segment.first_step, segment.first_step + 6):
                seen = batch(16, 32, seed=step)
                a, b = (one.step(step, segment.views, seen) for one in (plain, recorded))
                assert float(a.loss) == pytest.approx(float(b.loss), rel=1e-3)
                assert float(a.gradient_norm) == pytest.approx(float(b.gradient_norm), rel=1e-2)
    assert recorded.differentiated.recorder is not None
    differ = [
        float((p - q).detach().norm() / p.detach().norm().clamp(min=1e-3))
        for p, q in zip(plain.method.parameters(), recorded.method.parameters(), strict=True)
    ]
    assert max(differ) < 2e-2


def test_an_infinite_loss_is_refused_before_it_is_kept() -> None:
    own = trainer(quick("quickstart"), device("cuda", "float32"))
    segment = quick("quickstart").plan.segments[0]
    own.step(0, segment.views, batch(16, 32))
    own.confirm()
    with torch.no_grad():
        next(own.method.online.parameters()).fill_(float("inf"))
    with pytest.raises(NumericalError, match=r"step [12]:"):
        own.step(1, segment.views, batch(16, 32))
        own.step(2, segment.views, batch(16, 32))
        own.confirm()


def test_a_run_on_a_gpu_goes_on_where_it_stopped(tmp_path: Path) -> None:
    schedule, out = tmp_path / "short.fcs", tmp_path / "run"
    text = load("quickstart").text
    schedule.write_text(text.replace("0-50", "0-2").replace("50-54", "2-4"))
    for more in (["--max-steps", "10"], ["--resume", "auto"]):
        command = ["run", str(schedule), "--out", str(out), "--ui", "plain", *more]
        subprocess.run([sys.executable, "-m", "fastcl_cli", *command], check=True, timeout=300)
    assert (out / "backbone.safetensors").exists()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 28 and all(math.isfinite(line["loss"]) for line in lines)
