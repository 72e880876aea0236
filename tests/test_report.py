"""`fastcl report`: the page's numbers are those of the run's files, and it stands alone."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_cli_run import Cli
from test_imports import BLOCKED, PACKAGE
from test_watch import edit, edit_line, long

from fastcl_cli.report.again import command
from fastcl_cli.report.chart import ticks
from fastcl_cli.report.runs import Thinned, read_run
from fastcl_cli.train.request import RunRequest

SCHEDULE = """
method moco; data digits; image 32; batch 500; lr 1e-3; warmup 1 epochs; head 64 32;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
precision float32; knn none; gradient_error 2 steps;
choices drop 0.5 0 patch 16;
epochs 0-1: auto;
epochs 1-2: drop 0.5 patch 16;
epochs 2-4: full;
"""
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Tables by id, each a list of rows of cells: exact numbers where there are any, else text;
    and every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Any]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.code: list[str] = []
        self._rows: list[list[Any]] = []
        self._in: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "table":
            self._rows = self.tables.setdefault(str(given["id"]), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "data" and self._rows and self._in in ("td", "th"):
            self._rows[-1][-1] = float(str(given["value"]))
        elif tag == "code":
            self.code.append("")
        if tag in ("td", "th", "code"):
            self._in = tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "code"):
            self._in = None

    def handle_data(self, data: str) -> None:
        if self._in == "code":
            self.code[-1] += data
        elif self._in and self._rows and isinstance(self._rows[-1][-1], str):
            self._rows[-1][-1] += data

    def column(self, table: str, name: str) -> list[Any]:
        head, *rows = self.tables[table]
        return [row[head.index(name)] for row in rows]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that decides, measures and judges, ended a step early."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "test.fcs").write_text(SCHEDULE)
    options = ["--set", "knn=3 steps", "--seed", "3", "--max-steps", "7", "--log-every", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fastcl", "run", "test.fcs", "--out", "run", *options])
        from fastcl_cli.cli.main import main

        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def lines(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def test_the_tables_hold_the_numbers_of_the_files(run: Path, cli: Cli) -> None:
    code, _, stderr = cli("report", str(run))
    assert (code, stderr) == (0, f"wrote {run / 'report.html'}\n")
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    metrics, plan = lines(run), json.loads((run / "plan.json").read_text())
    for name in ("step", "epoch", "loss", "lr", "images_per_s", "step_s", "data_wait_s",
                 "sample_cost", "speedup", "gradient_norm", "effective_rank"):  # fmt: skip
        assert page.column("r0-log", name) == [line[name] for line in metrics], name
    known = [line["grad_error"] for line in metrics if line["grad_error"]]
    assert known
    relative = sum(e["relative"]["bias2"] is not None for e in known) > len(known) / 2
    unit = " / ‖g‖²" if relative else ""
    for key, name in (("bias2", "bias²"), ("variance", "variance"), ("ca_mse", "CA-MSE")):
        expected: list[Any] = []
        for line in metrics:
            error = line["grad_error"] or {"relative": {}}
            value = (error["relative"] if relative else error).get(key)
            expected.append("–" if value is None else value)
        assert page.column("r0-log", f"{name}{unit}") == expected
    judged = [line for line in metrics if "knn" in line]
    assert page.column("r0-knn", "step") == [line["step"] for line in judged] == [3, 6]
    assert page.column("r0-knn", "top-1") == [line["knn"]["top1"] for line in judged]
    assert page.column("r0-plan", "sample cost") == [s["sample_cost"] for s in plan["segments"]]
    images = [500 * (s["end_step"] - s["first_step"]) for s in plan["segments"]]
    costs = [n * s["sample_cost"] for n, s in zip(images, plan["segments"], strict=True)]
    assert page.column("r0-plan", "% of cost") == pytest.approx([c / sum(costs) for c in costs])
    assert page.column("r0-decisions", "step") == [d["step"] for d in lines(run, "decisions")]
    first = lines(run, "decisions")[0]
    values = [(r["relative"] if first["settings"][0]["relative"]["ca_mse"] else r)["ca_mse"]
              for r in first["settings"]]  # fmt: skip
    assert page.tables["r0-d1"][1][-1] == values[0]
    spent = {row[0]: row[1] for row in page.tables["r0-cost"][1:]}
    before = sum(500 * line["sample_cost"] for line in metrics)
    assert spent["units"] == pytest.approx(4.0 * before)  # MoCo: two views, two encoders
    assert (spent["steps"], spent["images"]) == (7, 3500)
    assert spent["training"] == pytest.approx(sum(line["step_s"] for line in metrics))


def test_speed_is_told_against_the_runs_own_full_phase(run: Path, cli: Cli) -> None:
    for number, line in enumerate(lines(run)):
        slow = 2.5 if line["sample_cost"] == 1 else 1.0
        edit_line(run / "metrics.jsonl", number, step_s=slow + 0.25, data_wait_s=0.25)
    cli("report", str(run))
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    counted, measured = (page.column("r0-speeds", n) for n in ("counted cost", "measured"))
    assert dict(zip(counted, measured, strict=True)) == pytest.approx({counted[0]: 0.4, 1.0: 1.0})
    assert page.column("r0-speeds", "ms an image")[-1] == 5


def drawn(document: str) -> list[tuple[float, float]]:
    """The points of the only curve of a chart, read off its axes' labelled ticks."""
    root = ElementTree.fromstring(document)
    labels = [t for t in root.iter(f"{SVG}text") if t.get("class") == "label"]

    def scale(anchor: str, axis: str, shift: float) -> tuple[float, float]:
        ends = [t for t in labels if t.get("text-anchor") == anchor]
        (a, x), (b, y) = (
            (float(str(t.text).replace(",", "")), float(t.attrib[axis]) - shift)
            for t in (ends[0], ends[-1])
        )
        return x - a * (y - x) / (b - a), (y - x) / (b - a)

    x0, dx = scale("middle", "x", 0)
    y0, dy = scale("end", "y", 4)
    (curve,) = root.iter(f"{SVG}polyline")
    points = (pair.split(",") for pair in curve.attrib["points"].split(" "))
    return [((float(x) - x0) / dx, (float(y) - y0) / dy) for x, y in points]


