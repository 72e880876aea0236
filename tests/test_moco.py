"""MoCo-v3 against an independent float64 reference, through two optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import reference as ref
import torch
from tiny import BASE, DEPTH, HEADS, IMAGE, WIDTH, T, exact, moco, spec
from torch import Tensor

from fastcl_cli.compression.patches import reduction_matrix
from fastcl_cli.compression.tokens import draw_kept_tokens
from fastcl_cli.methods.base import Input
from fastcl_cli.methods.build import build_backbone
from fastcl_cli.methods.moco import contrast
from fastcl_cli.model.position import sincos_embedding
from fastcl_cli.train.device import Device
from fastcl_cli.train.optim import build_optimizer, trained_parameters
from fastcl_cli.train.schedules import Values
from fastcl_cli.train.step import Trainer

BETAS = (0.9, 0.999)
# Rates of this size keep the update of a parameter whose gradient is exactly zero in theory (the last
# norm's bias, which the batch norm after it removes) at the size of rounding over AdamW's epsilon.
VALUES = [Values(0.0, 1e-3, 0.1, 0.9), Values(0.5, 7e-4, 0.1, 0.95)]
MOMENTUM_BEFORE_FIRST = 0.99


@dataclass
class Step:
    """Full-resolution views of one batch, and the tokens each encoder keeps of them."""

    views: list[Tensor]
    patch: tuple[int, int]
    kept: list[tuple[Tensor | None, Tensor | None]]

    def inputs(self, encoder: int) -> list[Input]:
        d = reduction_matrix(IMAGE, self.patch[encoder], BASE)
        shrink = (lambda x: x) if d is None else (lambda x: d @ x @ d.T)
        return [
            Input(shrink(view), kept[encoder])
            for view, kept in zip(self.views, self.kept, strict=True)
        ]


def steps(online_patch: int, target_patch: int, drop: bool) -> list[Step]:
    g = torch.Generator().manual_seed(5)
    grid = IMAGE // online_patch
    kept = grid * grid // 2

    def tokens() -> Tensor | None:
        return draw_kept_tokens(6, grid * grid, kept, g) if drop else None

    return [
        Step(
            [torch.randn(6, 3, IMAGE, IMAGE, dtype=torch.float64, generator=g) for _ in range(2)],
            (online_patch, target_patch),
            [(tokens(), None), (tokens(), None)],
        )
        for _ in range(2)
    ]


def reference_features(p: ref.Params, view: Tensor, patch: int, kept: Tensor | None) -> Tensor:
    code = sincos_embedding(IMAGE // patch, IMAGE // BASE, WIDTH)
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


def reference_loss(online: ref.Params, target: ref.Params, step: Step) -> Tensor:
    queries, keys = [], []
    for view, (kept, target_kept) in zip(step.views, step.kept, strict=True):
        queries.append(
            predictor(
                online, projector(online, reference_features(online, view, step.patch[0], kept))
            )
        )
        keys.append(projector(target, reference_features(target, view, step.patch[1], target_kept)))
    return info_nce(queries[0], keys[1]) + info_nce(queries[1], keys[0])


def average(target: dict[str, Tensor], online: ref.Params, m: float) -> dict[str, Tensor]:
    return {k: m * v + (1 - m) * online[k] for k, v in target.items()}


@pytest.mark.parametrize(
    ("online_patch", "target_patch", "drop"),
    [(4, 4, False), (4, 4, True), (8, 8, True), (8, 4, False)],
    ids=["full", "drop", "drop+patch", "patch on online"],
)
def test_two_updates_equal_the_reference(online_patch: int, target_patch: int, drop: bool) -> None:
    method = exact(moco())
    assert method.target is not None
    online = {k: v.detach().clone() for k, v in method.online.named_parameters()}
    target = {k: v.detach().clone() for k, v in method.target.named_parameters()}
    trained = set(trained_parameters(method))
    batches = steps(online_patch, target_patch, drop)
    trainer = Trainer(
        method,
        build_optimizer(method, BETAS),
        type("Fixed", (), {"at": lambda self, step: VALUES[step]})(),
        lambda step, segment, decoded: (batches[step].inputs(0), batches[step].inputs(1)),  # type: ignore[arg-type]
        Device(torch.device("cpu"), "float32", 2),
        clip=None,
    )
    adam = ref.AdamW(BETAS)
    # The published order: the momentum encoder moves first, then the keys are made.
    momentum = [MOMENTUM_BEFORE_FIRST, *(v.momentum for v in VALUES)]
    for index, batch in enumerate(batches):
        target = average(target, online, momentum[index])
        leaves = {k: v.clone().requires_grad_(k in trained) for k, v in online.items()}
        loss = reference_loss(leaves, target, batch)
        names = sorted(trained)
        gradients = dict(
            zip(names, torch.autograd.grad(loss, [leaves[n] for n in names]), strict=True)
        )
        result = trainer.step(index, None, None)  # type: ignore[arg-type]
        assert result.loss == pytest.approx(loss.item(), abs=1e-9)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        assert result.gradient_norm == pytest.approx(norm, abs=1e-9)
        own = dict(method.online.named_parameters())
        for name in names:
            assert (own[name].grad - gradients[name]).abs().max() <= 1e-9, name
        adam.update(online, gradients, VALUES[index].lr, dict.fromkeys(names, 0.1))
        for name, value in online.items():
            assert (own[name] - value).abs().max() <= 1e-9, name
    # What is saved has already moved on to the next step's momentum encoder.
    target = average(target, online, momentum[-1])
    for name, parameter in method.target.named_parameters():
        assert (parameter - target[name]).abs().max() <= 1e-9, name


def test_patch_projection_and_positions_stay_as_drawn() -> None:
    method = exact(moco())
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
