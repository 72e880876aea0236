"""The search for a schedule: its texts, and small real searches on the digits."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from fastcl_cli.cost import units_per_image
from fastcl_cli.errors import BudgetError, CheckpointError, RequeueError, UsageError
from fastcl_cli.events import Decided, Event, Measuring, Notice
from fastcl_cli.schedule import Loaded, Request, compile_text, load
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.search.off_policy import measure_checkpoints
from fastcl_cli.search.on_policy import SearchRequest, measuring_images, open_search, search
from fastcl_cli.search.texts import (
    default_grid,
    found_schedule,
    length_of,
    stage_bounds,
    stage_starts,
    stages_of,
    trial,
)
from fastcl_cli.ui import search as view
from fastcl_cli.units import Budget

BASE = """
# A small base.
method moco; data digits; image 32; batch 125; lr 1e-3; warmup 1 epochs; head 64 32;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
precision float32; knn none; gradient_error none;
epochs 0-4: full;
"""
GRID = "drop 0 0.5 patch 8 16"


def base(text: str = BASE, **request: Any) -> Loaded:
    return compile_text(text, "base.fcs", Request(**request))


def request(out: Path, **options: Any) -> SearchRequest:
    options = {"grid": GRID, "stages": 2, "groups": 4, "pairs": 2, "batch": 16, **options}
    return SearchRequest(base(), out, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "found.fcs"
    search(request(out), lambda event: None)
    return out


def test_the_default_grid_fits_the_model() -> None:
    assert default_grid(load("moco_full").config) == "drop 0 0.25 0.5 0.75 patch 16 28 32 56"
    quickstart = load("quickstart")
    assert default_grid(quickstart.config) == "drop 0 0.25 0.5 0.75 patch 4 8"
    for name in ("moco_full", "simclr_opt", "dino_const", "quickstart"):
        loaded = load(name)
        assert trial(loaded, None, length_of(loaded)).plan.segments[0].auto


def test_a_trial_keeps_the_settings_and_the_length() -> None:
    opt = load("moco_opt", overrides=["lr=3e-4"])
    tried = trial(opt, None, length_of(opt))
    assert tried.plan.steps == opt.plan.steps
    assert tried.config.lr.value == 3e-4
    without = ("choices",)
    a, b = tried.config.to_json(), opt.config.to_json()
    assert {k: v for k, v in a.items() if k not in without} == {
        k: v for k, v in b.items() if k not in without
    }


def test_a_shorter_trial_keeps_the_share_of_its_warmup() -> None:
    opt = load("moco_opt")
    short = trial(opt, None, length_of(opt) / 4)
    share = opt.plan.in_epochs(opt.config.warmup) / opt.plan.epochs
    assert short.plan.in_epochs(short.config.warmup) / short.plan.epochs == pytest.approx(
        share, abs=1e-3
    )


def test_the_base_may_say_what_to_try() -> None:
    text = BASE.replace("epochs 0-4: full", f"choices {GRID}; epochs 0-4: auto")
    tried = trial(base(text), None, Fraction(4))
    assert [str(d) for d in tried.config.choices.drop] == ["0", "1/2"]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"--grid .*patch 9"):
        trial(base(), "drop 0 patch 8 9", Fraction(4))


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_stages_are_equal_and_start_where_they_say(stages: int) -> None:
    plan = trial(base(), GRID, Fraction(4)).plan
    bounds, starts = stage_bounds(stages), stage_starts(plan, stages)
    assert (bounds[0], bounds[-1]) == (0, 100)
    assert all(abs(b - Fraction(100 * i, stages)) <= Fraction(1, 10**4)
               for i, b in enumerate(bounds))  # fmt: skip
    for bound, start in zip(bounds, starts, strict=False):
        place = float(bound) * 4 / 100
        assert plan.epochs_at(start) >= place - 1e-9
        assert start == 0 or plan.epochs_at(start - 1) < place


def test_more_stages_than_steps_are_refused() -> None:
    with pytest.raises(BudgetError, match="32 steps has no 33 stages"):
        stage_starts(trial(base(), GRID, Fraction(4)).plan, 33)


def record(to: str) -> dict[str, Any]:
    rows = []
    for number, (drop, patch) in enumerate([("0.5", 16), ("0", 16), ("0.5", 8), ("0", 8)]):
        figures = {"bias2": 0.1 * number, "variance": 2.0, "ca_mse": 0.3}
        rows.append({"drop": drop, "patch": patch, "cost": 0.25, **figures, "relative": figures})
    return {"to": to, "why": "because", "settings": rows}


def test_the_schedule_found_says_what_was_chosen_and_why() -> None:
    """Equal neighbours are one phase; the length and every other setting are the base's."""
    chosen = ["drop 0.5 patch 16", "drop 0.5 patch 16", "drop 0 patch 8"]
    stages = stages_of([record(to) for to in chosen], 3)
    loaded = base(overrides=("lr=2e-3",))
    text = found_schedule(loaded, stages, ["# Found."])
    assert text.startswith("# Found.\n#\n# 0%-33.3333%: drop 0.5 patch 16:\n# because\n")
    again = compile_text(text, "found.fcs", Request())
    phases = [(s.start, s.end, s.online.drop, s.online.patch) for s in again.plan.segments]
    cut = Fraction("66.6667")
    assert phases == [(0, cut, Fraction(1, 2), 16), (cut, 100, 0, 8)]
    assert again.config.lr.value == 2e-3 and again.plan.steps == loaded.plan.steps
    assert "66.6667%-100%: full;" in text
    marked = [line for line in text.splitlines() if line.endswith("<")]
    assert len(marked) == 3


