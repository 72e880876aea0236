"""Estimates against sums by hand, and schedules that are made to fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from profiles import measured, profile

from fastcl_cli.cost import forward_flops
from fastcl_cli.errors import BudgetError, ConfigError, UsageError
from fastcl_cli.estimate import clocks, devices
from fastcl_cli.estimate.clocks import AnalyticClock, Clock, ProfileClock, choose_clocks
from fastcl_cli.estimate.devices import DEVICES, find_device
from fastcl_cli.estimate.estimate import Estimate, check_device, estimate, fit, require_fit
from fastcl_cli.estimate.profile import Fixed
from fastcl_cli.estimate.profile_file import write_profile
from fastcl_cli.schedule import Loaded, Request, compile_text, load
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.ui import estimate as view
from fastcl_cli.units import parse_budget

OPTIONS: dict[str, Any] = {
    "gpu": "auto", "gpus": 8, "data": None, "settings": [], "images": None, "profiles": [],
    "write": None,
}  # fmt: skip

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


@pytest.mark.parametrize("budget", ["10gpuh", "1gpuh"])
def test_a_written_schedule_holds_what_set_replaced(budget: str) -> None:
    text = "method moco; batch 512; epochs 0-60: drop 0.5 patch 32; epochs 60-100: full;"
    overrides = ("batch=256", "model=vit_base_patch16_224", "images=20000")
    loaded = compile_text(text, "f.fcs", Request(overrides))
    again = compile_text(fit(loaded, parse_budget(budget), A100))
    assert again.config.batch == 256 and again.config.model == loaded.config.model
    assert again.plan.images == 20000
    fits = estimate(loaded, parse_budget(budget), A100, named=True).fits
    assert (again.plan.hash() == loaded.plan.hash()) == fits


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


PHASES = "images 1000; batch 100; warmup 0%; epochs 0-6: drop 0.5 patch 32; epochs 6-10: full;"
FIXED = Fixed(start_s=7.0, stream_s=0.5, save_s=0.25)


def clock(loaded: Loaded, *settings: tuple[int, int, float, float], **options: Any) -> ProfileClock:
    """A clock that knows (segment, batch, milliseconds a step, of which waiting)."""
    rows = [
        measured(loaded.config, loaded.plan.segments[i].views, batch, step, wait)
        for i, batch, step, wait in settings
    ]
    return ProfileClock(Path("p.json"), profile(loaded.config, rows, **options))


def measured_estimate(
    loaded: Loaded, timing: Clock, gpus: int = 1, text: str = "1gpuh"
) -> Estimate:
    return estimate(loaded, parse_budget(text), timing, named=True, gpus=gpus)


def test_measured_hours_are_steps_times_their_time() -> None:
    """60 steps at 40 ms and 40 at 200 ms; without compression all 100 at 200 ms."""
    loaded = compile_text(PHASES)
    timing = clock(loaded, (0, 100, 40.0, 0.0), (1, 100, 200.0, 0.0))
    result = measured_estimate(loaded, timing)
    assert result.source == "measured"
    assert [t.seconds for t in result.segments] == pytest.approx([60 * 0.04, 40 * 0.2])
    assert result.gpu_hours * 3600 == pytest.approx(2.4 + 8 + 100 * 0.030)
    assert result.gpu_hours_full * 3600 == pytest.approx(20 + 100 * 0.030)
    assert result.overhead_hours * 3600 == pytest.approx(100 * 0.030)
    assert result.units == pytest.approx(
        estimate(loaded, parse_budget("1gpuh"), A100, named=True).units
    )


def test_what_comes_besides_steps_is_added() -> None:
    """1,000 steps in 10 epochs: 200 log lines of 30 ms, 20 checkpoints, one start-up, and 10
    streams (no phase begins within an epoch)."""
    loaded = compile_text(PHASES.replace("batch 100", "batch 10"))
    timing = clock(loaded, (0, 10, 4.0, 0.0), (1, 10, 20.0, 0.0), fixed=FIXED)
    result = measured_estimate(loaded, timing)
    besides = 7.0 + 10 * 0.5 + 200 * 0.030 + 20 * 0.25
    assert result.overhead_hours * 3600 == pytest.approx(besides)
    assert result.gpu_hours * 3600 == pytest.approx(600 * 0.004 + 400 * 0.02 + besides)
    # With a budget of half of what grows with the length, and all of what does not:
    constant = besides - 10 * 0.5
    amount = (constant + (result.gpu_hours * 3600 - constant) / 2) / 3600
    half = measured_estimate(loaded, timing, text=f"{amount:.10f}gpuh")
    assert half.epochs_in_budget == pytest.approx(5, rel=1e-6) and not half.fits
    assert measured_estimate(loaded, timing, text=f"{6 / 3600:.10f}gpuh").epochs_in_budget == 0


@pytest.mark.parametrize(
    ("gpus", "ms", "bound"),
    [
        # Computing alone, a device takes 100 / 36 ms = 2,778 and 100 / 198 ms = 505 images/s.
        (1, [40, 200], [False, False]),
        (2, [20, 100], [False, False]),
        (3, [100 / 6, 200 / 3], [True, False]),
        (11, [100 / 6, 200 / 11], [True, False]),
        (16, [100 / 6, 100 / 6], [True, True]),
    ],
)
def test_the_loader_binds_what_devices_take_faster(
    gpus: int, ms: list[float], bound: list[bool]
) -> None:
    """One loader of 6,000 images a second for all devices; a step lasts as long as the slower."""
    loaded = compile_text(PHASES)
    timing = clock(loaded, (0, 100, 40.0, 4.0), (1, 100, 200.0, 2.0), ceiling=6000.0)
    result = measured_estimate(loaded, timing, gpus)
    assert [t.loader_bound for t in result.segments] == bound
    assert [1000 * t.seconds / t.steps for t in result.segments] == pytest.approx(ms)
    assert result.binds == (0 if any(bound) else None)
    # GPU-hours are those of all devices: each is paid for while it waits.
    seconds = (60 * ms[0] + 40 * ms[1]) / 1000 + 100 * 0.03
    assert result.gpu_hours * 3600 == pytest.approx(gpus * seconds)


def test_several_processes_were_measured_together() -> None:
    """4 processes took 40 ms for 100 images; 4 devices take that, 8 half of it, 1 four times."""
    loaded = compile_text(PHASES)
    timing = clock(loaded, (0, 100, 40.0, 0.0), (1, 100, 200.0, 0.0), processes=4)
    times = [measured_estimate(loaded, timing, n).segments[0].seconds for n in (4, 8, 1)]
    assert times == pytest.approx([2.4, 1.2, 9.6])
    said = [any("devices taken to be" in x for x in timing.assumptions(loaded, n)) for n in (4, 8)]
    assert said == [False, True]


def test_what_was_not_measured_scales_with_operations_and_is_said() -> None:
    loaded = compile_text(PHASES, "f.fcs")
    timing = clock(loaded, (1, 100, 200.0, 0.0))
    result = measured_estimate(loaded, timing)
    ratio = loaded.plan.segments[0].sample_cost
    assert 0 < ratio < 0.5
    assert result.segments[0].seconds == pytest.approx(60 * 0.2 * ratio)
    assert [t.source for t in result.segments] == ["scaled", "measured"]
    lines = timing.assumptions(loaded, 1)
    assert any("f.fcs: segments 1 were not measured" in line for line in lines)
    whole = clock(loaded, (0, 100, 40.0, 0.0), (1, 100, 200.0, 0.0))
    assert not any("not measured" in line for line in whole.assumptions(loaded, 1))


def test_another_batch_takes_as_long_for_each_image_and_is_said() -> None:
    loaded = compile_text(PHASES, "f.fcs")
    timing = clock(loaded, (0, 50, 20.0, 0.0), (1, 50, 100.0, 0.0))
    assert measured_estimate(loaded, timing).segments[0].seconds == pytest.approx(60 * 0.04)
    said = "f.fcs: 100 images for each device taken to need as much each as the 50 that were"
    assert any(line.startswith(said) for line in timing.assumptions(loaded, 1))
    assert not any("taken to need" in line for line in timing.assumptions(loaded, 2))


@pytest.mark.parametrize("budget", ["0.015gpuh", "1gpumin"])
def test_a_schedule_written_from_a_profile_fits_it(budget: str) -> None:
    loaded = compile_text(PHASES, "f.fcs")
    timing = clock(loaded, (0, 100, 400.0, 0.0), (1, 100, 2000.0, 0.0), fixed=FIXED)
    allowed = parse_budget(budget)
    text = fit(loaded, allowed, timing)
    assert "measured on NVIDIA A100-SXM4-80GB" in text
    again = estimate(compile_text(text), allowed, timing, named=True)
    assert again.fits and again.epochs_in_budget < again.epochs + 2


def store(folder: Path, loaded: Loaded, name: str, **options: Any) -> Path:
    path = folder / "profiles" / f"{name}.json"
    both = (0, 100, 40.0, 0.0), (1, 100, 200.0, 0.0)
    chosen = both[1:] if options.pop("lacking", False) else both
    write_profile(path, clock(loaded, *chosen, **options).profile)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTCL_CACHE", str(tmp_path))
    monkeypatch.setattr(devices, "this_hardware", lambda: "NVIDIA A100-SXM4-80GB")
    return tmp_path


def chosen_path(loaded: Loaded, gpu: str = "auto", gpus: int = 1) -> Path | None:
    ((_, found),), _ = choose_clocks([loaded], [], gpu, gpus, named=True)
    return found.path if isinstance(found, ProfileClock) else None


def test_the_profile_of_the_device_is_found(cache: Path) -> None:
    loaded = compile_text(PHASES, "f.fcs")
    assert chosen_path(loaded) is None
    store(cache, loaded, "other", device="NVIDIA H100 80GB HBM3")
    assert chosen_path(loaded) is None
    assert chosen_path(loaded, "h100") is not None
    assert chosen_path(loaded, "nvidia h100 80gb hbm3") is not None
    lacking = store(cache, loaded, "lacking", lacking=True, date="2026-09-09T00:00:00+00:00")
    assert chosen_path(loaded) == lacking
    whole = store(cache, loaded, "whole")
    assert chosen_path(loaded) == whole
    newer = store(cache, loaded, "again", date="2026-08-08T00:00:00+00:00")
    assert chosen_path(loaded) == newer
    four = store(cache, loaded, "four", processes=4)
    assert [chosen_path(loaded, gpus=n) for n in (1, 4, 8)] == [newer, four, newer]
    other = compile_text("head 64 32;" + PHASES)
    assert chosen_path(other) is None


def test_an_assumed_device_is_not_taken_for_this_machine(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = compile_text(PHASES, "f.fcs")
    monkeypatch.setenv("PATH", "")
    _, (said,) = choose_clocks([loaded], [], "auto", 1, named=True)
    assert "not times of this machine" in said and "`fastcl bench f.fcs`" in said
    _, (said,) = choose_clocks([loaded, loaded], [], "auto", 1, named=False)
    assert "`fastcl bench FILE`" in said
    assert choose_clocks([loaded], [], "a100", 1, named=True)[1] == []
    store(cache, loaded, "whole")
    assert choose_clocks([loaded], [], "auto", 1, named=True)[1] == []


def test_a_profile_of_other_cores_is_named_but_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = compile_text(PHASES, "f.fcs")
    monkeypatch.setenv("PATH", "")
    for module, name in ((devices, "this_hardware"), (clocks, "processor_name")):
        monkeypatch.setattr(module, name, lambda: "A Processor (2 threads)")
    path = store(cache, loaded, "one", device="A Processor (1 threads)")
    store(cache, loaded, "another", device="B Processor (1 threads)")
    assert chosen_path(loaded) is None
    said, _ = choose_clocks([loaded], [], "auto", 1, named=True)[1]
    assert said == (
        "not used, for it is of A Processor (1 threads), and this is A Processor (2 threads): "
        f"{path}; --profile takes it"
    )
    ((_, given),), _ = choose_clocks([loaded], [path], "auto", 1, named=True)
    assert isinstance(given, ProfileClock)


def test_processor_hours_are_no_gpus_nor_the_other_way_round(cache: Path) -> None:
    loaded, budget = compile_text(PHASES, "f.fcs"), parse_budget("5cpuh")
    with pytest.raises(UsageError, match="processor's time, and what is known are times of NVIDIA"):
        check_device(budget, A100)
    ours = clock(loaded, (1, 100, 200.0, 0.0), device="A Processor (2 threads)")
    check_device(budget, ours)
    check_device(parse_budget("5gpuh"), A100)
    check_device(parse_budget("5gpuh"), replace(ours, profile=replace(ours.profile, device="GPU")))
    with pytest.raises(UsageError, match=r"GPU's time, and what is known are times of A Proc") as e:
        check_device(parse_budget("5gpuh"), ours)
    assert "cpuh" in e.value.help
    for known in (ours, A100):
        check_device(parse_budget("5Munits"), known)


def test_all_schedules_or_none_are_measured(cache: Path) -> None:
    loaded, other = compile_text(PHASES, "f.fcs"), compile_text("head 64 32;" + PHASES, "g.fcs")
    store(cache, loaded, "one")
    clocks, notes = choose_clocks([loaded, other], [], "a100", 1, named=True)
    assert {c.source for _, c in clocks} == {"analytic"}
    said = "measured on NVIDIA A100-SXM4-80GB: f.fcs; estimate these alone to use it"
    assert notes == [said]
    store(cache, other, "two")
    clocks, notes = choose_clocks([loaded, other], [], "a100", 1, named=True)
    assert {c.source for _, c in clocks} == {"measured"} and notes == []


def test_a_given_profile_serves_or_is_refused(cache: Path) -> None:
    loaded, other = compile_text(PHASES, "f.fcs"), compile_text("head 64 32;" + PHASES, "g.fcs")
    path = store(cache, loaded, "one", device="NVIDIA H100 80GB HBM3")
    clocks, _ = choose_clocks([loaded], [path], "auto", 1, named=True)
    assert clocks[0][1].device == "NVIDIA H100 80GB HBM3"
    with pytest.raises(UsageError, match="--gpu 'a100', but the profile is of NVIDIA H100"):
        choose_clocks([loaded], [path], "a100", 1, named=True)
    with pytest.raises(
        ConfigError, match=r"does not apply to g\.fcs: head is 64 32, measured 4096"
    ):
        choose_clocks([loaded, other], [path], "auto", 1, named=True)
    clocks, notes = choose_clocks([loaded, other], [path], "h100", 1, named=False)
    assert [item.name for item, _ in clocks] == ["f.fcs"]
    assert notes == ["left out, for the profile does not apply: g.fcs"]
    with pytest.raises(ConfigError, match="applies to no built-in schedule"):
        choose_clocks([other], [path], "auto", 1, named=False)
    second = store(cache, other, "two")
    with pytest.raises(UsageError, match=r"different devices: NVIDIA A100.*; NVIDIA H100"):
        choose_clocks([loaded, other], [path, second], "auto", 1, named=True)


def test_the_answer_in_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The contract's fields, and those beside them, from a file that does not fit."""
    file = cache / "f.fcs"
    file.write_text(PHASES)
    store(cache, load(file), "one", ceiling=6000.0, fixed=FIXED)
    with pytest.raises(BudgetError, match=r"f\.fcs needs"):
        view.run([str(file)], "0.001gpuh", **OPTIONS, price=2.5, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["source"], answer["device"]) == ("measured", "NVIDIA A100-SXM4-80GB")
    (row,) = answer["schedules"]
    contract = "schedule epochs gpu_hours gpu_hours_full speedup epochs_in_budget fits"
    assert set(contract.split()) <= row.keys() and not row["fits"]
    assert row["price"] == pytest.approx(2.5 * row["gpu_hours"])
    assert row["hours"] == pytest.approx(row["gpu_hours"] / 8)
    assert row["loader"] == {"images_per_s": 6000.0, "binds": 0}
    assert [s["steps"] for s in row["segments"]] == [60, 40]
    assert [s["loader_bound"] for s in row["segments"]] == [True, False]
    hours = sum(s["hours"] for s in row["segments"]) + row["overhead_hours"] / 8
    assert row["hours"] == pytest.approx(hours)


def test_the_answer_in_words(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cache / "f.fcs"
    file.write_text(PHASES)
    store(cache, load(file), "one", ceiling=6000.0, fixed=FIXED, lacking=True)
    (cache / "profiles" / "bad.json").write_text("{")
    view.run([str(file)], "100gpuh", **OPTIONS, price=None, as_json=False)
    text = capsys.readouterr().out
    for part in (
        "loader-bound, scaled",
        "at most 6,000 images/s: binds from segment 1 on",
        "start-up, epochs' first batches",
        "measured on NVIDIA A100-SXM4-80GB, bf16, on 2026-01-02",
        "8 devices taken to be 8 times as fast as 1",
        "bad.json: not JSON: left aside",
    ):
        assert part in text
