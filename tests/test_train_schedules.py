"""Values over a run as hand-written lists."""

from __future__ import annotations

import math

import pytest

from fastcl_cli.schedule import compile_text
from fastcl_cli.train.schedules import Schedules

HEAD = "images 40; batch 20; model vit_tiny_patch16_224; "


def schedules(settings: str, phases: str = "epochs 0-4: full", lead: int = 0) -> Schedules:
    loaded = compile_text(f"{HEAD} {settings} {phases};")
    return Schedules(loaded.config, loaded.plan, lead)


def rates(schedule: Schedules, steps: int) -> list[float]:
    return [schedule.at(step).lr for step in range(steps)]


def test_warmup_then_cosine() -> None:
    """Two steps an epoch; two epochs up to 8e-3, then half a cosine over two epochs to 1e-3."""
    got = rates(schedules("lr 8e-3; warmup 2 epochs; decay cosine to 1e-3;"), 8)
    fall = [1e-3 + 7e-3 * (1 + math.cos(math.pi * t)) / 2 for t in (0, 0.25, 0.5, 0.75)]
    assert got == pytest.approx([0, 2e-3, 4e-3, 6e-3, *fall])


def test_warmup_in_steps_and_per_cent() -> None:
    for warmup in ("2 steps", "25%", "1 epochs"):
        got = rates(schedules(f"lr 4e-3; warmup {warmup}; decay constant;"), 8)
        assert got == pytest.approx([0, 2e-3, *[4e-3] * 6])


def test_polynomial_decay() -> None:
    got = rates(schedules("lr 1; warmup 0 epochs; decay poly 2;"), 8)
    assert got == pytest.approx([(1 - s / 8) ** 2 for s in range(8)])


def test_rate_is_linear_in_the_batch_of_the_phase() -> None:
    schedule = schedules(
        "lr 256e-3 per 256; warmup 0 epochs; decay constant;",
        "epochs 0-2: full; epochs 2-4: full batch 10",
    )
    assert rates(schedule, 12) == pytest.approx([20e-3] * 4 + [10e-3] * 8)


def test_a_warmup_as_long_as_the_run_only_rises() -> None:
    got = rates(schedules("lr 8; warmup 4 epochs; decay cosine;"), 8)
    assert got == pytest.approx([float(s) for s in range(8)])


def test_momentum_and_weight_decay_follow_half_a_cosine() -> None:
    schedule = schedules("momentum 0.9 -> 1; weight_decay 0.04 -> 0.4; warmup 0 epochs;")
    for step in range(8):
        values = schedule.at(step)
        c = (1 + math.cos(math.pi * step / 8)) / 2
        assert values.momentum == pytest.approx(1 - 0.1 * c)
        assert values.weight_decay == pytest.approx(0.4 - 0.36 * c)


def test_momentum_lead_reads_the_next_step() -> None:
    now = schedules("momentum 0.9 -> 1; warmup 0 epochs;")
    ahead = schedules("momentum 0.9 -> 1; warmup 0 epochs;", lead=1)
    assert [ahead.at(s).momentum for s in range(7)] == [now.at(s + 1).momentum for s in range(7)]
    assert ahead.at(7).momentum == pytest.approx(1.0)
