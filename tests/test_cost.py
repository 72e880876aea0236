"""The analytic cost against a count by hand and against torch's FLOP counter on real models."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcl_cli.config import VitShape
from fastcl_cli.cost import encoder_flops, forward_flops, loss_flops, unit_flops, units_per_image
from fastcl_cli.estimate.clocks import AnalyticClock
from fastcl_cli.estimate.devices import DEVICES
from fastcl_cli.model.vit import Encoder, build_vit
from fastcl_cli.plan import Tokens
from fastcl_cli.schedule import Loaded, compile_text
from fastcl_cli.schedule.resolve import full_views

BATCH = 4
SETTINGS = ["full", "drop 0.75", "patch 32", "drop 0.5 patch 28"]


def test_vit_s16_by_hand() -> None:
    """196 patches of 16 x 16 x 3 at width 384; 12 blocks of 197 tokens; MLP width 1,536."""
    projection = 196 * 768 * 384
    qkv = 197 * 384 * 1152
    attention = 2 * 197 * 197 * 384
    out = 197 * 384 * 384
    mlp = 2 * 197 * 384 * 1536
    by_hand = 2 * (projection + 12 * (qkv + attention + out + mlp))
    shape = VitShape("vit_small_patch16_224", (), 16, 384, 12, 6, 4.0, 1)
    assert encoder_flops(shape, 196) == by_hand
    # The published figure for ViT-S/16 is 4.6 G multiply-adds.
    assert by_hand / 2e9 == pytest.approx(4.6, abs=0.03)


def test_units_are_forward_passes() -> None:
    """MoCo-v3 two queries and two keys, SimCLR two views, DINO 4 and 8 x F(37)/F(197)."""
    counts = {}
    for method in ("moco", "simclr", "dino"):
        config = compile_text(f"method {method}; epochs 0-100: full;").config
        counts[method] = units_per_image(config, full_views(config))
        assert unit_flops(config) == encoder_flops(config.model, 196)
    assert counts["moco"] == 4
    assert counts["simclr"] == 2
    assert counts["dino"] == pytest.approx(5.4, abs=0.05)


def mlp(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)))


def heads(method: str, width: int, head: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """(online, target) heads as the papers describe them."""
    if method == "dino":
        hidden, bottleneck, prototypes = head
        sizes = (width, hidden, hidden, bottleneck, prototypes)
        return mlp(*sizes), mlp(*sizes)
    hidden, out = head
    projector = (width, hidden, hidden, out)
    if method == "moco":
        return nn.Sequential(mlp(*projector), mlp(out, hidden, out)), mlp(*projector)
    return mlp(*projector), mlp(*projector)


def features(encoder: nn.Module, tokens: Tokens) -> Tensor:
    """Features of a view, low-resolution where patches are larger, with dropped tokens."""
    view = torch.empty(BATCH, 3, tokens.grid * encoder.patch, tokens.grid * encoder.patch)
    kept = None
    if tokens.kept < tokens.grid**2:
        kept = torch.zeros(BATCH, tokens.kept, dtype=torch.int64)
    result: Tensor = encoder(view, kept)
    return result


def counted(loaded: Loaded) -> tuple[int, int, int]:
    """Forward of the online encoder (with loss), of the target, and all of training, counted."""
    config, views = loaded.config, loaded.plan.segments[0].views
    with torch.device("meta"):
        encoder = Encoder(build_vit(config.model, config.image), "learned")
        online_head, target_head = heads(config.method, config.model.embed_dim, config.head)
        target = 0
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for view in views:
                for _ in range(view.count if view.target is not None else 0):
                    target_head(features(encoder, view.target))
        target = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            outputs = [
                online_head(features(encoder, view.online))
                for view in views
                for _ in range(view.count)
            ]
            total = sum(output.sum() for output in outputs)
            if config.method == "moco":
                for query in outputs:
                    total = total + (query @ torch.empty(BATCH, config.head[1]).T).sum()
            if config.method == "simclr":
                both = torch.cat(outputs)
                total = total + (both @ both.T).sum()
            forward = counter.get_total_flops()
            total.backward()
        return forward, target, counter.get_total_flops() + target


@pytest.mark.parametrize("clauses", SETTINGS)
@pytest.mark.parametrize("method", ["moco", "simclr", "dino"])
def test_against_the_flop_counter(method: str, clauses: str) -> None:
    locals_ = "locals 2 96;" if method == "dino" else ""
    text = f"method {method}; {locals_} batch {BATCH}; epochs 0-100: {clauses};"
    loaded = compile_text(text)
    analytic = forward_flops(loaded.config, loaded.plan.segments[0].views, BATCH)
    forward, target, training = counted(loaded)
    assert analytic.online * BATCH == pytest.approx(forward, rel=0.01)
    assert analytic.target * BATCH == pytest.approx(target, rel=0.01)
    assert analytic.training * BATCH == pytest.approx(training, rel=0.01)


@pytest.mark.parametrize("method", ["moco", "simclr"])
def test_loss_of_a_large_batch(method: str) -> None:
    """At the published batch the similarities are one percent of ViT-S/16's forward pass."""
    config = compile_text(f"method {method}; epochs 0-100: full;").config
    share = loss_flops(config.method, config.head, 4096) / (2 * unit_flops(config))
    rows = 2 * 4096
    products = {"moco": 2 * 4096 * 4096, "simclr": rows * rows}[method]
    assert loss_flops(config.method, config.head, 4096) * 4096 == 2 * products * 256
    assert 2e-4 < share < 1e-3


