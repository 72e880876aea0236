"""MoCo-v3 against an independent float64 reference, through two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import reference as ref
import torch
from contrastive import SETTINGS, Setting, View, batch, check_updates, inputs
from tiny import BASE, DEPTH, HEADS, IMAGE, WIDTH, T, exact, moco, spec
from torch import Tensor

from fastcl_cli.methods.build import build_backbone
from fastcl_cli.methods.moco import contrast
from fastcl_cli.model.position import sincos_embedding
from fastcl_cli.train.schedules import Values

VALUES = [Values(0.0, 1e-4, 0.1, 0.9), Values(0.5, 7e-5, 0.1, 0.95)]


def features(p: ref.Params, view: Tensor, patch: int, kept: Tensor | None) -> Tensor:
    code = sincos_embedding(view.shape[-1] // patch, IMAGE // BASE, WIDTH)
    position = torch.cat([torch.zeros(1, WIDTH, dtype=torch.float64), code])
    return ref.vit(view, ref.below(p, "backbone.vit."), DEPTH, HEADS, patch, position, kept)


def projector(p: ref.Params, x: Tensor) -> Tensor:
    for i, norm in ((0, 1), (3, 4)):
        y = ref.batch_norm(ref.linear(x, p, f"projector.{i}"), p, f"projector.{norm}")
        x = y.clamp(min=0)
    return ref.batch_norm(ref.linear(x, p, "projector.6"), p, "projector.7")


def predictor(p: ref.Params, x: Tensor) -> Tensor:
    y = ref.batch_norm(ref.linear(x, p, "predictor.0"), p, "predictor.1").clamp(min=0)
    return ref.batch_norm(ref.linear(y, p, "predictor.3"), p, "predictor.4")


def info_nce(q: Tensor, k: Tensor) -> Tensor:
    """2T · mean_i -log( exp(q_i·k_i/T) / sum_j exp(q_i·k_j/T) ), pair by pair."""
    terms = []
    for i in range(len(q)):
        qi = q[i] / q[i].norm()
        scores = torch.stack([qi @ (kj / kj.norm()) / T for kj in k])
        terms.append(-torch.log(scores[i].exp() / scores.exp().sum()))
    return 2 * T * torch.stack(terms).mean()


def reference_loss(
    online: ref.Params, target: ref.Params, views: Sequence[View], index: int
) -> Tensor:
    queries, keys = [], []
    for view in views:
        assert view.target is not None
        queries.append(
            predictor(online, projector(online, features(online, view.pixels, *view.online)))
        )
        keys.append(projector(target, features(target, view.pixels, *view.target)))
    return info_nce(queries[0], keys[1]) + info_nce(queries[1], keys[0])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_two_updates_equal_the_reference(setting: Setting) -> None:
    batches = [batch(setting, (IMAGE, IMAGE), 2, seed) for seed in (5, 6)]
    check_updates(exact(moco()), batches, VALUES, reference_loss, momentum_before=0.99)


def test_patch_projection_and_positions_stay_as_drawn() -> None:
    method = moco()
    frozen = {n for n, p in method.online.named_parameters() if not p.requires_grad}
    assert frozen == {
        "backbone.vit.pos_embed",
        "backbone.vit.patch_embed.proj.weight",
        "backbone.vit.patch_embed.proj.bias",
    }


def test_loss_of_uniform_similarity_is_ln_k() -> None:
    """Equal keys tell the queries nothing: the loss is 2T·ln B, collapse's own value."""
    q = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    same = torch.ones(8, 5)
    assert contrast(q, same, T).item() == pytest.approx(2 * T * math.log(8), rel=1e-6)


def test_initial_weights_have_the_published_bounds() -> None:
    vit = build_backbone(spec()).vit
    qkv = vit.blocks[0].attn.qkv.weight
    bound = math.sqrt(6 / (WIDTH + WIDTH))
    assert 0.95 * bound < qkv.abs().max() <= bound
    kernel = vit.patch_embed.proj.weight
    bound = math.sqrt(6 / (3 * BASE * BASE + WIDTH))
    assert 0.95 * bound < kernel.abs().max() <= bound
    assert (vit.patch_embed.proj.bias == 0).all()


def test_initial_weights_are_a_function_of_the_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (build_backbone(spec(s)).vit.state_dict() for s in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_in_parts_no_part_is_kept() -> None:
    """The backbones see a third of the rows at a time; the online one sees each twice, the second
    time for its gradient."""
    seen: dict[str, list[int]] = {"online": [], "target": []}
    method = moco()
    for name, network in (("online", method.online), ("target", method.target)):
        assert network is not None
        network["backbone"].vit.blocks[0].register_forward_pre_hook(  # type: ignore[union-attr, index]
            lambda module, given, name=name: seen[name].append(len(given[0]))  # type: ignore[misc]
        )
    views = batch(SETTINGS["drop"], (IMAGE, IMAGE), 2, 5)
    online, target = (
        [replace(x, pixels=x.pixels.float()) for x in inputs(views, side)]
        for side in ("online", "target")
    )
    saved = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    counts = []
    for parts in (1, 3):
        method.parts, saved = parts, 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = method.loss(online, target, 0.0).value
        counts.append(saved)
    assert counts[1] < 0.3 * counts[0]
    assert seen == {"online": [12, 4, 4, 4], "target": [12, 4, 4, 4]}
    loss.backward()  # type: ignore[no-untyped-call]
    assert seen == {"online": [12, 4, 4, 4, 4, 4, 4], "target": [12, 4, 4, 4]}
