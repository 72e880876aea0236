"""validate, fmt and estimate as a user meets them: output, exit status, no traceback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastcl_cli import __version__
from fastcl_cli.cli.main import _run
from fastcl_cli.schedule.diagnostics import CODES
from fastcl_cli.schedule.library import builtin_schedules

GOOD = "epochs 0-60: drop 0.5 patch 32; epochs 60-100: full;\n"
WARN = "batch 64; epochs 0-100: full;\n"
BAD = "epochs 0-100: patch 24;\nbacth 5;\n"


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = _run(list(arguments), debug=False)
        captured = self.capsys.readouterr()
        return status, captured.out, captured.err

    def json(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        status, out, _ = self(*arguments, "--json")
        assert out.count("\n") == 1
        value: dict[str, Any] = json.loads(out)
        assert value["schema_version"] == 1
        return status, value


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    for name, text in (("good", GOOD), ("warn", WARN), ("bad", BAD)):
        Path(f"{name}.fcs").write_text(text)
    return Cli(capsys)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["good.fcs"], 0),
        (["dino_opt"], 0),
        (["warn.fcs"], 0),
        (["warn.fcs", "--strict"], 1),
        (["good.fcs", "--strict"], 0),
        (["bad.fcs"], 1),
        (["good.fcs", "bad.fcs"], 1),
        (["good.fcs", "missing.fcs"], 2),
        (["."], 2),
        ([], 2),
        (["good.fcs", "--images", "10"], 1),
        (["good.fcs", "--set", "batch=0"], 1),
        (["good.fcs", "--set", "bacth=5"], 2),
        (["good.fcs", "--frob"], 2),
        (["good.fcs", "--format", "xml"], 2),
        (["--explain", "fcs012"], 0),
        (["--explain", "FCS999"], 2),
    ],
)
@pytest.mark.parametrize("form", ["text", "json", "github", "sarif"])
def test_exit_status_in_every_form(cli: Cli, arguments: list[str], status: int, form: str) -> None:
    extra = [] if "--format" in arguments else ["--format", form]
    found, out, err = cli("validate", *arguments, *extra)
    assert found == status
    assert "Traceback" not in out + err
    if status == 2:
        assert not out
        assert err.startswith("error: ")
        assert len(err.splitlines()) <= 2
    else:
        assert not err
        if form in ("json", "sarif") and "--explain" not in arguments:
            json.loads(out)


def test_json_of_a_plan(cli: Cli) -> None:
    status, value = cli.json("validate", "good.fcs", "--set", "method=dino")
    (file,) = value["files"]
    assert (status, file["file"], file["valid"], file["diagnostics"]) == (0, "good.fcs", True, [])
    plan = file["plan"]
    assert (plan["unit"], plan["total"], plan["steps"]) == ("epochs", 100, 125_100)
    first = plan["segments"][0]
    assert (first["start"], first["end"], first["first_step"], first["end_step"]) == (
        0,
        60,
        0,
        75060,
    )
    assert first["online"] == {"drop": 0.5, "patch": 32, "grid": 7, "tokens": 25}
    assert first["target"] == {"drop": 0, "patch": 32, "grid": 7, "tokens": 49}
    assert first["views"] == [
        {"name": "global", "count": 2, "side": 224, "grid": 7, "tokens": 25},
        {"name": "local", "count": 8, "side": 96, "grid": 3, "tokens": 5},
    ]
    costs = [segment["sample_cost"] for segment in plan["segments"]]
    assert costs[1] == 1
    assert plan["mean_cost"] == pytest.approx(0.6 * costs[0] + 0.4)
    assert plan["speedup"] == pytest.approx(1 / plan["mean_cost"])


AUTO = (
    "choices drop 0 0.5 patch 16 32; "
    "epochs 0-60: drop 0.5; epochs 60-90: auto; epochs 90-100: full;"
)


def test_auto_phases_are_shown_as_such(cli: Cli) -> None:
    """Counted at the cheapest choice, said to be, and no reason to fail --strict."""
    Path("auto.fcs").write_text(AUTO)
    status, value = cli.json("validate", "auto.fcs", "--strict")
    (file,) = value["files"]
    assert (status, file["diagnostics"]) == (0, [])
    segments = file["plan"]["segments"]
    assert [segment["auto"] for segment in segments] == [False, True, False]
    assert segments[1]["online"] == {"drop": 0.5, "patch": 32, "grid": 7, "tokens": 25}
    assert segments[1]["target"] == {"drop": 0, "patch": 32, "grid": 7, "tokens": 49}
    costs = [segment["sample_cost"] for segment in segments]
    assert file["plan"]["mean_cost"] == pytest.approx(0.6 * costs[0] + 0.3 * costs[1] + 0.1)
    status, out, _ = cli("validate", "auto.fcs")
    assert "auto: drop 0.5 patch 32: 25/49" in out
    assert "counted here at the cheapest choice" in out
    strip = next(line for line in out.splitlines() if "~" in line).strip()
    assert 0.25 < strip.count("~") / len(strip) < 0.35
    _, out, _ = cli("validate", "good.fcs")
    assert "auto" not in out
    assert "~" not in out


def test_estimates_say_how_auto_phases_are_counted(cli: Cli) -> None:
    Path("auto.fcs").write_text(AUTO)
    Path("fixed.fcs").write_text(AUTO.partition("; ")[2].replace("auto", "drop 0.5 patch 32"))
    arguments = ("--budget", "9gpuh", "--gpu", "a100")
    _, auto = cli.json("estimate", "auto.fcs", *arguments)
    _, fixed = cli.json("estimate", "fixed.fcs", *arguments)
    assert auto["schedules"][0]["gpu_hours"] == fixed["schedules"][0]["gpu_hours"]
    assert [line for line in auto["assumptions"] if "auto" in line] == [
        "auto phases counted at their cheapest choice: they decide while they run"
    ]
    assert not [line for line in fixed["assumptions"] if "auto" in line]
    status, _, _ = cli("estimate", "auto.fcs", *arguments, "--write", "out.fcs")
    assert status == 0
    text = Path("out.fcs").read_text()
    assert "auto phases at their cheapest" in text.partition("\n")[0]
    assert "choices drop 0 0.5 patch 16 32;" in text
    assert cli("validate", "out.fcs")[0] == 0


def test_json_of_faults(cli: Cli) -> None:
    status, value = cli.json("validate", "bad.fcs", "warn.fcs")
    bad, warn = value["files"]
    assert status == 1
    assert (bad["valid"], bad["plan"]) == (False, None)
    assert bad["diagnostics"][0] == {
        "code": "FCS012",
        "severity": "error",
        "line": 1,
        "column": 21,
        "message": "patch 24 does not divide 224",
        "help": "use 16, 28, 32, 56, or image 240",
    }
    assert [d["code"] for d in bad["diagnostics"]] == ["FCS012", "FCS007"]
    assert [(d["code"], d["severity"]) for d in warn["diagnostics"]] == [("FCS104", "warning")]
    assert warn["plan"] is not None


def test_text_shows_carets_and_the_plan(cli: Cli) -> None:
    _, out, _ = cli("validate", "bad.fcs", "good.fcs")
    assert "bad.fcs:1:21: error[FCS012]: patch 24 does not divide 224\n" in out
    assert " 1 | epochs 0-100: patch 24;\n   |                     ^^\n" in out
    assert "drop 0.5 patch 32: 25/49" in out
    assert "1,281,167 images (of ImageNet-1k, assumed)" in out
    assert "2.03x" in out
    assert "\x1b" not in out


def test_github_annotations(cli: Cli) -> None:
    _, out, _ = cli("validate", "bad.fcs", "--format", "github")
    assert out.splitlines()[0] == (
        "::error file=bad.fcs,line=1,col=21,title=FCS012::"
        "patch 24 does not divide 224: use 16, 28, 32, 56, or image 240"
    )


def test_sarif(cli: Cli) -> None:
    _, out, _ = cli("validate", "bad.fcs", "warn.fcs", "--format", "sarif")
    (run,) = json.loads(out)["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == set(CODES)
    levels = [(r["ruleId"], r["level"]) for r in run["results"]]
    assert levels == [("FCS012", "error"), ("FCS007", "error"), ("FCS104", "warning")]
    region = run["results"][0]["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 1, "startColumn": 21}


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(cli: Cli, code: str) -> None:
    status, out, _ = cli("validate", "--explain", code)
    assert status == 0
    assert out.startswith(code)
    assert len(out.splitlines()) >= 3


def test_standard_input(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    feed(BAD)
    status, value = cli.json("validate", "-")
    assert (status, value["files"][0]["file"]) == (1, "<stdin>")
    feed("epochs 0-1:full")
    assert cli("fmt", "-") == (0, "epochs 0-1: full;\n", "")


def test_fmt(cli: Cli) -> None:
    assert cli("fmt", "good.fcs", "--check")[0] == 1
    assert Path("good.fcs").read_text() == GOOD
    status, out, err = cli("fmt", "good.fcs", "warn.fcs")
    assert (status, out) == (0, "")
    assert err == "good.fcs: formatted\nwarn.fcs: formatted\n"
    assert Path("good.fcs").read_text() == (
        "epochs 0-60:   drop 0.5 patch 32;\nepochs 60-100: full;\n"
    )
    assert cli("fmt", "good.fcs", "--check") == (0, "", "")
    Path("broken.fcs").write_text("epochs 0-1 full;")
    status, _, err = cli("fmt", "broken.fcs")
    assert status == 2
    assert "FCS003" in err
    assert cli("fmt")[0] == 2


def test_estimate_lists_every_builtin(cli: Cli) -> None:
    status, value = cli.json("estimate", "--budget", "100gpuh", "--gpu", "a100")
    assert status == 0
    assert value["budget"] == {"text": "100gpuh", "gpu_hours": 100}
    assert value["source"] == "analytic"
    assert "312 TFLOP/s" in value["assumptions"][0]
    assert [row["schedule"] for row in value["schedules"]] == list(builtin_schedules())
    for row in value["schedules"]:
        assert row["speedup"] == pytest.approx(row["gpu_hours_full"] / row["gpu_hours"])
        assert row["fits"] == (row["gpu_hours"] <= 100)
    _, out, _ = cli("estimate", "--budget", "100gpuh", "--gpu", "a100")
    assert all(name in out for name in builtin_schedules())
    assert "40% assumed" in out


def test_estimate_without_a_budget_says_what_schedules_take(cli: Cli) -> None:
    """All that it says with one, less what is said of the budget."""
    for files in ([], ["good.fcs"]):
        _, with_budget = cli.json("estimate", *files, "--budget", "9999gpuh", "--gpu", "a100")
        status, value = cli.json("estimate", *files, "--gpu", "a100")
        assert (status, value["budget"]) == (0, None)
        for row, other in zip(value["schedules"], with_budget["schedules"], strict=True):
            assert row["fits"] is None and row["epochs_in_budget"] is None
            assert {**other, "fits": None, "epochs_in_budget": None} == row
    _, out, _ = cli("estimate", "good.fcs", "--gpu", "a100")
    assert "fits" not in out and "epochs in" not in out and "speed-up" in out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["good.fcs", "--budget", "1000gpuh"], 0),
        (["good.fcs", "--budget", "1gpuh"], 3),
        (["--budget", "1gpuh"], 0),
        (["bad.fcs", "--budget", "1gpuh"], 2),
        (["missing.fcs", "--budget", "1gpuh"], 2),
        (["good.fcs"], 0),
        (["good.fcs", "--write", "out.fcs"], 2),
        (["good.fcs", "--budget", "one"], 2),
        (["good.fcs", "--budget", "1gpuh", "--gpu", "abacus"], 2),
        (["good.fcs", "--budget", "1gpuh", "--gpus", "0"], 2),
        (["--budget", "1gpuh", "--write", "out.fcs"], 2),
        (["good.fcs", "--budget", "1gpuh", "--write", "warn.fcs"], 2),
        (["good.fcs", "--budget", "1gpuh", "--write", "no/such/out.fcs"], 2),
        (["good.fcs", "--budget", "5gpuh", "--write", "out.fcs"], 0),
    ],
)
def test_exit_status_of_estimate(cli: Cli, arguments: list[str], status: int) -> None:
    found, out, err = cli("estimate", *arguments)
    assert found == status
    assert "Traceback" not in out + err
    assert ("error: " in err) == (status != 0)


def test_written_schedules_fit(cli: Cli) -> None:
    assert cli("estimate", "dino_opt", "--budget", "5gpuh", "--write", "out.fcs")[0] == 0
    status, value = cli.json("estimate", "out.fcs", "--budget", "5gpuh")
    assert (status, value["schedules"][0]["fits"]) == (0, True)


def test_gpus_and_price(cli: Cli) -> None:
    arguments = ("estimate", "good.fcs", "--budget", "1gpud", "--gpus", "4", "--price", "2.5")
    _, value = cli.json(*arguments)
    (row,) = value["schedules"]
    assert row["hours"] == pytest.approx(row["gpu_hours"] / 4)
    assert row["price"] == pytest.approx(row["gpu_hours"] * 2.5)
    _, out, _ = cli(*arguments)
    assert "device time" in out and "time on 4" in out
    assert "price" in out


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version") == (0, f"fastcl {__version__}\n", "")
    for arguments in ([], ["-h"], ["--help"], ["validate", "-h"]):
        status, out, err = cli(*arguments)
        assert (status, err) == (0, "")
        assert "Usage: fastcl" in out
    status, out, err = cli("validat")
    assert (status, out) == (2, "")
    assert "validate" in err


def fastcl(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastcl_cli", *arguments]
    root = Path(__file__).resolve().parent.parent
    return subprocess.run(command, text=True, capture_output=True, cwd=root, **options)


def test_another_kind_of_file_does_not_flood_the_screen(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"setting_{number} 1;\n" for number in range(60)))
    result = fastcl("validate", str(other))
    assert result.returncode == 1 and result.stdout.count("error[") == 20
    faults = json.loads(fastcl("validate", str(other), "--format", "json").stdout)
    count = len(faults["files"][0]["diagnostics"])
    assert count >= 60
    assert f"{count - 20} more are not shown: is {other} a schedule?" in result.stdout


def test_debug_shows_the_traceback() -> None:
    plain = fastcl("validate", "missing.fcs")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("error: missing.fcs: no such file")
    assert "Traceback" in fastcl("validate", "missing.fcs", "--debug").stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    root = Path(__file__).resolve().parent.parent
    command = f"{sys.executable} -m fastcl_cli validate dino_opt dino_full --json | head -c 1"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=root
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "{", "")


def test_a_terminal_that_is_not_utf8_is_served() -> None:
    import os

    result = fastcl("validate", "dino_opt", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "mean sample cost" in result.stdout