def test_figures_show_the_numbers_of_the_files(run: Path, cli: Cli, tmp_path: Path) -> None:
    code, _, _ = cli("report", str(run), "--svg", str(tmp_path / "svg"))
    assert code == 0
    files = {path.name: path.read_text() for path in (tmp_path / "svg").iterdir()}
    assert set(files) == {
        f"{name}.svg" for name in ("plan", "loss", "knn", "lr", "speed", "wait", "ideal", "error",
                                   "variance")
    }  # fmt: skip
    for name, key in (("loss", "loss"), ("lr", "lr"), ("speed", "images_per_s")):
        expected = [(line["epoch"], line[key]) for line in lines(run)]
        size = max(y for _, y in expected)
        for shown, (x, y) in zip(drawn(files[f"{name}.svg"]), expected, strict=True):
            assert shown[0] == pytest.approx(x, abs=0.01)
            assert shown[1] == pytest.approx(y, abs=size * 0.003)
    for document in files.values():
        root = ElementTree.fromstring(document)
        assert root.get("role") == "img" and root.findtext(f"{SVG}title")
        assert "var(" not in document and "<rect" in document


def test_the_command_on_the_page_asks_for_the_same_run(
    run: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That equal requests give equal runs is test_run's part."""
    cli("report", str(run))
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    program, *arguments = shlex.split(page.code[0])
    asked: list[RunRequest] = []

    class Asked:
        def __init__(self, request: RunRequest, emit: object) -> None:
            asked.append(request)

        def train(self) -> None:
            pass

    monkeypatch.setattr("fastcl_cli.train.session.Session", Asked)
    code, _, _ = cli(*arguments)
    (request,) = asked
    assert (program, code) == ("fastcl", 0)
    assert (request.seed, request.max_steps, request.log_every) == (3, 7, 1)
    assert request.schedule.text == SCHEDULE and request.out != run
    given = json.loads((run / "config.json").read_text())["config"]
    again = request.schedule.with_images(1000).config.to_json()
    found_out = ("precision", "decode")
    assert {k: v for k, v in again.items() if k not in found_out} == {
        k: v for k, v in given.items() if k not in found_out
    }
    assert given["knn"]["value"] == "3"


def test_the_page_stands_alone_and_escapes_what_it_shows(run: Path, cli: Cli) -> None:
    evil = "</style><script>alert(1)</script>\x1b[2J\u202e&\"'"
    edit(run / "config.json", lambda c: {**c, "set": [f"val={evil}"]})
    edit(run / "config.json", lambda c: {**c, "config": {**c["config"], "data": evil, evil: evil}})
    edit_line(run / "events.jsonl", 0, title=evil, device=evil, versions={evil: evil})
    edit_line(run / "events.jsonl", -1, outcome="failed", why=evil)
    edit_line(run / "decisions.jsonl", 0, to=evil, why=evil, metric=evil)
    with (run / "schedule.fcs").open("a") as file:
        file.write(f"# {evil}\n")
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "warning", "time": evil, "step": 4, "text": evil}) + "\n")
    folder = run.rename(run.parent / "<b>&'")
    code, _, _ = cli("report", str(folder))
    assert code == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "img", "object", "b"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert str(attributes.get("href", "#")).startswith("#")
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text.replace("url(#", "")
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    titles = sum(tag == "svg" for tag, _ in page.tags)
    assert sum(tag == "desc" for tag, _ in page.tags) == titles > 5
    assert page.code[0].count("alert(1)") == 2  # quoted, in the command


