"""SimCLR against an independent float64 reference, through two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import reference as ref
import torch
from contrastive import SETTINGS, Setting, View, batch, check_updates
from test_dino import features
from tiny import IMAGE, exact, spec
from torch import Tensor

from fastcl_cli.methods.build import build_backbone
from fastcl_cli.methods.simclr import SimCLR, nt_xent
from fastcl_cli.train.schedules import Values

T = 0.1
VALUES = [Values(0.0, 1e-4, 0.1, None), Values(0.5, 7e-5, 0.1, None)]


def simclr() -> SimCLR:
    torch.manual_seed(1)
    method = exact(SimCLR(build_backbone(spec(method="simclr")), (24, 8), T))
    assert isinstance(method, SimCLR)
    return method


def projector(p: ref.Params, x: Tensor) -> Tensor:
    for i, norm in ((0, 1), (3, 4)):
        y = ref.batch_norm(ref.linear(x, p, f"projector.{i}"), p, f"projector.{norm}")
        x = y.clamp(min=0)
    return ref.linear(x, p, "projector.6")


def reference_nt_xent(first: Tensor, second: Tensor) -> Tensor:
    """Eq. 1 of the paper for each of the 2B embeddings, pair by pair."""
    z = [v / v.norm() for v in (*first, *second)]
    n = len(first)
    terms = []
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        others = torch.stack([z[i] @ z[k] / T for k in range(2 * n) if k != i])
        terms.append(-torch.log((z[i] @ z[positive] / T).exp() / others.exp().sum()))
    return torch.stack(terms).mean()


def reference_loss(
    online: ref.Params, target: ref.Params, views: Sequence[View], index: int
) -> Tensor:
    first, second = (projector(online, features(online, v.pixels, *v.online)) for v in views)
    return reference_nt_xent(first, second)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_two_updates_equal_the_reference(setting: Setting) -> None:
    batches = [batch(setting, (IMAGE, IMAGE), 0, seed) for seed in (5, 6)]
    check_updates(simclr(), batches, VALUES, reference_loss, momentum_before=None)


def test_vectors_do_not_decay_and_matrices_do() -> None:
    method = simclr()
    decays = {n: method.decays(n, p) for n, p in method.online.named_parameters()}
    assert decays["backbone.vit.pos_embed"] and decays["backbone.vit.blocks.0.attn.qkv.weight"]
    assert not decays["backbone.vit.norm.weight"] and not decays["projector.0.bias"]


def test_collapse_costs_ln_of_the_others() -> None:
    same = torch.ones(8, 5)
    assert nt_xent(same, same, T).item() == pytest.approx(math.log(15), rel=1e-6)
