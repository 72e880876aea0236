"""The built-in schedules keep what their first lines say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastcl_cli.errors import ConfigError
from fastcl_cli.schedule import load
from fastcl_cli.schedule.library import builtin_schedules, find

NAMES = list(builtin_schedules())


@pytest.mark.parametrize("name", NAMES)
def test_head_says_source_cost_and_command(name: str) -> None:
    loaded = load(name)
    assert not loaded.diagnostics
    head = loaded.text.split("\n\n")[0]
    assert re.search(r"^# Source: ", head, re.MULTILINE)
    assert re.search(rf"^# Run: fastcl run {name}\b", head, re.MULTILINE)
    cost = re.search(r"^# Cost: ([0-9.]+) of no compression \(([0-9.]+)x\)\.$", head, re.MULTILINE)
    assert cost is not None
    assert cost[1] == f"{loaded.plan.mean_cost:.3f}"
    assert cost[2] == f"{loaded.plan.speedup:.2f}"


@pytest.mark.parametrize(("method", "least"), [("moco", 4.0), ("simclr", 3.3), ("dino", 2.5)])
def test_three_schedules_for_each_method(method: str, least: float) -> None:
    full, opt, const = (load(f"{method}_{kind}").plan for kind in ("full", "opt", "const"))
    assert {plan.method for plan in (full, opt, const)} == {method}
    assert full.speedup == 1
    assert opt.speedup >= least
    costs = [segment.sample_cost for segment in opt.segments]
    assert costs == sorted(costs)
    assert costs[-1] == 1
    assert len(const.segments) == 1
    assert const.speedup > opt.speedup


def test_dino_opt_opens_with_the_phase_of_the_design() -> None:
    statements = [line for line in load("dino_opt").text.splitlines() if line[:1] not in ("#", "")]
    assert " ".join(statements[0].split()) == "epochs 0-60: drop 0.5 patch 32;"


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("moco_opt").plan.speedup > 4
    Path("moco_opt").write_text("epochs 0-50: full;")
    assert load("moco_opt").plan.speedup == 1


@pytest.mark.parametrize(
    ("name", "help"),
    [
        ("mocco_opt", "did you mean the built-in schedule `moco_opt`?"),
        ("schedules/dino_opts.fcs", "did you mean the built-in schedule `dino_opt`?"),
        ("zzz", "built in are: dino_const, dino_full"),
        ("x" * 5000, ""),
        ("a\x00b", ""),
    ],
)
def test_what_is_neither(
    name: str, help: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert caught.value.help.startswith(help)


def test_a_file_wins_over_a_built_in_schedule_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("moco_opt").mkdir()
    assert find("moco_opt") == builtin_schedules()["moco_opt"]
    Path("moco_opt").rmdir()
    Path("moco_opt").touch()
    assert find("moco_opt") == Path("moco_opt")