@pytest.mark.parametrize(
    "fields",
    [
        {"loss": 1e100, "lr": 5e-324, "images_per_s": 0, "epoch": 1e100, "speedup": 0},
        {"step_s": 0.5, "data_wait_s": 0.5},
        {"step_s": 1e-12, "data_wait_s": 1e100, "sample_cost": 0},
    ],
)
def test_no_figure_is_too_odd_to_draw(run: Path, cli: Cli, fields: dict[str, float]) -> None:
    odd = {"bias2": 1e100, "variance": -1e100, "ca_mse": 0.0, "signal": 0.0, "cost": 0.0,
           "interval": {"bias2": [-1e100, 1e100]}, "pairs": 2, "groups": 1, "probe_batch": 1,
           "batch": 1, "relative": {"bias2": 1e100, "variance": 0.0, "ca_mse": -1.0}}  # fmt: skip
    for number in range(7):
        given = {name: value * (1 - 2 * (number % 2)) if name == "loss" else value
                 for name, value in fields.items()}  # fmt: skip
        edit_line(run / "metrics.jsonl", number, grad_error=odd, **given)
    code, _, stderr = cli("report", str(run))
    assert code == 0, stderr
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"\bnan\b", text)


def test_several_runs_stand_side_by_side(
    run: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "b" / "run"))
    edit_line(other / "metrics.jsonl", -1, loss=1.25)
    monkeypatch.chdir(tmp_path)
    code, _, stderr = cli("report", str(run), str(other), "--svg", "figures")
    assert code == 0 and "wrote report.html, 20 figures" in stderr
    page = Page(Path("report.html").read_text(encoding="utf-8"))
    assert page.column("runs", "run") == ["run (1)", "run (2)"]
    assert page.column("runs", "loss") == [lines(run)[-1]["loss"], 1.25]
    units = page.column("runs", "units")
    assert units[0] == units[1] == pytest.approx(read_run(run).units(7))
    assert {"r0-log", "r1-log"} <= page.tables.keys()
    assert page.column("r1-log", "loss")[-1] == 1.25
    chart = ElementTree.fromstring(Path("figures/accuracy-cost.svg").read_text())
    text = [t.text for t in chart.iter(f"{SVG}text")]
    assert "run (1)" in text and any("units" in str(t) for t in text)
    code, error, _ = cli.error("report", *[str(run)] * 21)
    assert code == 2 and "at most 20" in error


