"""Timings of training steps: against a clock that tells known times, and on the digits."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastcl_cli.checkpoint import save_run
from fastcl_cli.cli.main import main
from fastcl_cli.cost import forward_flops
from fastcl_cli.data.loader import Decoded
from fastcl_cli.data.source import open_split
from fastcl_cli.errors import UsageError
from fastcl_cli.estimate.clocks import ProfileClock
from fastcl_cli.estimate.estimate import estimate
from fastcl_cli.estimate.profile import Fixed, Profile
from fastcl_cli.estimate.profile_file import read_profile
from fastcl_cli.events import Event, RunFinished
from fastcl_cli.plan import View
from fastcl_cli.schedule import Loaded, compile_text
from fastcl_cli.schedule.grid import to_measure
from fastcl_cli.train import bench as bench_module
from fastcl_cli.train import loop, session
from fastcl_cli.train.bench import Bench, BenchRequest
from fastcl_cli.train.loop import Meter
from fastcl_cli.train.memory import PeakMemory
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session
from fastcl_cli.train.step import StepResult, Trainer
from fastcl_cli.units import parse_budget

TINY = """
model vit_tiny_patch16_224 (embed_dim=16, depth=1, num_heads=2, patch_size=8);
image 32; batch 100; warmup 0%; precision float32;
"""
SCHEDULE = f"method moco; data digits; head 32 16; {TINY}"
PHASES = "epochs 0-2: drop 0.5 patch 16; epochs 2-5: drop 0.25 batch 50; epochs 5-8: full;"
START, LINE, SAVE = 11.0, 0.25, 3.0
FIRST, WAIT = 2.0, 0.125
COMPUTING = {2: 0.5, 12: 1.0, 16: 4.0}
"""Seconds of a step by the tokens that are kept."""


class Clock:
    """Tells the seconds that work was said to take."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps: list[int] = []  # tokens kept in each step so far

    def __call__(self) -> float:
        return self.now

    def after(self, work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:
            result = work(*arguments, **options)
            self.now += seconds
            return result

        return slow


class SlowLoader:
    """As `DecodedLoader`, by the clock: a stream's first batch takes longer than others."""

    clock: Clock

    def __init__(self, data: Any, side: int, workers: int) -> None:
        self.clock.now += START
        self._side = side

    @contextmanager
    def stream(
        self, indices: NDArray[np.int64], batch_size: int
    ) -> Generator[Iterator[Decoded], None, None]:
        def deliver() -> Iterator[Decoded]:
            pixels = torch.zeros(batch_size, self._side, self._side, 3, dtype=torch.uint8)
            for start in range(0, len(indices), batch_size):
                self.clock.now += WAIT if start else FIRST
                yield Decoded(pixels, torch.from_numpy(indices[start : start + batch_size]))

        yield deliver()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that trainer, loader, log lines and checkpoints go by."""
    clock = Clock()

    def step(self: Trainer, number: int, views: Sequence[View], batch: Any) -> StepResult:
        clock.steps.append(views[0].online.kept)
        clock.now += COMPUTING[views[0].online.kept]
        return StepResult(
            torch.tensor(1.0), torch.tensor(1.0), self.schedules.at(number), torch.eye(4), None
        )

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Meter, "line", clock.after(Meter.line, LINE))
    times = SimpleNamespace(perf_counter=clock, monotonic=clock)
    for module in (bench_module, session, loop):
        monkeypatch.setattr(module, "time", times)
    for module in (bench_module, session):
        monkeypatch.setattr(module, "save_run", clock.after(save_run, SAVE))
        monkeypatch.setattr(module, "DecodedLoader", type("Slow", (SlowLoader,), {"clock": clock}))
    return clock


def loaded(text: str = SCHEDULE + PHASES) -> Loaded:
    return compile_text(text, "test.fcs").with_images(1000)


def bench(item: Loaded, folder: Path, **options: Any) -> Profile:
    options = {"repetitions": 3, "seconds": 6.0, **options}
    request = BenchRequest(item.config, to_measure(item, None), scratch=folder, **options)
    data = None
    if item.config.data is not None:
        data = open_split(item.config.data, "train", announce=lambda text: None)
    return Bench(request, data).measure(lambda text: None, lambda done, total: None)


def test_a_profile_holds_the_times_that_the_clock_told(clock: Clock, tmp_path: Path) -> None:
    profile = bench(loaded(), tmp_path)
    found = {(m.setting.views[0].online.kept, m.setting.batch): m for m in profile.measured}
    assert set(found) == {(2, 100), (12, 50), (16, 100), (16, 50)}
    for (tokens, batch), one in found.items():
        step = 1000 * (COMPUTING[tokens] + WAIT)
        assert one.step_ms.median == one.step_ms.low == one.step_ms.high == pytest.approx(step)
        assert (one.wait_ms, one.log_ms) == pytest.approx((1000 * WAIT, 1000 * LINE))
        assert one.images_per_s == pytest.approx(1000 * batch / step)
        # Per image and without waiting; both batches have their own `full`.
        assert profile.sample_cost(one) == pytest.approx(COMPUTING[tokens] / COMPUTING[16])
        assert (
            one.flops == batch * forward_flops(loaded().config, one.setting.views, batch).training
        )
    assert profile.fixed == pytest.approx(Fixed(START, FIRST - WAIT, SAVE))
    assert profile.loader is not None
    assert profile.loader.images_per_s.median == pytest.approx(100 / WAIT)
    assert (profile.loader.side, profile.data, profile.images) == (32, "digits", 1000)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_timed_in_turn(clock: Clock, tmp_path: Path) -> None:
    """After two warm-ups of each, every round begins with another setting."""
    item = loaded(SCHEDULE + "epochs 0-1: drop 0.5 patch 16; epochs 1-2: full;")
    bench(item, tmp_path, repetitions=4)
    cheap, full = round(6 / 0.625), 3
    rounds = [2] * (cheap + 1) + [16] * (full + 1), [16] * (full + 1) + [2] * (cheap + 1)
    warm = [2] * (2 + 4) + [16] * (2 + 4)
    assert clock.steps == warm + (rounds[0] + rounds[1]) * 2


def test_the_estimate_is_what_a_run_takes(clock: Clock, tmp_path: Path) -> None:
    """By the same clock, to the second: 110 steps, 8 streams, 110 log lines, 22 checkpoints. What a
    run measures beside its training is no part of the estimate."""
    item = loaded("knn none; gradient_error none;" + SCHEDULE + PHASES)
    profile = bench(item, tmp_path)
    timing = ProfileClock(tmp_path / "p.json", profile)
    predicted = estimate(item, parse_budget("1gpuh"), timing, named=True)
    steps = 20 * COMPUTING[2] + 60 * COMPUTING[12] + 30 * COMPUTING[16]
    besides = START + 8 * FIRST + (110 - 8) * WAIT + 110 * LINE + 22 * SAVE
    assert predicted.gpu_hours * 3600 == pytest.approx(steps + besides)
    events: list[Event] = []
    Session(RunRequest(item, tmp_path / "run"), events.append).train()
    assert isinstance(events[-1], RunFinished)
    assert events[-1].seconds == pytest.approx(predicted.gpu_hours * 3600)


def test_what_does_not_fit_is_left_out_but_for_no_compression(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    too_large = {12}
    real_step = Trainer.step

    def step(self: Trainer, number: int, views: Sequence[View], batch: Any) -> StepResult:
        if views[0].online.kept in too_large:
            raise torch.OutOfMemoryError
        return real_step(self, number, views, batch)

    monkeypatch.setattr(Trainer, "step", step)
    item = loaded()
    request = BenchRequest(item.config, to_measure(item, None), 1, 1.0, tmp_path)
    data = open_split("digits", "train", announce=lambda text: None)
    profile = Bench(request, data).measure(lines.append, lambda done, total: None)
    assert [m.setting.views[0].online.kept for m in profile.measured] == [2, 16, 16]
    assert lines == ["does not fit into memory, left out: 12 of 16 tokens of 8 px, batch 50"]
    too_large.add(16)
    with pytest.raises(UsageError, match="does not fit into memory: 16 of 16") as caught:
        Bench(request, data).measure(lines.append, lambda done, total: None)
    assert caught.value.help.endswith("--set batch=25")


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_every_method_is_timed_without_data(method: str, tmp_path: Path) -> None:
    head = {"simclr": "head 32 16;", "dino": "locals 2 16; head 32 16 64;"}[method]
    item = loaded(f"method {method}; {head} {TINY} epochs 0-1: drop 0.5 patch 16;")
    profile = bench(item, tmp_path, repetitions=2, seconds=0.01)
    assert len(profile.measured) == 2 and profile.differences(item.config) == []
    assert (profile.data, profile.loader) == (None, None)
    assert all(m.step_ms.low > 0 and m.memory for m in profile.measured)


def test_peak_memory_is_of_the_work_since_the_reset() -> None:
    """A tensor of 400 MB is seen, and no more once it has gone."""
    peak = PeakMemory(torch.device("cpu"))
    peak.reset()
    before = peak.bytes()
    if before is None:
        pytest.skip("this system does not tell")
    big = torch.ones(100_000_000)
    during = peak.bytes()
    del big
    peak.reset()
    after = peak.bytes()
    assert during is not None and after is not None
    assert during - before > 350e6 and during - after > 350e6


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["fastcl", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = self._capsys.readouterr()
        return int(caught.value.code or 0), out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "test.fcs").write_text(SCHEDULE + PHASES)
    return Cli(capsys, monkeypatch)


def test_bench_then_estimate_on_the_digits(cli: Cli, tmp_path: Path) -> None:
    """The profile that a real, short bench leaves is found by the next estimate of this device."""
    options = ("--repetitions", "2", "--seconds", "0.05")
    status, out, err = cli("bench", "test.fcs", *options)
    assert status == 0, err
    (path,) = (tmp_path / "cache" / "profiles").iterdir()
    assert f"wrote {path}\nuse it:  fastcl estimate test.fcs\n" in out
    assert "loader alone:" in out
    profile = read_profile(path)
    status, out, err = cli("estimate", "test.fcs", "--budget", "1cpuh", "--json")
    assert status == 0, err
    answer = json.loads(out)
    assert (answer["source"], answer["device"]) == ("measured", profile.device)
    (row,) = answer["schedules"]
    steps = {(m.setting.views[0].online.kept, m.setting.batch): m.step_ms for m in profile.measured}
    for segment, key in zip(row["segments"], [(2, 100), (12, 50), (16, 100)], strict=True):
        assert segment["ms_per_step"] == pytest.approx(steps[key].median)
        assert segment["source"] == "measured"


def test_bench_of_a_grid_draws_its_heat_map(cli: Cli, tmp_path: Path) -> None:
    options = ("--repetitions", "1", "--seconds", "0.01", "--out", "deep/p.json", "--json")
    (tmp_path / "test.fcs").write_text(SCHEDULE.replace("data digits;", "") + PHASES)
    status, out, err = cli("bench", "test.fcs", "--grid", "drop 0 0.5 patch 8 16 32", *options)
    assert status == 0 and "synthetic images" in err
    answer = json.loads(out)
    assert answer["schema_version"] == 1 and answer["path"] == "deep/p.json"
    assert len(answer["settings"]) == 5  # of one token, none can be dropped
    svg = ElementTree.parse(tmp_path / "deep" / "p.svg")
    titles = [e.text for e in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 6
    costs = {
        (s["online"]["drop"], s["online"]["patch"]): s["sample_cost"] for s in answer["settings"]
    }
    assert costs[0, 8] == 1.0
    assert f"patch 16, drop 0.5: {costs[0.5, 16]:.3g}" in titles


def test_two_processes_measure_together(cli: Cli, tmp_path: Path) -> None:
    """In interpreters of their own; the profile is written once, and says how many shared it."""
    text = SCHEDULE.replace("data digits;", "") + "epochs 0-2: drop 0.5 patch 16;"
    (tmp_path / "two.fcs").write_text(text)
    options = ["--gpus", "2", "--repetitions", "1", "--seconds", "0.01", "--out", "p.json"]
    command = [sys.executable, "-m", "fastcl_cli", "bench", "two.fcs", *options]
    command += ["--set", "batch=50", "--set", "head=32 16"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote p.json") == result.stderr.count("no data:") == 1
    same = "--set batch=50 --set 'head=32 16' --gpus 2 --profile p.json"
    assert f"use it:  fastcl estimate two.fcs {same}\n" in result.stdout
    profile = read_profile(tmp_path / "p.json")
    assert profile.processes == 2 and len(profile.measured) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.fcs"], "no such file"),
        (["test.fcs", "--grid", "drop 2 patch 8"], "`drop` cannot be 2"),
        (["test.fcs", "--out", "p.txt"], "ends in .json"),
        (["test.fcs", "--out", "test.fcs/p.json"], "cannot be made"),
        (["test.fcs", "--data", "nowhere"], "no such file or folder"),
        (["test.fcs", "--set", "batch=2000"], "larger than"),
        (["test.fcs", "--repetitions", "0"], "repetitions"),
    ],
)
def test_bad_requests_are_refused_in_a_line(cli: Cli, arguments: list[str], said: str) -> None:
    status, out, err = cli("bench", *arguments)
    assert status == 2 and out == ""
    assert any(said in x for x in err.splitlines() if ": error" in x or x.startswith("error: "))
    assert "Traceback" not in err
