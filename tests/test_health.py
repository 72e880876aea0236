"""Signs of collapse: the measures in closed form, and when the watch speaks."""

from __future__ import annotations

import math

import pytest
import torch

from fastcl_cli.config import Method
from fastcl_cli.train.health import (
    PATIENCE,
    Watch,
    effective_rank,
    feature_std,
    prototypes_used,
)


def test_equal_features_have_no_spread_and_rank_one() -> None:
    features = torch.ones(32, 8) * torch.rand(32, 1)
    assert feature_std(features) == pytest.approx(0, abs=1e-6)
    assert effective_rank(features) == pytest.approx(1, abs=1e-4)


def test_isotropic_features_have_spread_one_and_full_rank() -> None:
    features = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(features) == pytest.approx(1, rel=0.01)
    assert effective_rank(features) == pytest.approx(16, rel=0.01)


def test_rank_counts_equal_directions() -> None:
    """Three orthogonal directions, equally often: three equal singular values."""
    features = torch.eye(8)[:3].repeat(10, 1)
    assert effective_rank(features) == pytest.approx(3, rel=1e-5)


def test_large_features_do_not_overflow() -> None:
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert feature_std(features * 1e30) == pytest.approx(feature_std(features))
    assert effective_rank(features * 1e30) == pytest.approx(effective_rank(features))
    assert effective_rank(torch.zeros(4, 3)) == 1.0


def test_prototypes_in_use() -> None:
    one = torch.eye(9)[4]
    assert prototypes_used(one) == pytest.approx(1)
    assert prototypes_used(torch.tensor([0.25, 0.25, 0.5, 0.0])) == pytest.approx(2**1.5)
    assert prototypes_used(torch.full((50,), 0.02)) == pytest.approx(50)


COLLAPSED = math.log(256)
EPOCHS, WARMUP = 100.0, 5.0
HEALTHY: dict[str, float | None] = {
    "loss": 2.0,
    "batch": 128,
    "gradient_norm": 1.0,
    "feature_std": 0.8,
    "effective_rank": 9.0,
    "teacher_entropy": 3.0,
    "prototypes_used": 60.0,
}
COLLAPSES: dict[str, tuple[dict[str, float], str, str]] = {
    "loss": ({"loss": COLLAPSED}, "ignore the image", "`lr`"),
    "std": ({"feature_std": 0.01}, "nearly the same features", "`center_momentum`"),
    "rank": ({"effective_rank": 1.2}, "along a line", "`weight_decay`"),
    "one prototype": ({"prototypes_used": 1.01}, "same prototypes", "`center_momentum`"),
    "uniform": ({"teacher_entropy": COLLAPSED}, "all prototypes alike", "`teacher_temperature`"),
}


def look(watch: Watch, epoch: float, **values: float | None) -> list[str]:
    return watch.look({**HEALTHY, "step": 10 * epoch, "epoch": epoch, **values}, COLLAPSED)


def told(watch: Watch, epochs: range, **values: float | None) -> list[tuple[int, str]]:
    return [(epoch, w) for epoch in epochs for w in look(watch, epoch, **values)]


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_sign_is_told_once_after_patience(name: str) -> None:
    values, text, remedy = COLLAPSES[name]
    watch = Watch("dino", EPOCHS, WARMUP)
    assert not told(watch, range(30))
    ((epoch, warning),) = told(watch, range(30, 90), **values)
    assert epoch == 30 + PATIENCE - 1
    assert text in warning and remedy in warning.split(";", 1)[1]


@pytest.mark.parametrize("name", COLLAPSES)
def test_now_and_then_is_no_sign(name: str) -> None:
    watch = Watch("dino", EPOCHS, WARMUP)
    values, _, _ = COLLAPSES[name]
    shown = [values if epoch % PATIENCE else {} for epoch in range(100)]
    assert not [w for epoch, v in enumerate(shown) for w in look(watch, epoch, **v)]


def all_signs() -> dict[str, float]:
    return {key: value for values, _, _ in COLLAPSES.values() for key, value in values.items()}


def test_a_young_run_may_look_collapsed() -> None:
    """A tenth of the run, or its warm-up; a run that stays so is told then."""
    for warmup, grown in ((5.0, 10), (20.0, 20)):
        watch = Watch("dino", EPOCHS, warmup)
        assert not told(watch, range(grown + 1), **all_signs())
        assert not told(watch, range(grown + 1, 60))
        watch = Watch("dino", EPOCHS, warmup)
        warnings = told(watch, range(60), **all_signs())
        assert [epoch for epoch, _ in warnings] == [grown + PATIENCE] * len(COLLAPSES)


def test_methods_without_a_teacher_have_no_entropy() -> None:
    watch = Watch("dino", EPOCHS, WARMUP)
    assert not told(watch, range(100), teacher_entropy=None, prototypes_used=None)


def test_a_small_batch_has_a_small_rank() -> None:
    assert not told(Watch("dino", EPOCHS, WARMUP), range(100), effective_rank=1.2, batch=8)


def test_a_spike_of_the_gradient_is_told() -> None:
    watch = Watch("dino", EPOCHS, WARMUP)
    assert not [w for i in range(20) for w in look(watch, i, gradient_norm=1 + i % 3)]
    (warning,) = look(watch, 21, gradient_norm=100.0)
    assert "50 times" in warning and "`clip`" in warning
    assert not look(watch, 22, gradient_norm=100.0)


FOREIGN = {
    "moco": ("`head_norm", "`center_momentum`", "`teacher_temperature`"),
    "simclr": ("`freeze_patch", "`head_norm", "`center_momentum`", "`teacher_temperature`"),
    "dino": ("`freeze_patch",),
}
"""What no remedy for a method may name: settings of the others, and MoCo's own trick."""


@pytest.mark.parametrize("method", FOREIGN)
def test_remedies_are_those_of_the_runs_method(method: Method) -> None:
    watch = Watch(method, EPOCHS, WARMUP)
    teacher = {} if method == "dino" else {"teacher_entropy": None, "prototypes_used": None}
    values = {**all_signs(), **teacher}
    warnings = [w for _, w in told(watch, range(40), **values)]
    assert len(warnings) == (5 if method == "dino" else 3)
    warnings += look(watch, 41, **teacher, gradient_norm=100.0)
    text = " ".join(warnings)
    assert "jumped" in text and "lower `lr`" in text
    assert ("`freeze_patch on`" in text) == (method == "moco")
    assert ("`head_norm on`" in text) == (method == "dino")
    assert not [name for name in FOREIGN[method] if name in text]
