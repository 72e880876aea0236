"""k-NN during a run: it judges as `probe` does, at fixed steps, and leaves no trace in the run."""

from __future__ import annotations

from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_run import SCHEDULE, metrics, run, weights, without_clock
from tiny import spec

from fastcl_cli.config import Duration
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.pack import pack
from fastcl_cli.data.source import open_judging, open_split
from fastcl_cli.errors import DataError
from fastcl_cli.evaluate.probe import probe
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.events import Event, Notice
from fastcl_cli.plan import Plan
from fastcl_cli.schedule import Request, compile_text
from fastcl_cli.train import judge as judging
from fastcl_cli.train.device import Device
from fastcl_cli.train.judge import Judge, Subset
from fastcl_cli.train.loop import Meter
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session

CPU = Device(torch.device("cpu"), "float32", 1)


def judged(text: str) -> str:
    """The schedule of the other tests, judged that often."""
    return SCHEDULE.replace("knn none;", text)


def due(plan: Plan, value: str, unit: str) -> list[int]:
    every = Duration(Fraction(value), unit)  # type: ignore[arg-type]
    judge = Judge(plan, every, None, spec(), CPU)
    return [done for done in range(1, plan.steps + 1) if judge.due(done)]


def test_intervals_fall_on_fixed_steps_of_the_plan() -> None:
    """Two epochs of 7 steps (128 of 1,000 images, the rest of an epoch skipped), one of 10."""
    plan = compile_text(SCHEDULE, "test.fcs", Request()).plan
    assert due(plan, "1", "epochs") == [7, 14, 24]
    assert due(plan, "2", "epochs") == [14, 24]
    assert due(plan, "5", "steps") == [5, 10, 15, 20, 24]
    assert due(plan, "100", "percent") == [24]
    assert due(plan, "50", "percent") == [11, 24], "1.5 epochs: 4 x 128 are 500 images or more"
    assert due(plan, "0.5", "epochs") == [4, 7, 11, 14, 19, 24]
    assert due(plan, "40", "epochs") == [24], "the end is judged in any case"
    assert due(plan, "0.001", "epochs") == list(range(1, 25))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged") / "run"
    run(out, judged("knn 12 steps;"))
    return out


