"""Runs with `auto` phases on the digits: what they decide, that they repeat it, what they leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import rewrite
from test_run import CLOCK, metrics, run, weights, without_clock

from fastcl_cli.errors import CheckpointError, RequeueError
from fastcl_cli.events import Decided, Event, Measuring
from fastcl_cli.gradient_error.choose import Choice
from fastcl_cli.schedule import Request, compile_text, load
from fastcl_cli.schedule.resolve import ladder
from fastcl_cli.train.auto import Neighbours, words
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session

SCHEDULE = """
method moco; data digits; image 32; batch 250; lr 1e-3; warmup 1 epochs; head 64 32;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
precision float32; knn none; gradient_error 2 steps;
choices drop 0 0.5 patch 8 16;
epochs 0-1: auto;
epochs 1-2: full;
"""
AUTO = 4
"""Steps that are `auto`: a decision before each but the first."""


@dataclass(frozen=True, slots=True)
class Greedy(Neighbours):
    """Moves to the neighbour with the least CA-MSE, however uncertain: so short a run has no sure
    difference, and what is tested here is what follows from a move."""

    groups: int = 4
    pairs: int = 2

    def choose(
        self, current: int, ca_mse: Mapping[int, Sequence[float]], names: Sequence[str]
    ) -> Choice:
        best = min(ca_mse, key=lambda rung: sum(ca_mse[rung]))
        return Choice(best, "least" if best != current else "")


def train(out: Path, text: str = SCHEDULE, **options: Any) -> list[Event]:
    options = {"policy": Greedy.of, "log_every": 1, "save_every": 3, **options}
    return run(out, text, **options)


def decisions(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "decisions.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(out)
    return out


def test_a_decision_is_recorded_with_what_it_was_made_from(whole: Path) -> None:
    loaded = compile_text(SCHEDULE, "test.fcs", Request())
    names = [words(rung) for rung in ladder(loaded.config, 250)]
    lines = decisions(whole)
    assert [line["step"] for line in lines] == list(range(1, AUTO))
    current = names[0]
    for line in lines:
        assert line["from"] == current
        near = names.index(current)
        measured = [f"drop {row['drop']} patch {row['patch']}" for row in line["settings"]]
        assert measured == names[max(0, near - 1) : near + 3]
        best = min(line["settings"], key=lambda row: row["ca_mse"])
        assert line["to"] in (current, f"drop {best['drop']} patch {best['patch']}")
        assert bool(line["why"]) == (line["to"] != current)
        current = line["to"]
    assert len({line["to"] for line in lines}) > 1, "nothing moved: the test says nothing"


def test_the_plan_that_is_kept_is_the_one_that_was_taken(whole: Path) -> None:
    plan = json.loads((whole / "plan.json").read_text())
    at = {s["first_step"]: s["online"] for s in plan["segments"]}
    for line in metrics(whole):
        first = max(step for step in at if step < line["step"])
        assert line["online"] == at[first], line["step"]


def test_the_plain_schedule_trains_the_same_network(whole: Path, tmp_path: Path) -> None:
    """What the closed loop took, run as a schedule without `auto`, gives the same bytes."""
    text = (whole / "taken.fcs").read_text()
    assert "auto;" not in text.split("\n\n", 1)[1]
    run(tmp_path / "plain", text, log_every=1)
    assert weights(tmp_path / "plain") == weights(whole)
    plan = json.loads((whole / "plan.json").read_text())
    assert load(whole / "taken.fcs").plan.hash() == plan["hash"]


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_resumed_run_makes_the_same_moves(whole: Path, tmp_path: Path, step: int) -> None:
    train(tmp_path / "run", max_steps=step)
    train(tmp_path / "run", resume="auto")
    assert weights(tmp_path / "run") == weights(whole)
    assert decisions(tmp_path / "run") == decisions(whole)
    assert without_clock(metrics(tmp_path / "run")) == without_clock(metrics(whole))
    assert (tmp_path / "run" / "taken.fcs").read_text() == (whole / "taken.fcs").read_text()


def test_a_signal_while_gradients_are_measured(whole: Path, tmp_path: Path) -> None:
    """Nothing of the decision is kept; it is made again."""
    out = tmp_path / "run"
    measured: list[int] = []

    def emit(event: Event) -> None:
        if isinstance(event, Measuring):
            measured.append(event.done)
            if len(measured) == 12:
                os.kill(os.getpid(), signal.SIGTERM)

    request = RunRequest(
        compile_text(SCHEDULE, "test.fcs", Request()),
        out,
        log_every=1,
        save_every=3,
        policy=Greedy.of,
    )
    with pytest.raises(RequeueError):
        Session(request, emit).train()
    assert len(measured) == 12, "it went on measuring"
    train(out, resume="auto")
    assert weights(out) == weights(whole) and decisions(out) == decisions(whole)


def test_estimating_the_error_moves_nothing(whole: Path, tmp_path: Path) -> None:
    plain = (whole / "taken.fcs").read_text()
    run(
        tmp_path / "none",
        plain.replace("gradient_error 2 steps", "gradient_error none"),
        log_every=1,
    )
    assert weights(tmp_path / "none") == weights(whole)
    quiet, measured = metrics(tmp_path / "none"), metrics(whole)
    error = {"grad_error", "grad_error_s"}
    assert all(not error & line.keys() for line in quiet)
    rest = [{k: v for k, v in line.items() if k not in CLOCK | error} for line in measured]
    assert rest == without_clock(quiet)


def test_the_estimate_is_of_the_setting_that_trains(whole: Path) -> None:
    """A setting's groups are counted from its first measurement on; `full` has no bias."""
    lines = metrics(whole)
    assert any(line["grad_error"] for line in lines)
    last = lines[-1]["grad_error"]
    assert (last["bias2"], last["batch"], last["cost"]) == (0.0, 250, 1.0)
    steps = [line["step"] for line in lines if line["online"] == lines[-1]["online"]]
    expected = sum(step % 2 == 0 for step in steps)
    assert last["groups"] == expected and last["pairs"] == 2 * expected
    assert last["ca_mse"] == pytest.approx(last["variance"] * last["probe_batch"] / 250)