def test_a_grid_that_was_measured_is_a_heat_map(run: Path, cli: Cli) -> None:
    one = lines(run, "decisions")[0]
    row = one["settings"][0]
    rows = [{**row, "drop": d, "patch": p, "ca_mse": i + 1.5, "relative": dict.fromkeys(
             ("bias2", "variance", "ca_mse"))}
            for i, (d, p) in enumerate((d, p) for d in ("0", "0.5") for p in (8, 16))]  # fmt: skip
    edit_line(run / "decisions.jsonl", 0, settings=rows, to="drop 0.5 patch 8")
    cli("report", str(run))
    text = (run / "report.html").read_text(encoding="utf-8")
    for i, (d, p) in enumerate((d, p) for d in ("0", "0.5") for p in (8, 16)):
        assert f"<title>patch {p}, drop {d}: {i + 1.5:.3g}</title>" in text
    assert [row[-1] for row in Page(text).tables["r0-d1"][1:]] == [1.5, 2.5, 3.5, 4.5]
    assert "drop 0.5 patch 8 (chosen)" in text


def test_a_running_run_and_one_without_lines_have_a_page(run: Path, cli: Cli) -> None:
    first = (run / "events.jsonl").read_text().splitlines(keepends=True)[0]
    (run / "events.jsonl").write_text(first)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # being written
    cli("report", str(run))
    assert "at step 7 of 7" in (run / "report.html").read_text(encoding="utf-8")
    (run / "metrics.jsonl").unlink()
    code, _, _ = cli("report", str(run))
    assert code == 0
    assert "has not logged a line" in (run / "report.html").read_text(encoding="utf-8")


def test_a_page_of_a_long_run_is_small(run: Path, cli: Cli) -> None:
    long(run, 2200)
    read = read_run(run)
    assert (read.lines.count, read.lines.stride, len(read.lines.items)) == (2200, 4, 551)
    assert read.times.training == pytest.approx(2200 * lines(run)[0]["step_s"])
    cli("report", str(run))
    text = (run / "report.html").read_text(encoding="utf-8")
    assert len(text) < 1_000_000 and "of 2,200" in text
    assert Page(text).column("r0-log", "step")[-1] == 2200


def test_thinning_keeps_even_distances_and_both_ends() -> None:
    thin = Thinned[int](10)
    for number in range(1000):
        thin.add(number)
        items = thin.items
        assert (items[0], items[-1]) == (0, number) and len(items) <= 11
        gaps = {b - a for a, b in itertools.pairwise(items[:-1])}
        assert gaps <= {thin.stride}


def test_the_command_of_a_search_is_its_own(run: Path) -> None:
    edit_line(run / "events.jsonl", 0, arguments=["search", "x.fcs", "--out", "a b.fcs"])
    assert command(read_run(run)) == ["fastcl", "search", "x.fcs", "--out", "a b.fcs"]


def test_the_command_of_a_shared_out_model_shares_it_out(run: Path) -> None:
    arguments = ["run", "x.fcs", "--gpus", "2", "--shard"]
    edit_line(run / "events.jsonl", 0, arguments=arguments, processes=2)
    assert command(read_run(run))[-5:] == ["--gpus", "2", "--shard", "--out", "again"]


def test_ticks_are_round_and_hold_the_range() -> None:
    def cases() -> Iterator[tuple[float, float]]:
        yield from ((0, 1), (3.1, 4.4), (-0.3, 0.2), (0, 1e-9), (5e7, 9e7), (2, 2), (0, 0))

    for low, high in cases():
        marks = ticks(low, high, 5)
        assert 2 <= len(marks) <= 9 and marks[0] <= low <= high <= marks[-1]
    assert ticks(3.1, 4.4, 5) == pytest.approx([3.0, 3.5, 4.0, 4.5])


def test_no_torch_is_needed(run: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED, "report", str(run), "--svg", str(run.parent / "svg")],
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": ""},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr.startswith("wrote ")