def test_judging_leaves_no_trace(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(whole)
    lines = metrics(whole)
    assert [line["step"] for line in lines if line.pop("knn", None)] == [12, 24]
    assert [line["step"] for line in lines if line.get("knn_s", 0) > 0] == [12, 24]
    assert without_clock(lines) == without_clock(metrics(tmp_path / "run"))


def test_a_resumed_run_is_judged_at_the_same_steps(whole: Path, tmp_path: Path) -> None:
    """Also where the first half was not to be judged at all: that is no other run."""
    run(tmp_path / "run", max_steps=8)
    run(tmp_path / "run", judged("knn 12 steps;"), resume="auto")
    assert weights(tmp_path / "run") == weights(whole)
    assert without_clock(metrics(tmp_path / "run")) == without_clock(metrics(whole))


def test_it_judges_as_probe_does(whole: Path) -> None:
    """On all of the digits, for there are fewer than the bounds."""
    train, val = open_split("digits", "train", announce=print), digits_val()
    (row,) = probe(whole / "backbone.safetensors", train, val, ProbeSettings(k=(20,))).results
    expected = {"top1": row.top1, "mean_class": row.mean_class}
    assert metrics(whole)[-1]["knn"] == {
        **expected,
        "k": 20,
        "temperature": 0.07,
        "bank": 1000,
        "queries": 797,
    }


def test_its_time_is_no_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """k-NN that takes a thousand seconds, by the clock that the lines are made with."""
    passed, ticks = [0.0], iter(range(10**6))

    def slow(self: Judge, *features: object) -> dict[str, object]:
        passed[0] += 1000.0
        return {}

    monkeypatch.setattr(judging, "extract", lambda *_, **__: [None])
    monkeypatch.setattr(Judge, "_vote", slow)
    monkeypatch.setattr(
        "fastcl_cli.train.loop.time.perf_counter", lambda: passed[0] + 1e-3 * next(ticks)
    )

    def lines() -> list[dict[str, float]]:
        run(tmp_path / "run", judged("knn 2 steps;"), max_steps=4, log_every=1, overwrite=True)
        return metrics(tmp_path / "run")

    logged = lines()
    assert [line.get("knn_s", 0.0) > 999 for line in logged] == [False, True] * 2
    assert max(max(line["step_s"], line["data_wait_s"]) for line in logged) < 1
    monkeypatch.setattr(Meter, "paused", lambda self: nullcontext())
    assert max(line["step_s"] for line in lines()) > 999, "the negative control"


def digits_val() -> Beton:
    return open_split("digits", "val", announce=print)


def test_subsets_are_fixed_by_the_seed_and_bounded() -> None:
    data = digits_val()
    one, same = (Subset.draw(data, 100, 0, "k-NN bank").rows for _ in range(2))
    assert np.array_equal(one, same) and len(set(one.tolist())) == 100
    assert (np.diff(one) > 0).all()
    assert not np.array_equal(one, Subset.draw(data, 100, 1, "k-NN bank").rows)
    assert not np.array_equal(one, Subset.draw(data, 100, 0, "k-NN queries").rows)
    assert np.array_equal(Subset.draw(data, 10**6, 0, "k-NN bank").rows, np.arange(797))


def opened(out: Path, text: str) -> tuple[tuple[Subset, Subset] | None, list[str]]:
    """What a run would be judged on, and what it says before it starts."""
    events: list[Event] = []
    request = RunRequest(compile_text(text, "test.fcs", Request()), out)
    judge = Session(request, events.append).judge
    notices = [event.text for event in events if isinstance(event, Notice)]
    return None if judge is None else judge._sets, notices


def test_bounds_hold_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "MAX_BANK", 15)
    monkeypatch.setattr(judging, "MAX_QUERIES", 50)
    sets, _ = opened(tmp_path / "run", judged(""))
    assert sets is not None
    bank, queries = sets
    assert (len(bank.rows), bank.data.images) == (15, 1000)
    assert (len(queries.rows), queries.data.images) == (50, 797)


@pytest.fixture(scope="module")
def betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("betons")
    for split in ("train", "val"):
        pack("digits", folder / f"{split}.beton", split=split)  # type: ignore[arg-type]
    return folder


def test_one_beton_holds_nothing_out(betons: Path, tmp_path: Path) -> None:
    """So there is no k-NN, which is said; `val` names another."""
    one = SCHEDULE.replace("data digits", f'data "{betons / "train.beton"}"')
    sets, (told,) = opened(tmp_path, one.replace("knn none;", ""))
    assert sets is None and "no k-NN" in told and "`val`" in told
    val = f'val "{betons / "val.beton"}";'
    sets, told_none = opened(tmp_path, one.replace("knn none;", val))
    assert sets is not None and told_none == []
    assert sets[1].data.path == betons / "val.beton" and len(sets[1].rows) == 797
    assert opened(tmp_path, one.replace("knn none;", "knn none;" + val)) == (None, [])


def test_val_that_cannot_judge_is_refused(betons: Path, tmp_path: Path) -> None:
    missing = judged(f'val "{tmp_path / "none.beton"}";')
    with pytest.raises(DataError, match=r"none\.beton"):
        opened(tmp_path / "run", missing)
    folder = tmp_path / "photos"
    (folder / "cats").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(folder / "cats" / "1.png")
    with pytest.raises(DataError, match="'cats' is not among the 10"):
        opened(tmp_path / "run", judged(f'val "{folder}";'))


def test_a_folder_judges_with_all_of_its_images(tmp_path: Path) -> None:
    """Labels are those of the training set's class names, not of the folder's own order."""
    data = open_split("digits", "train", announce=print)
    assert data.classes is not None
    for label in (7, 3):
        folder = tmp_path / "photos" / data.classes[label]
        folder.mkdir(parents=True)
        for shade in (0, 100, 200):
            Image.new("RGB", (32, 32), (shade,) * 3).save(folder / f"{shade}.png")
    val = open_judging(str(tmp_path / "photos"), data.classes, announce=print)
    assert val.labels is not None
    assert val.images == 6 and sorted(val.labels.tolist()) == [3, 3, 3, 7, 7, 7]
