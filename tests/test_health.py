"""Signs of collapse: the measures in closed form, and when the watch speaks."""

from __future__ import annotations

import math

import pytest
import torch

from fastcl_cli.train.health import PATIENCE, Watch, effective_rank, feature_std


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


def look(watch: Watch, step: int, **values: float) -> list[str]:
    line = {"step": step, "loss": 2.0, "gradient_norm": 1.0, "feature_std": 0.8, **values}
    return watch.look(line, COLLAPSED)


COLLAPSED = math.log(256)


def test_silence_on_a_healthy_run_that_starts_at_the_collapsed_loss() -> None:
    watch = Watch()
    losses = [COLLAPSED] * 20 + [COLLAPSED - 0.02 * i for i in range(50)]
    assert not [w for i, loss in enumerate(losses) for w in look(watch, i, loss=loss)]


def test_a_loss_that_comes_back_is_told_once() -> None:
    watch = Watch()
    losses = [COLLAPSED, COLLAPSED - 1, COLLAPSED - 2] + [COLLAPSED] * 40
    told = [(i, w) for i, loss in enumerate(losses) for w in look(watch, i, loss=loss)]
    assert len(told) == 1
    assert told[0][0] == 2 + PATIENCE
    assert "ignore the image" in told[0][1] and "`lr`" in told[0][1]


def test_features_without_spread_are_told_after_patience() -> None:
    watch = Watch()
    told = [i for i in range(40) if look(watch, i, feature_std=0.01)]
    assert told == [PATIENCE - 1]
    watch = Watch()
    now_and_then = [0.01 if i % PATIENCE else 0.5 for i in range(40)]
    assert not [w for i, s in enumerate(now_and_then) for w in look(watch, i, feature_std=s)]


def test_a_spike_of_the_gradient_is_told() -> None:
    watch = Watch()
    assert not [w for i in range(20) for w in look(watch, i, gradient_norm=1 + i % 3)]
    (warning,) = look(watch, 21, gradient_norm=100.0)
    assert "50 times" in warning and "`clip`" in warning
