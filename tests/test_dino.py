"""DINO against an independent float64 reference, through two optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import reference as ref
import torch
import torch.nn.functional as F
from contrastive import SETTINGS, Setting, View, batch, check_updates
from tiny import BASE, DEPTH, HEADS, IMAGE, WIDTH, exact, spec
from torch import Tensor

from fastcl_cli.config import TeacherTemperature
from fastcl_cli.methods import dino as dino_module
from fastcl_cli.methods.build import build_backbone, build_method
from fastcl_cli.methods.dino import DINO, PrototypeLoss
from fastcl_cli.model.norm import GlobalBatchNorm
from fastcl_cli.schedule import compile_text
from fastcl_cli.train.schedules import Values

T, CENTER_MOMENTUM = 0.1, 0.9
WARM = TeacherTemperature(0.04, 0.07, 3)
TEMPERATURES = (0.04, 0.055)
# The second step stands in the second epoch: another teacher temperature, prototypes set free.
VALUES = [Values(0.5, 1e-4, 0.04, 0.99), Values(1.5, 7e-5, 0.1, 0.995)]
GLOBALS, LOCAL = (IMAGE, IMAGE), 8


def dino(norm_last_layer: bool = True, head_norm: bool = False) -> DINO:
    torch.manual_seed(1)
    backbone = build_backbone(spec(method="dino"))
    head = (24, 8, 40)
    method = DINO(backbone, head, head_norm, T, WARM, CENTER_MOMENTUM, 1.0, norm_last_layer)
    exact(method)
    with torch.no_grad():
        method.center.normal_(std=0.1)
    return method


def features(
    p: ref.Params,
    view: Tensor,
    patch: int,
    kept: Tensor | None,
    paths: Tensor | None = None,
) -> Tensor:
    """With learned embeddings, resampled to the view's grid as an image is."""
    vit = ref.below(p, "backbone.vit.")
    grid, base = view.shape[-1] // patch, IMAGE // BASE
    position = vit["pos_embed"][0]
    if grid != base:
        table = position[1:].T.reshape(1, WIDTH, base, base)
        table = F.interpolate(table, (grid, grid), mode="bicubic", antialias=True)
        position = torch.cat([position[:1], table.reshape(WIDTH, -1).T])
    return ref.vit(view, vit, DEPTH, HEADS, patch, position, kept, paths)


