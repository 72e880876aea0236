"""The screens of a run, drawn from events alone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fastcl_cli.events import CheckpointSaved, Notice, Packing, RunFinished, RunStarted, StepLogged
from fastcl_cli.gradient_error.estimators import GradientError
from fastcl_cli.schedule import compile_text
from fastcl_cli.ui import run_plain
from fastcl_cli.ui.plan_strip import strip
from fastcl_cli.ui.run_tui import Tui, sparkline
from fastcl_cli.ui.run_words import Forecast, closing, duration, opening

PLAN = compile_text("images 100; batch 10; epochs 0-6: drop 0.5 patch 32; epochs 6-10: full;").plan


def started() -> RunStarted:
    return RunStarted("name", Path("runs/x"), PLAN, 0, PLAN.steps, "a CPU", "float32", 1234, 100)


def logged(step: int, loss: float = 1.5, **more: object) -> StepLogged:
    segment = PLAN.at(step - 1).to_json()
    return StepLogged(
        {
            "step": step,
            "epoch": PLAN.epochs_at(step),
            "loss": loss,
            "lr": 1e-3,
            "images_per_s": 1234.5,
            "step_s": 0.02,
            "data_wait_s": 0.001,
            "sample_cost": segment["sample_cost"],
            "speedup": 3.21,
            "online": segment["online"],
            "target": segment["target"],
            **more,
        }
    )


EVENTS = [
    Packing(5, 100),
    Notice("resumed from there"),
    started(),
    logged(30, 2.5, knn={"top1": 0.5}, knn_s=2.5),
    CheckpointSaved(30, Path("step-00000030.safetensors")),
    logged(70, 1.25, knn={"top1": 0.8125}, knn_s=2.5),
]
AUTO = compile_text(
    "images 100; batch 10; choices drop 0 0.5 patch 16 32; epochs 0-6: auto; epochs 6-10: full;"
).plan
FINISHED = RunFinished(100, 100, 75.0, Path("runs/x"), "timm.create_model(...)")


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_panel_fits_its_terminal_and_says_what_matters(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    tui = Tui(console)
    for event in EVENTS:
        tui(event)
    capture = Console(file=io.StringIO(), width=width, color_system=None)
    capture.print(tui._panel())
    text = capture.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= width
    for part in (
        "70 of 100",
        "196 of 196 tokens",
        "1.2500",
        "data wait 5.0%",
        "3.21x",
        "checkpoint",
        "81.2%  ▁█",
    ):
        assert part in text


def test_plain_lines_say_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plain, "SECONDS_BETWEEN_LINES", 0.0)
    plain = run_plain.Plain()
    for event in [*EVENTS, FINISHED]:
        plain(event)
    text = capsys.readouterr().out
    assert "resumed from there" in text and "\x1b" not in text
    assert "-- online 25 of 49 tokens of 32 px, target 49 of 49 tokens of 32 px" in text
    assert "-- online 196 of 196 tokens of 16 px" in text
    assert "step 70/100" in text and "data wait 5.0%" in text
    assert text.count("k-NN 81.2%") == 1
    # What operations save is not called a speed: it is the cost, of the step that the line is of.
    assert f"cost {PLAN.segments[0].sample_cost:.3f} of full" in text and "speed-up" not in text
    assert "done after 100 steps in 1:15 min" in text and "timm.create_model" in text
    assert "not the whole schedule" not in text


def test_a_run_that_stops_early_says_what_is_left() -> None:
    lines = closing(replace(FINISHED, steps=1100))
    assert lines[-1] == (
        "not the whole schedule: 1,000 of its 1,100 steps are left; "
        "the same command goes on with `--resume auto --out runs/x`, without `--max-steps`"
    )


def test_plain_lines_are_not_more_than_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    plain = run_plain.Plain()
    plain(started())
    for step in range(1, PLAN.steps + 1):
        plain(logged(step))
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/100", "100/100"]


def test_plain_always_tells_an_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    plain = run_plain.Plain()
    plain(started())
    for step in range(1, 31):
        plain(logged(step, **({"knn": {"top1": step / 100}} if step % 10 == 0 else {})))
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("step ")]
    assert [line.split("k-NN ")[1].split()[0] for line in lines[1:]] == ["10.0%", "20.0%", "30.0%"]


def test_a_gradient_error_is_said_once_with_its_interval(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plain, "SECONDS_BETWEEN_LINES", 0.0)
    few = GradientError((0.5,), (8.0,), (2.0,), 32, 2).record(0.25, 64)
    # Means of -1 and 3, intervals of 1 +- 12.7062 * 2: t of one degree of freedom.
    more = GradientError((-1.0, 3.0), (8.0, 8.0), (2.0, 2.0), 32, 2).record(0.25, 64)
    plain = run_plain.Plain()
    plain(started())
    for step, error in enumerate((few, few, more, more), 1):
        plain(logged(step, grad_error=error))
    said = [s.strip() for s in capsys.readouterr().out.splitlines() if "gradient error" in s]
    assert said == [
        "gradient error: bias² 0.25, variance 4, CA-MSE 0.75 of ‖g‖² (1 group)",
        "gradient error: bias² 0.5±1e+01, variance 4±0, CA-MSE 1±1e+01 of ‖g‖² (2 groups)",
    ]


def test_strip_gives_each_segment_its_share_of_steps() -> None:
    text = strip(PLAN, 50, 0)
    assert len(text.plain) == 50
    assert "25 tok" in text.plain[:30] and "196 tok" in text.plain[30:]
    assert strip(PLAN, 50, PLAN.steps).plain[-1] == "▼"


def test_the_mark_cuts_no_label() -> None:
    """Wherever a run stands, each label is whole, or left out where there is no room beside it."""
    for step in range(PLAN.steps + 1):
        text = strip(PLAN, 50, step).plain
        assert len(text) == 50 and text.count("▼") == 1
        assert " 25 tok " in text and " 196 tok " in text, text
        assert "tok" not in strip(PLAN, 9, step).plain


def test_auto_phases_are_marked_on_the_strip_and_in_the_opening() -> None:
    text = strip(AUTO, 50, 0).plain
    assert "auto 25 tok" in text[:30] and " 196 tok" in text[30:] and text.count("auto") == 1
    assert "auto phases counted at their cheapest" in opening(replace(started(), plan=AUTO))[-1]
    assert "auto" not in " ".join(opening(started()))


def test_sparkline_spans_the_range_of_its_values() -> None:
    assert sparkline([0.0, 7.0], 10) == "▁█"
    assert sparkline([1.0] * 8, 4) == "▁▁▁▁"
    assert len(sparkline([float(i) for i in range(1000)], 30)) == 30
    assert sparkline([], 10) == ""


def test_forecast_follows_the_cost_that_is_left() -> None:
    """30 cheap steps in 3 s; what is left costs so much more, and so takes so much longer."""
    forecast = Forecast(PLAN, PLAN.steps)
    assert forecast.seconds_left() is None
    forecast.take({"step": 10, "step_s": 9.0})  # compiling
    assert forecast.seconds_left() is None
    forecast.take({"step": 20, "step_s": 0.1, "knn_s": 50.0})  # at the side
    forecast.take({"step": 40, "step_s": 0.05, "grad_error_s": 1.0})
    cheap, full = (s.sample_cost for s in PLAN.segments)
    expected = 3.0 / (30 * cheap) * (20 * cheap + 40 * full)
    assert forecast.seconds_left() == pytest.approx(expected)


STEPS = compile_text(
    "images 100; batch 10; epochs 0-4: drop 0.5 patch 32; epochs 4-8: drop 0.5; epochs 8-10: full;"
    "epochs 10-11: drop 0.5;"
).plan


def forecast_of(*lines: tuple[int, float]) -> Forecast:
    """A forecast that has seen ``lines``: a step, and the seconds of each since the line before."""
    forecast = Forecast(STEPS, STEPS.steps)
    for step, seconds in lines:
        forecast.take({"step": step, "step_s": seconds})
    return forecast


def test_forecast_takes_what_steps_of_the_same_cost_took_and_a_line_for_others() -> None:
    """Where 0.3 s of a step do not depend on its tokens, what is left is right once two phases have
    been seen, and a phase's own steps say more of it than the line."""
    cheap, middle, full = (0.3 + s.sample_cost for s in STEPS.segments[:3])
    seen = [(10, 9.0), (20, cheap), (40, cheap), (50, middle)]
    expected = 40 * middle + 20 * full
    assert forecast_of(*seen).seconds_left() == pytest.approx(expected)
    beyond = [*seen, (80, middle), (90, 7.0)]
    assert forecast_of(*beyond).seconds_left() == pytest.approx(10 * 7.0 + 10 * middle)


def test_forecast_stays_between_no_slope_and_no_intercept() -> None:
    """Noise must not say that a step takes less the more it costs, or that the work which does not
    depend on tokens takes less than none."""
    falling = forecast_of((10, 9.0), (40, 1.0), (80, 0.5))
    assert falling.seconds_left() == pytest.approx(20 * 0.5 + 10 * 0.5)
    steep = forecast_of((10, 9.0), (40, 0.001), (80, 0.5))
    middle, full = (s.sample_cost for s in STEPS.segments[1:3])
    assert steep.seconds_left() == pytest.approx(20 * 0.5 * full / middle + 10 * 0.5)


def test_durations_in_words() -> None:
    assert [duration(s) for s in (5, 75, 3700, 200000)] == ["5 s", "1:15 min", "1:01 h", "2.3 d"]
