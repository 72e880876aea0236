"""`auto` phases: the ladder, plans after moves, and the plain schedules that repeat them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import pairwise

import pytest

from fastcl_cli.config import METHODS, RunConfig
from fastcl_cli.plan import Compression, Plan, Rung, Segment
from fastcl_cli.schedule import Loaded, ScheduleError, check, compile_text
from fastcl_cli.schedule.load import Request
from fastcl_cli.schedule.resolve import ladder
from fastcl_cli.schedule.rewrite import formatted
from fastcl_cli.schedule.taken import taken_schedule
from fastcl_cli.train.schedules import Schedules

CHOICES = "choices drop 0 0.5 0.75 patch 16 28 32 56; "
SMALL = "image 48; model vit_tiny_patch16_224 (embed_dim=64, depth=2, num_heads=2); "


def rung_of(segment: Segment) -> Rung:
    return Rung(segment.online, segment.target, segment.views, segment.sample_cost)


@pytest.mark.parametrize("method", METHODS)
def test_the_ladder_is_the_fixed_phases_by_cost(method: str) -> None:
    """Each rung is what a phase with its clauses resolves to, and they are all there."""
    head = f"method {method}; images 5000; batch 300; warmup 0%; "
    config = compile_text(head + CHOICES + "epochs 0-1: auto;").config
    fixed = [
        compile_text(head + f"epochs 0-1: drop {drop} patch {patch} batch 250;").plan.segments[0]
        for drop in ("0", "0.5", "75%")
        for patch in (16, 28, 32, 56)
    ]
    rungs = ladder(config, 250)
    assert sorted(rungs, key=repr) == sorted((rung_of(segment) for segment in fixed), key=repr)
    costs = [rung.sample_cost for rung in rungs]
    assert costs == sorted(costs)
    assert costs[-1] == 1
    settings = [(rung.online, rung.target) for rung in rungs]
    assert settings == [(rung.online, rung.target) for rung in ladder(config, 17)]


def test_uncompressed_views_are_on_the_ladder_only_if_chosen() -> None:
    config = compile_text("choices drop 0 0.5 patch 32 56; epochs 0-100: auto;").config
    assert len(ladder(config, 64)) == 4
    assert ladder(config, 64)[-1].sample_cost < 1


def test_settings_of_equal_cost_have_an_order() -> None:
    """At one token per view, patch 112 or 224 and 0.9 or 0.95 dropped all cost the same."""
    text = "method simclr; choices drop 0.95 0.9 patch 224 112; epochs 0-100: auto;"
    rungs = ladder(compile_text(text).config, 64)
    assert len({rung.sample_cost for rung in rungs}) == 1
    settings = [(float(rung.online.drop), rung.online.patch) for rung in rungs]
    assert settings == [(0.9, 112), (0.9, 224), (0.95, 112), (0.95, 224)]


def test_an_auto_phase_is_planned_at_its_cheapest() -> None:
    text = CHOICES + "epochs 0-60: auto; epochs 60-90: auto batch 512; epochs 90-100: full;"
    loaded = compile_text(text)
    plan = loaded.plan
    assert [segment.auto for segment in plan.segments] == [True, True, False]
    assert [segment.to_json()["auto"] for segment in plan.segments] == [True, True, False]
    for segment in plan.segments[:2]:
        assert rung_of(segment) == ladder(loaded.config, segment.batch)[0]
    assert plan.segments[0].online == Compression(Fraction(3, 4), 56)
    fixed = text.replace(CHOICES, "").replace("auto", "drop 0.75 patch 56")
    assert plan.hash() == compile_text(fixed).plan.hash()
    assert plan.is_auto
    assert not compile_text(fixed).plan.is_auto


def test_choices_have_no_order_in_the_configuration() -> None:
    one = compile_text("choices drop 75% 0 0.5 patch 56 16; epochs 0-100: auto;").config
    two = compile_text("choices drop 0 50% 0.75 patch 16 56; epochs 0-100: auto;").config
    assert one == two
    assert one.to_json()["choices"] == {"drop": ["0", "1/2", "3/4"], "patch": [16, 56]}


@pytest.mark.parametrize(
    ("image", "model"),
    [(224, "vit_small_patch16_224"), (224, "vit_base_patch32_224"), (96, "vit_tiny_patch16_224")],
)
def test_the_choices_that_help_proposes_are_valid(image: int, model: str) -> None:
    text = f"image {image}; model {model}; epochs 0-100: auto;"
    (fault,) = check("f", text.encode()).diagnostics
    assert fault.code == "FCS028"
    proposed = fault.help.removeprefix("add `").removesuffix("`")
    assert check("f", (proposed + text).encode()).valid


def test_advice_on_compression_is_not_for_auto_phases() -> None:
    """4 of 16 tokens, after full sequences, with local views of 2 x 2: all measured, none guessed.
    Around it, compression still must not grow."""
    head = "method dino; " + CHOICES
    text = head + "epochs 0-50: full; epochs 50-60: auto; epochs 60-100: full;"
    assert check("f", text.encode()).diagnostics == ()
    text = head + "epochs 0-50: full; epochs 50-60: auto; epochs 60-100: drop 0.5;"
    assert [d.code for d in check("f", text.encode()).diagnostics] == ["FCS101"]
    text = head + "epochs 0-100: auto batch 8;"
    assert [d.code for d in check("f", text.encode()).diagnostics] == ["FCS104"]


@dataclass
class Case:
    """A random schedule with auto phases, and random moves: what each step then has."""

    loaded: Loaded
    moves: list[tuple[int, Rung]]
    expected: list[Rung]

    @property
    def plan(self) -> Plan:
        plan = self.loaded.plan
        for step, rung in self.moves:
            plan = plan.moved(step, rung)
        return plan


def phases(draw: random.Random, unit: str, images: int) -> Iterator[str]:
    count = draw.randint(1, 4)
    bounds = [Fraction(0)]
    for _ in range(count):
        part = draw.randint(4, 60) if unit == "steps" else Fraction(draw.randint(2, 14), 4)
        bounds.append(bounds[-1] + part)
    if unit == "%":
        # Two decimals, as a person writes shares: they fall where they fall.
        bounds = [round(Fraction(100) * bound / bounds[-1], 2) for bound in bounds]
    kinds = ["auto", "auto", "full", "drop 0.5 patch 24", "drop 0.75 -> 0 in 2"]
    chosen = [draw.choice(kinds) for _ in range(count)]
    chosen[draw.randrange(count)] = "auto"
    for (start, end), kind in zip(pairwise(map(float, bounds)), chosen, strict=True):
        own = f" batch {draw.randint(1, images)}" if draw.random() < 0.5 else ""
        if unit == "%":
            yield f"{start:g}%-{end:g}%: {kind}{own};"
        else:
            yield f"{unit} {start:g}-{end:g}: {kind}{own};"


@cache
def case(seed: int) -> Case | None:
    """None where a phase of the draw is shorter than a step."""
    draw = random.Random(seed)
    images = draw.randint(5, 200)
    unit = draw.choice(["epochs", "steps", "%"])
    text = [
        SMALL,
        f"method {draw.choice(METHODS)}; images {images}; batch {draw.randint(1, images)};",
        f"warmup {draw.choice(['1.5 epochs', '7 steps', '12.5%', '0%'])}; decay poly 2;",
        "choices drop 0 0.5 0.7 patch 16 24 48;",
        f"length {draw.choice(['1', '2.25', '7'])} epochs;" if unit == "%" else "",
        *phases(draw, unit, images),
    ]
    try:
        loaded = compile_text("\n".join(text))
    except ScheduleError as error:
        assert all(d.code in ("FCS024", "FCS102") for d in error.diagnostics), error.details
        return None
    plan = loaded.plan
    expected = [rung_of(plan.at(step)) for step in range(plan.steps)]
    moves = []
    auto = [step for step in range(plan.steps) if plan.at(step).auto]
    for _ in range(draw.randint(0, 8)):
        step = draw.choice(auto)
        segment = plan.at(step)
        rung = draw.choice(ladder(loaded.config, segment.batch))
        expected[step : segment.end_step] = [rung] * (segment.end_step - step)
        moves.append((step, rung))
    return Case(loaded, moves, expected)


SEEDS = [seed for seed in range(150) if case(seed) is not None]


def cases() -> Iterator[Case]:
    for seed in SEEDS:
        found = case(seed)
        assert found is not None
        yield found


def test_moves_change_what_they_should_and_nothing_else() -> None:
    for found in cases():
        first, plan = found.loaded.plan, found.plan
        assert [rung_of(plan.at(step)) for step in range(plan.steps)] == found.expected
        for step in range(plan.steps):
            before, after = first.at(step), plan.at(step)
            same = ("phase", "batch", "auto")
            assert [getattr(before, name) for name in same] == [
                getattr(after, name) for name in same
            ]
            assert first.position(step) == plan.position(step)
            assert first.images_at(step) == plan.images_at(step)
        assert (first.steps, first.end, first.total) == (plan.steps, plan.end, plan.total)


def test_segments_of_a_moved_plan_follow_each_other() -> None:
    for found in cases():
        first, plan = found.loaded.plan, found.plan
        segments = plan.segments
        assert (segments[0].first_step, segments[0].start) == (0, 0)
        assert (segments[-1].end_step, segments[-1].end) == (first.steps, first.segments[-1].end)
        for before, after in pairwise(segments):
            assert before.end_step == after.first_step > before.first_step
            assert before.end == after.start > before.start
            assert before.phase != after.phase or rung_of(before) != rung_of(after)


def test_a_plan_forgets_how_it_came_about() -> None:
    """The same settings at the same steps, reached by other moves, are the same plan."""
    for found in cases():
        plan = found.loaded.plan
        for step in range(plan.steps):
            if plan.at(step).auto:
                plan = plan.moved(step, found.expected[step])
        assert plan == found.plan
        assert plan.hash() == found.plan.hash()


def values(config: RunConfig, plan: Plan) -> list[object]:
    schedules = Schedules(config, plan, momentum_lead=1)
    return [schedules.at(step) for step in range(plan.steps)]


def test_the_plain_schedule_takes_the_same_steps() -> None:
    """Word for word: hash, views, place in the data, learning rate, weight decay, momentum."""
    fractional = 0
    for found in cases():
        config, plan = found.loaded.config, found.plan
        text = taken_schedule(found.loaded, plan, "runs/x")
        plain = compile_text(text)
        assert plain.plan.hash() == plan.hash()
        assert [rung_of(plain.plan.at(step)) for step in range(plan.steps)] == found.expected
        assert plain.plan.segments == tuple(
            replace(segment, auto=False, phase=again.phase)
            for segment, again in zip(plan.segments, plain.plan.segments, strict=True)
        )
        assert values(plain.config, plain.plan) == values(config, plan)
        assert plain.config == replace(config, choices=None)
        assert not plain.plan.is_auto
        assert formatted("f", text.encode()) == text
        fractional += any(segment.start.denominator > 4 for segment in plan.segments)
    assert len(SEEDS) > 80
    assert fractional > 25


def test_bounds_that_are_not_exact_give_other_steps() -> None:
    """The control of the test above: bounds of two decimals are not enough."""
    loaded = compile_text(f"images 400; batch 7; warmup 0%; {CHOICES} epochs 0-2: auto;")
    plan = loaded.plan.moved(40, ladder(loaded.config, 7)[3])
    text = taken_schedule(loaded, plan, "x")
    assert "epochs 0-0.7:" in text
    assert compile_text(text).plan.hash() == plan.hash()
    for near in ("0.68", "0.71"):
        other = text.replace("0-0.7:", f"0-{near}:").replace("0.7-2:", f"{near}-2:")
        assert compile_text(other).plan.hash() != plan.hash()


@pytest.mark.parametrize("head", ["epochs 0-7: auto;", "length 7 epochs; 0%-100%: auto;"])
def test_a_thousand_million_steps_have_exact_bounds(head: str) -> None:
    draw = random.Random(head)
    loaded = compile_text(f"images 142857142; batch 1; warmup 0%; {CHOICES} {head}")
    plan = loaded.plan
    rungs = ladder(loaded.config, 1)
    steps = [*sorted(draw.sample(range(plan.steps), 20)), plan.steps - 1]
    for step in steps:
        plan = plan.moved(step, draw.choice(rungs))
    assert compile_text(taken_schedule(loaded, plan, "x")).plan.hash() == plan.hash()


COMMENTED = """# head
choices drop 0 50% patch 16 32;  # dropped with its statement
# settings