def test_a_search_writes_a_schedule_that_runs_as_it_trained(found: Path) -> None:
    loaded = load(found)
    record = json.loads(found.with_suffix(".json").read_text())
    assert record["kind"] == "on-policy" and len(record["stages"]) == 2
    settings = [stage["setting"] for stage in record["stages"]]
    names = [
        f"drop {float(rung.online.drop):g} patch {rung.online.patch}"
        for rung in ladder(trial(base(), GRID, Fraction(4)).config, 125)
    ]
    ranks = [names.index(name) for name in settings]
    assert ranks == sorted(ranks), "cheaper than the stage before"
    for stage in record["stages"]:
        assert len(stage["settings"]) == 4
        assert all(row["groups"] == 4 and row["pairs"] == 8 for row in stage["settings"])
    assert loaded.plan.mean_cost == pytest.approx(record["mean_cost"])
    plan = json.loads((found.parent / "found.search" / "plan.json").read_text())
    assert loaded.plan.steps == plan["steps"]


def test_the_searchs_own_cost_is_what_it_did(found: Path) -> None:
    """16 pairs of 16 images, each once without compression and once for each other setting."""
    record = json.loads(found.with_suffix(".json").read_text())
    config = trial(base(), GRID, Fraction(4)).config
    unit = units_per_image(config, full_views(config))
    costs = [row["cost"] for row in record["stages"][0]["settings"]]
    assert max(costs) == 1.0
    expected = 2 * 8 * 16 * (1 + sum(c for c in costs if c < 1)) * unit
    assert record["cost"]["measuring_units"] == pytest.approx(expected)
    assert record["cost"]["training_units"] == pytest.approx(4000 * record["mean_cost"] * unit)


def test_an_interrupted_search_ends_as_one_that_was_not(found: Path, tmp_path: Path) -> None:
    import os
    import signal

    out = tmp_path / "found.fcs"
    seen: list[Event] = []

    def emit(event: Event) -> None:
        seen.append(event)
        decided = sum(isinstance(e, Decided) for e in seen)
        if decided == 1 and isinstance(event, Measuring):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RequeueError) as caught:
        search(request(out), emit)
    assert "same command" in caught.value.help
    assert not out.exists()
    search(request(out, resume="auto"), lambda event: None)

    def stages(path: Path) -> Any:
        record = json.loads(path.with_suffix(".json").read_text())
        return [{k: v for k, v in s.items() if k != "seconds"} for s in record["stages"]]

    assert stages(out) == stages(found)
    weights = [p.parent / "found.search" / "backbone.safetensors" for p in (out, found)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_budget_shortens_the_search(tmp_path: Path) -> None:
    config = trial(base(), GRID, Fraction(4)).config
    unit = units_per_image(config, full_views(config))
    measuring = 2 * measuring_images(config, 4, 2, 16)
    # One epoch without compression, and the measuring.
    amount = Fraction(round((1000 + measuring) * unit))
    budget = Budget("test", "units", amount)
    events: list[Event] = []
    session = open_search(request(tmp_path / "a.fcs", budget=budget), events.append)
    assert session.plan.epochs == pytest.approx(1.0, abs=2e-3)
    said = next(event.text for event in events if isinstance(event, Notice))
    assert f"{session.plan.epochs:g} of 4 epochs, which it pays for even if no stage" in said
    with pytest.raises(BudgetError, match="measuring 2 times takes"):
        open_search(
            request(tmp_path / "a.fcs", budget=Budget("test", "units", Fraction(1000))),
            lambda event: None,
        )


def test_checkpoints_are_measured_off_policy(found: Path) -> None:
    folder = found.parent / "found.search" / "checkpoints"
    paths = sorted(folder.iterdir())[-2:]
    options: dict[str, Any] = {"groups": 4, "pairs": 2, "batch": 16, "seed": 0}
    result = measure_checkpoints(
        base(), paths, GRID, metric="euclidean", emit=lambda event: None, **options
    )
    assert result["kind"] == "off-policy"
    assert [s["checkpoint"] for s in result["stages"]] == [str(p) for p in paths]
    assert all(len(s["settings"]) == 4 for s in result["stages"])
    first, second = (s["settings"][0]["bias2"] for s in result["stages"])
    assert first != second
    with pytest.raises(UsageError, match="100 updates"):
        measure_checkpoints(base(), paths, GRID, metric="adam", emit=lambda event: None, **options)
    other = base(BASE.replace("embed_dim=32", "embed_dim=48"))
    with pytest.raises(CheckpointError):
        measure_checkpoints(
            other, paths, GRID, metric="euclidean", emit=lambda event: None, **options
        )


def test_the_picture_shows_every_figure(found: Path) -> None:
    record = json.loads(found.with_suffix(".json").read_text())
    svg = view.picture(record)
    root = ET.fromstring(svg)
    text = "".join(root.itertext())
    for stage in record["stages"]:
        known = all(row["relative"]["ca_mse"] is not None for row in stage["settings"])
        for row in stage["settings"]:
            value = row["relative"]["ca_mse"] if known else row["ca_mse"]
            assert f"{value:.3g}" in text
    titles = [f"{name}" for name in ("CA-MSE", "bias²", "cost · variance · b/B")]
    assert all(text.count(title) >= 2 for title in titles)