def test_sample_cost_is_three_to_one() -> None:
    """Online forward and backward, target forward, over the same without compression."""
    text = "batch 256; epochs 0-100: drop 0.5 patch 32;"
    loaded = compile_text(text)
    config = loaded.config
    projector = 2 * (384 * 4096 + 4096 * 4096 + 4096 * 256)
    predictor = 2 * (256 * 4096 + 4096 * 256)
    loss = 2 * 256 * 256

    def training(online: int, target: int) -> float:
        student = encoder_flops(config.model, online) + projector + predictor + loss
        return 3 * 2 * student + 2 * (encoder_flops(config.model, target) + projector)

    expected = training(25, 49) / training(196, 196)
    assert loaded.plan.segments[0].sample_cost == pytest.approx(expected, rel=1e-12)


def test_patch_projection_uses_the_base_patch() -> None:
    """A token costs the same projection at every patch side: 3·16²·384 multiply-adds."""
    coarse = compile_text("epochs 0-100: patch 56;")
    kept = coarse.plan.segments[0].views[0].online.kept
    assert kept == 16
    fine = compile_text("epochs 0-100: drop 0.92;").plan.segments[0].views[0].online.kept
    assert fine == 16
    assert math.isclose(
        forward_flops(coarse.config, coarse.plan.segments[0].views, 8).online,
        forward_flops(
            coarse.config,
            compile_text("epochs 0-1: drop 0.92 patch 16; warmup 0%;").plan.segments[0].views,
            8,
        ).online,
    )


def test_accumulate_costs_a_forward_pass_of_the_online_backbone() -> None:
    """Of MoCo's four passes of a view, three online, it makes five; the sample cost stays."""
    text = "method moco; head 1 1; {}epochs 0-1: full;"
    whole, parts = (compile_text(text.format(a)) for a in ("", "accumulate 4; "))
    clock = AnalyticClock(DEVICES["a100"])
    times = [
        clock.image(item.config, item.plan.segments[0].views, 512, 1).seconds
        for item in (whole, parts)
    ]
    assert times[1] / times[0] == pytest.approx(5 / 4, rel=1e-3)
    assert parts.plan.segments[0].sample_cost == 1.0
    assert len(clock.assumptions(parts, 1)) == len(clock.assumptions(whole, 1)) + 1