def test_another_rule_does_not_go_on_with_a_run(whole: Path, tmp_path: Path) -> None:
    checkpoint = whole / "checkpoints" / f"step-{6:08d}.safetensors"
    with pytest.raises(CheckpointError, match="auto's policy was Greedy"):
        run(tmp_path / "run", SCHEDULE, resume=str(checkpoint))


@pytest.mark.parametrize(
    "state",
    [
        {"moves": [[2, 9]]},
        {"moves": [[6, 0]]},
        {"moves": [["2", 0]]},
        {"moves": [3]},
        {"costs": [1.0]},
        {"costs": "abcd"},
    ],
)
def test_a_header_with_other_moves_is_refused(
    whole: Path, tmp_path: Path, state: dict[str, Any]
) -> None:
    newest = tmp_path / "damaged.safetensors"
    shutil.copy(whole / "checkpoints" / f"step-{6:08d}.safetensors", newest)
    rewrite(newest, lambda tensors, header: header["run"]["auto"].update(state))
    with pytest.raises(CheckpointError, match="measurements are not of this run"):
        train(tmp_path / "run", resume=str(newest))


TWO = SCHEDULE.replace("epochs 1-2: full;", "epochs 1-2: auto batch 500;")


def test_a_phase_that_follows_directly_starts_where_the_one_before_ended(tmp_path: Path) -> None:
    events = train(tmp_path / "run", TWO, log_every=1)
    lines = {line["step"]: line for line in metrics(tmp_path / "run")}
    decided = {e.step: e.setting for e in events if isinstance(e, Decided)}
    assert lines[AUTO]["batch"] == 250 and lines[AUTO + 1]["batch"] == 500
    at_end = next(decided[s] for s in range(AUTO, 0, -1) if s in decided)
    first = lines[AUTO + 1]["online"]
    assert f"drop {first['drop']:g} patch {first['patch']}" == decided.get(AUTO, at_end)


def test_the_rule_of_auto_phases_counts_their_steps_alone() -> None:
    plan = compile_text(SCHEDULE, "test.fcs", Request()).plan
    rule = Neighbours.of(plan)
    assert rule.interval == 1
    assert not rule.due(0, plan) and not rule.due(AUTO, plan) and rule.due(AUTO - 1, plan)
