"""The plan against a walk through the data step by step."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from fractions import Fraction

import pytest

from fastcl_cli.config import Duration
from fastcl_cli.plan import Plan, Position
from fastcl_cli.schedule import ScheduleError, compile_text
from fastcl_cli.schedule.resolve import tokens_kept


def walk(phases: list[tuple[Fraction, int]], unit: str, images: int) -> list[tuple[int, int, int]]:
    """Every step as (epoch, offset, batch), taken one by one as the plan's docstring says."""
    steps = []
    epoch, offset = 0, 0
    for end, batch in phases:
        taken = 0
        while True:
            here = (epoch, offset) if images - offset >= batch else (epoch + 1, 0)
            if unit == "epochs" and here[0] + Fraction(here[1], images) >= end:
                break
            if unit == "steps" and len(steps) >= end:
                break
            steps.append((*here, batch))
            epoch, offset = here[0], here[1] + batch
            taken += 1
        assert taken
        if unit == "epochs" and epoch + Fraction(offset, images) < end:
            epoch, offset = divmod(-(-end.numerator * images // end.denominator), images)
    return steps


def build(phases: list[tuple[Fraction, int]], unit: str, images: int) -> Plan:
    start = Fraction(0)
    lines = [f"images {images}; warmup 0%; "]
    for end, batch in phases:
        lines.append(f"{unit} {float(start):g}-{float(end):g}: full batch {batch};")
        start = end
    return compile_text("".join(lines)).plan


@pytest.mark.parametrize("seed", range(60))
def test_positions_are_those_of_a_walk(seed: int) -> None:
    draw = random.Random(seed)
    images = draw.randint(3, 60)
    unit = draw.choice(["epochs", "steps"])
    phases: list[tuple[Fraction, int]] = []
    end = Fraction(0)
    for _ in range(draw.randint(1, 5)):
        part = Fraction(draw.randint(1, 12), 4) if unit == "epochs" else draw.randint(1, 30)
        end += part
        phases.append((end, draw.randint(1, images)))
    try:
        plan = build(phases, unit, images)
    except ScheduleError as error:
        assert "not one step" in error.details
        with pytest.raises(AssertionError):
            walk(phases, unit, images)
        return
    steps = walk(phases, unit, images)
    assert plan.steps == len(steps)
    used = 0
    for step, (epoch, offset, batch) in enumerate(steps):
        assert plan.position(step) == Position(epoch, offset)
        assert plan.at(step).batch == batch
        assert plan.images_at(step) == used
        assert plan.epochs_at(step) == epoch + offset / images
        used += batch
    assert plan.images_at(plan.steps) == used
    assert plan.epochs_at(plan.steps) == plan.epochs
    if unit == "epochs":
        # A whole number of epochs ends with the last one; else the last batch may reach further.
        assert end <= plan.epochs + 1e-9
        assert plan.epochs == end if end.denominator == 1 else plan.epochs < end + 1


def test_segments_follow_each_other() -> None:
    plan = compile_text("epochs 0-3: drop 0.75 -> 0.25 in 3 patch 56 -> 16; epochs 3-4: full;").plan
    assert plan.segments[0].first_step == 0
    for before, after in zip(plan.segments, plan.segments[1:], strict=False):
        assert before.end_step == after.first_step
        assert before.end == after.start
        assert plan.at(before.end_step - 1) is before
        assert plan.at(before.end_step) is after


def test_integer_steps_of_imagenet() -> None:
    plan = compile_text("batch 1024; epochs 0-60: drop 0.5 patch 32; epochs 60-100: full;").plan
    # 1,281,167 images are 1,251 whole batches of 1,024.
    assert [s.end_step for s in plan.segments] == [60 * 1251, 100 * 1251]
    assert plan.segments[1].position == Position(60, 0)
    assert plan.images_at(plan.steps) == 100 * 1251 * 1024


def test_a_batch_change_in_mid_epoch_uses_up_the_epoch() -> None:
    text = "images 100; warmup 0%; epochs 0-0.5: full batch 20; epochs 0.5-2: full batch 30;"
    plan = compile_text(text).plan
    places = [(p.epoch, p.offset) for p in map(plan.position, range(plan.steps))]
    assert places == [(0, 0), (0, 20), (0, 40), (0, 60), (1, 0), (1, 30), (1, 60)]


def test_per_cent_is_of_the_length() -> None:
    shares = compile_text("length 50 epochs; 0%-60%: drop 0.5; 60%-100%: full;").plan
    epochs = compile_text("epochs 0-30: drop 0.5; epochs 30-50: full;").plan
    assert shares.unit == "percent"
    assert shares.hash() == epochs.hash()
    assert [s.end_step for s in shares.segments] == [s.end_step for s in epochs.segments]


def test_stairs_of_a_ramp() -> None:
    plan = compile_text("steps 0-8: drop 0.75 -> 0 in 4; steps 8-12: patch 56 -> 16;").plan
    drops = [(s.online.drop, s.online.patch, s.first_step, s.end_step) for s in plan.segments]
    assert drops == [
        (Fraction(3, 4), 16, 0, 2),
        (Fraction(1, 2), 16, 2, 4),
        (Fraction(1, 4), 16, 4, 6),
        (Fraction(0), 16, 6, 8),
        (Fraction(0), 56, 8, 9),
        (Fraction(0), 32, 9, 10),
        (Fraction(0), 28, 10, 11),
        (Fraction(0), 16, 11, 12),
    ]


def test_two_ramps_in_a_phase_keep_their_own_stairs() -> None:
    plan = compile_text("steps 0-12: drop 0.5 -> 0 in 3 patch 28 -> 16;").plan
    stairs = [(s.online.drop, s.online.patch, s.end_step) for s in plan.segments]
    assert stairs == [
        (Fraction(1, 2), 28, 4),
        (Fraction(1, 4), 28, 6),
        (Fraction(1, 4), 16, 8),
        (Fraction(0), 16, 12),
    ]


@pytest.mark.parametrize(
    ("clauses", "online", "target"),
    [
        ("drop 0.5", (98, 14), (196, 14)),
        ("drop 0.5 on target", (196, 14), (98, 14)),
        ("drop 0.5 on both", (98, 14), (98, 14)),
        ("drop 0.5 drop 0.25 on target", (98, 14), (147, 14)),
        ("patch 32", (49, 7), (49, 7)),
        ("patch 32 on online", (49, 7), (196, 14)),
        ("patch 32 on target patch 28 on online", (64, 8), (49, 7)),
        ("drop 50% patch 32", (25, 7), (49, 7)),
        ("full", (196, 14), (196, 14)),
    ],
)
def test_sides(clauses: str, online: tuple[int, int], target: tuple[int, int]) -> None:
    (segment,) = compile_text(f"epochs 0-100: {clauses};").plan.segments
    (view,) = segment.views
    assert (view.online.kept, view.online.grid) == online
    assert view.target is not None
    assert (view.target.kept, view.target.grid) == target


def test_simclr_has_no_target() -> None:
    plan = compile_text("method simclr; epochs 0-100: drop 0.5 patch 32;").plan
    assert plan.segments[0].target is None
    assert plan.segments[0].views[0].target is None
    assert plan.to_json()["segments"][0]["target"] is None


@pytest.mark.parametrize(
    ("side", "patch", "grid"),
    [(96, 16, 6), (96, 28, 3), (96, 32, 3), (96, 56, 2), (96, 112, 2), (98, 28, 4), (70, 28, 3)],
)
def test_grid_of_local_views(side: int, patch: int, grid: int) -> None:
    text = f"method dino; locals 8 {side}; epochs 0-100: drop 0.5 patch {patch};"
    _, local = compile_text(text).plan.segments[0].views
    assert local.online.grid == grid
    assert local.online.kept == max(1, (grid * grid + 1) // 2)
    assert local.target is None
    assert local.count == 8


@pytest.mark.parametrize("length", [49, 64, 100, 144, 196, 225])
def test_tokens_kept_at_every_hundredth(length: int) -> None:
    for hundredths in range(100):
        # Round half up of length·(100 - h)/100, in whole numbers.
        exact = (2 * length * (100 - hundredths) + 100) // 200
        assert tokens_kept(length, Fraction(hundredths, 100)) == max(1, exact)
        grid = {49: 32, 64: 28, 196: 16}.get(length)
        if grid is not None:
            text = f"warmup 0%; epochs 0-1: drop 0.{hundredths:02d} patch {grid};"
            assert compile_text(text).plan.segments[0].views[0].online.kept == max(1, exact)


def test_a_million_segments_answer_at_once() -> None:
    plan = compile_text("steps 0-10: full;").plan
    first = plan.segments[0]
    segments = tuple(replace(first, first_step=3 * i, end_step=3 * i + 3) for i in range(10**6))
    plan = replace(plan, segments=segments)
    plan.at(0)
    draw = random.Random(0)
    steps = [draw.randrange(plan.steps) for _ in range(10_000)]
    begin = time.process_time()
    found = [plan.at(step) for step in steps]
    each = (time.process_time() - begin) / len(steps)
    assert [s.first_step for s in found] == [step - step % 3 for step in steps]
    assert each < 50e-6


def test_mean_cost_is_weighted_by_images() -> None:
    text = "images 6400; warmup 0%; steps 0-90: drop 0.5 patch 32 batch 64; steps 90-100: full"
    plan = compile_text(text + " batch 640;").plan
    cheap, dear = (s.sample_cost for s in plan.segments)
    assert plan.mean_cost == pytest.approx((90 * 64 * cheap + 10 * 640 * dear) / (90 * 64 + 6400))
    assert plan.speedup == pytest.approx(1 / plan.mean_cost)
    assert dear == 1.0


def test_hash_is_of_what_is_trained() -> None:
    text = "images 1000; batch 100; warmup 0%; epochs 0-2: drop 0.5; epochs 2-4: full;"
    plan = compile_text(text).plan
    same = compile_text(text.replace("0.5", "50%") + " # comment").plan
    assert plan.hash() == same.hash()
    changed = [
        "0.5|0.49",
        "1000|1001",
        "batch 100|batch 99",
        "0-2|0-1|2-4|1-4",
        "drop|patch 32 drop",
    ]
    hashes = {plan.hash()}
    for change in changed:
        old, new, *more = change.split("|")
        other = text.replace(old, new)
        if more:
            other = other.replace(*more)
        hashes.add(compile_text(other).plan.hash())
    assert len(hashes) == len(changed) + 1


def test_durations_become_epochs() -> None:
    plan = compile_text("images 1000; batch 100; warmup 0%; epochs 0-4: full;").plan
    assert plan.in_epochs(Duration(Fraction(3), "epochs")) == 3
    assert plan.in_epochs(Duration(Fraction(25), "percent")) == 1
    assert plan.in_epochs(Duration(Fraction(15), "steps")) == 1.5
    assert plan.in_epochs(Duration(Fraction(50), "steps")) == 5


def test_images_known_later_change_the_plan() -> None:
    loaded = compile_text("batch 100; warmup 0%; epochs 0-2: full;")
    assert loaded.config.images_source == "imagenet-1k"
    again = loaded.with_images(1000)
    assert (again.plan.steps, again.config.images_source) == (20, "data")
    with pytest.raises(ScheduleError, match=r"batch of 100 is larger than the 99 images"):
        loaded.with_images(99)
