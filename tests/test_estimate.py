"""Estimates against sums by hand, and schedules that are made to fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcl_cli import devices
from fastcl_cli.clocks import AnalyticClock
from fastcl_cli.cost import forward_flops
from fastcl_cli.devices import DEVICES, find_device
from fastcl_cli.errors import BudgetError, UsageError
from fastcl_cli.estimate import estimate, fit, require_fit
from fastcl_cli.schedule import Loaded, compile_text, load
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.units import parse_budget

A100 = AnalyticClock(DEVICES["a100"])


def hours(loaded: Loaded, text: str = "1gpuh") -> float:
    return estimate(loaded, parse_budget(text), A100, named=True).gpu_hours


def test_gpu_hours_are_operations_over_speed() -> None:
    loaded = compile_text("images 10240; batch 1024; warmup 0%; epochs 0-10: full;")
    each = forward_flops(loaded.config, full_views(loaded.config), 1024).training
    seconds = 10 * 10240 * each / (312e12 * A100.hardware.utilisation)
    result = estimate(loaded, parse_budget("1gpuh"), A100, named=True)
    assert result.gpu_hours == pytest.approx(seconds / 3600)
    assert result.gpu_hours_full == pytest.approx(result.gpu_hours)
    assert result.units == pytest.approx(10 * 10240 * 4)
    assert result.epochs_in_budget == pytest.approx(10 / result.gpu_hours)


@pytest.mark.parametrize("name", ["moco_opt", "simclr_opt", "dino_opt"])
def test_speed_up_is_that_of_the_plan(name: str) -> None:
    loaded = load(name)
    result = estimate(loaded, parse_budget("1gpuh"), A100, named=False)
    assert result.speedup == pytest.approx(loaded.plan.speedup)
    assert result.gpu_hours_full == pytest.approx(
        hours(load(name, ["decay=cosine"])) * result.speedup
    )


@pytest.mark.parametrize("name", ["moco_opt", "dino_opt", "simclr_const"])
def test_budgets_in_two_units_agree(name: str) -> None:
    loaded = load(name)
    one = estimate(loaded, parse_budget("1gpuh"), A100, named=False)
    need = {"gpuh": one.gpu_hours, "gpud": one.gpu_hours / 24, "gpumin": one.gpu_hours * 60}
    need["Munits"] = one.units / 1e6
    for unit, amount in need.items():
        half = estimate(loaded, parse_budget(f"{amount / 2:.8g}{unit}"), A100, named=False)
        assert half.epochs_in_budget == pytest.approx(loaded.plan.epochs / 2, rel=1e-6)
        assert not half.fits
        assert estimate(loaded, parse_budget(f"{amount * 1.001:.8g}{unit}"), A100, False).fits


def test_only_named_schedules_must_fit() -> None:
    loaded, budget = load("dino_full"), parse_budget("1gpuh")
    require_fit([estimate(loaded, budget, A100, named=False)], budget)
    with pytest.raises(BudgetError, match="dino_full needs") as caught:
        require_fit([estimate(loaded, budget, A100, named=True)], budget)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "text",
    [
        "method dino; epochs 0-60: drop 0.5 patch 32; epochs 60-100: full;",
        "batch 1024; steps 0-60000: drop 0.5 patch 32; steps 60000-100000: full;",
        "length 100 epochs; 0%-60%: drop 0.75 -> 0.25 in 4; 60%-100%: full;",
        "warmup 10 epochs; # why\nepochs 0-100: full;",
    ],
)
@pytest.mark.parametrize("budget", ["10gpuh", "5gpuh", "50Munits"])
def test_a_written_schedule_fits_and_uses_the_budget(text: str, budget: str) -> None:
    loaded = compile_text(text, "f.fcs")
    allowed = parse_budget(budget)
    before = estimate(loaded, allowed, A100, named=True)
    again = compile_text(fit(loaded, allowed, A100))
    after = estimate(again, allowed, A100, named=True)
    assert after.fits
    # Ranges are whole epochs, so at most two of them are given away.
    assert before.fits or after.epochs_in_budget < after.epochs + 2
    assert len(again.plan.segments) == len(loaded.plan.segments)
    share = again.plan.in_epochs(again.config.warmup) / again.plan.epochs
    assert share == pytest.approx(
        loaded.plan.in_epochs(loaded.config.warmup) / loaded.plan.epochs, abs=1e-3
    )


def test_what_cannot_be_shortened_is_said() -> None:
    with pytest.raises(BudgetError, match="cannot be shortened"):
        fit(load("dino_opt"), parse_budget("1gpumin"), A100)
    ramp = "images 8192; warmup 0%; epochs 0-10: drop 0.9 -> 0 in 20; epochs 10-20: full;"
    with pytest.raises(BudgetError, match="cannot be shortened"):
        fit(compile_text(ramp), parse_budget("0.01gpumin"), A100)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("a100", "NVIDIA A100"),
        ("A100", "NVIDIA A100"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4090"),
        ("rtx-3090", "NVIDIA GeForce RTX 3090"),
        ("Tesla V100-SXM2-16GB", "NVIDIA V100"),
        ("Tesla T4", "NVIDIA T4"),
    ],
)
def test_devices_by_name(name: str, device: str) -> None:
    assert find_device(name)[0].name == device


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        find_device("a1000")
    assert caught.value.help == "did you mean `a100`?"


@pytest.mark.parametrize(
    ("output", "device", "how"),
    [
        ("NVIDIA H200\nNVIDIA H200\n", "NVIDIA H200", "found here"),
        ("NVIDIA Quadro P400\n", "NVIDIA A100", "not in the table: assumed"),
        (None, "NVIDIA A100", "no NVIDIA device found here: assumed"),
    ],
)
def test_auto_asks_nvidia_smi(
    output: str | None, device: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if output is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\nprintf '{output}'\n")
        program.chmod(0o755)
    found, words = devices.find_device("auto")
    assert found.name == device
    assert how in words