batch 30; images 1000; warmup 10%;
epochs 0-2: drop 0.5; # one
# two
epochs 2-4: auto batch 70; # kept
epochs 4-6: drop 0.5 -> 0 in 3; # three
epochs 6-7.5: auto;
# end
"""

TAKEN = """# What the auto phases of runs/first took, of
# choices drop 0 50% patch 16 32;
# For 1,000 images these are the same steps.

# head
# settings

batch 40;
images 1000;
warmup 10%;
lr 1;
epochs 0-2:     drop 0.5;  # one
# two
epochs 2-3:     drop 0.5 patch 32 batch 70;  # kept
epochs 3-4:     full batch 70;
epochs 4-6:     drop 0.5 -> 0 in 3;  # three
epochs 6-6.4:   patch 32;
epochs 6.4-7.5: drop 0.5;
# end
"""


def test_comments_and_the_command_lines_settings_stay() -> None:
    loaded = compile_text(COMMENTED, request=Request(overrides=("batch=40 # no", "lr=1")))
    wide, narrow = ladder(loaded.config, 70), ladder(loaded.config, 40)
    settings = [(float(rung.online.drop), rung.online.patch) for rung in narrow]
    assert settings == [(0.5, 32), (0, 32), (0.5, 16), (0, 16)]
    plan = loaded.plan.moved(64, wide[3]).moved(128, narrow[1]).moved(138, narrow[2])
    text = taken_schedule(loaded, plan, "runs/first")
    assert text == TAKEN
    again = compile_text(text)
    assert again.plan.hash() == plan.hash()
    assert again.config == replace(loaded.config, choices=None)


def test_a_runs_name_stays_in_its_comment() -> None:
    loaded = compile_text("# a file of phases alone\nepochs 0-100: auto;", request=CHOOSE)
    text = taken_schedule(loaded, loaded.plan, "a\nepochs 0-1: full; \x1b")
    assert compile_text(text).plan.hash() == loaded.plan.hash()
    assert "# a file of phases alone\n" in text


CHOOSE = Request(overrides=("choices=drop 0 0.5 patch 16 32",))


@pytest.mark.parametrize("step", [-1, 10, 12, 20])
def test_only_auto_phases_move(step: int) -> None:
    loaded = compile_text(f"warmup 0%; {CHOICES} steps 0-10: auto; steps 10-20: full;")
    with pytest.raises(AssertionError):
        loaded.plan.moved(step, ladder(loaded.config, loaded.config.batch)[0])