def logits(p: ref.Params, views: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of each view; a head with batch norm takes its statistics over the rows of all of them."""
    x = torch.cat(list(views))
    if "head.mlp.6.weight" in p:
        x = ref.gelu(ref.batch_norm(ref.linear(x, p, "head.mlp.0"), p, "head.mlp.1"))
        x = ref.gelu(ref.batch_norm(ref.linear(x, p, "head.mlp.3"), p, "head.mlp.4"))
        x = ref.linear(x, p, "head.mlp.6")
    else:
        x = ref.gelu(ref.linear(x, p, "head.mlp.0"))
        x = ref.gelu(ref.linear(x, p, "head.mlp.2"))
        x = ref.linear(x, p, "head.mlp.4")
    x = x / x.norm(dim=1, keepdim=True)
    v = p["head.direction"]
    return (x @ (p["head.length"] * v / v.norm(dim=1, keepdim=True)).T).chunk(len(views))


class Reference:
    """Algorithm 1 of the paper with multi-crop, pair by pair; keeps its own centre."""

    def __init__(self, center: Tensor) -> None:
        self.center = center.clone()

    def loss(
        self, online: ref.Params, target: ref.Params, views: Sequence[View], index: int
    ) -> Tensor:
        seen = [features(online, v.pixels, *v.online, v.paths) for v in views]
        student = [(z / T).log_softmax(1) for z in logits(online, seen)]
        raw = logits(
            target,
            [features(target, v.pixels, *v.target) for v in views if v.target is not None],
        )
        teacher = [((r - self.center) / TEMPERATURES[index]).softmax(1) for r in raw]
        terms = [
            -(t * s).sum(1).mean()
            for i, t in enumerate(teacher)
            for j, s in enumerate(student)
            if i != j
        ]
        mean = torch.cat(list(raw)).mean(0)
        self.center = CENTER_MOMENTUM * self.center + (1 - CENTER_MOMENTUM) * mean
        return sum(terms) / len(terms)  # type: ignore[return-value]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("locals_", [0, 3])
def test_two_updates_equal_the_reference(setting: Setting, locals_: int) -> None:
    check(dino(), setting, locals_)


def test_learned_lengths_and_stochastic_depth_equal_the_reference() -> None:
    check(dino(norm_last_layer=False), Setting(4, 4, True, drop_path=0.5), 2)


def test_a_head_with_batch_norm_equals_the_reference() -> None:
    check(dino(head_norm=True), SETTINGS["drop+patch"], 3)


@pytest.mark.parametrize(("setting", "norms"), [("off", 0), ("on", 2)])
def test_the_setting_reaches_both_heads(setting: str, norms: int) -> None:
    text = f"model vit_tiny_patch16_224 (depth=1); method dino; head 8 4 16; head_norm {setting};"
    method = build_method(compile_text(f"{text} epochs 0-1: full;").config, seed=0)
    assert method.target is not None
    for network in (method.online, method.target):
        found = [m for m in network.modules() if isinstance(m, GlobalBatchNorm)]
        assert [m.num_features for m in found] == [8] * norms


def check(method: DINO, setting: Setting, locals_: int) -> None:
    reference = Reference(method.center)
    sides = (*GLOBALS, *[LOCAL] * locals_)
    batches = [batch(setting, sides, 2, seed) for seed in (5, 6)]
    check_updates(
        method,
        batches,
        VALUES,
        reference.loss,
        momentum_before=None,
        clip=0.05,
        skipped=lambda index, name: index == 0 and name in ("head.direction", "head.length"),
    )
    assert (method.center - reference.center).abs().max() <= 1e-9


@pytest.mark.parametrize("views", [2, 3, 6])
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_blocks_of_any_size_give_the_sum_over_pairs(
    views: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and both gradients against Algorithm 1, pair by pair, whatever is computed at once."""
    images, prototypes = 4, 7
    monkeypatch.setitem(dino_module._LOGITS, "cpu", at_once * images * prototypes)
    generator = torch.Generator().manual_seed(0)
    made = [(views, images, 5), (prototypes, 5), (2, images, prototypes)]
    z, W, t = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in made)
    t = t.softmax(2)
    z.requires_grad_(), W.requires_grad_()
    pairs = [(i, j) for i in range(2) for j in range(views) if i != j]
    expected = sum(
        -(t[i] * (z[j] @ W.T / T).log_softmax(1)).sum(1).mean() / len(pairs) for i, j in pairs
    )
    actual = PrototypeLoss.apply(z, W, t, T)
    assert abs(actual - expected) <= 1e-12
    weighted = [torch.autograd.grad(3 * value, (z, W)) for value in (actual, expected)]
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(*weighted, strict=True))
    fixed = PrototypeLoss.apply(z, W.detach(), t, T)
    assert torch.equal(torch.autograd.grad(3 * fixed, z)[0], weighted[0][0])


def test_loss_changes_no_state() -> None:
    method = dino()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    views = batch(SETTINGS["full"], GLOBALS, 2, 0)
    seen = [v.input("online") for v in views]
    method.loss(seen, seen, 0.0)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


def test_the_teacher_is_described_by_its_distributions() -> None:
    """Mean entropy and mean distribution over images and global views, element by element."""
    method = dino()
    views = batch(SETTINGS["patch on online"], (*GLOBALS, LOCAL), 2, 0)
    online = [x for v in views if (x := v.input("online")) is not None]
    target = [x for v in views if (x := v.input("target")) is not None]
    seen = method.loss(online, target, 1.5).teacher
    assert seen is not None and method.target is not None
    p = dict(method.target.named_parameters())
    z = logits(p, [features(p, v.pixels, *v.target) for v in views if v.target is not None])
    rows = [((x - method.center) / TEMPERATURES[1]).softmax(1) for x in z]
    entropies = [-sum(x * math.log(x) for x in row) for row in torch.cat(rows).tolist()]
    assert float(seen.entropy) == pytest.approx(sum(entropies) / len(entropies), abs=1e-9)
    assert (seen.mean - torch.cat(rows).mean(0)).abs().max() <= 1e-9
    assert not seen.mean.requires_grad and not seen.entropy.requires_grad


def test_teacher_temperature_by_epoch() -> None:
    assert [WARM.at(e) for e in range(5)] == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert TeacherTemperature(0.04, 0.04, 0).at(0) == 0.04
