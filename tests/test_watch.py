"""`fastcl watch`: a run's files tell what its trainer told, while it goes on and afterwards."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_auto import SCHEDULE, Greedy
from test_cli_run import Cli

from fastcl_cli.errors import RunFolderError
from fastcl_cli.events import Decided, Event, Measuring, Notice, Packing, RunStarted, StepLogged
from fastcl_cli.report import follow
from fastcl_cli.report.follow import Follower
from fastcl_cli.schedule import Request, compile_text
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session
from fastcl_cli.ui import watch as view
from fastcl_cli.ui.run_tui import Tui


@dataclass(frozen=True, slots=True)
class Quick(Greedy):
    """Measures as little as it can."""

    groups: int = 2


class Both:
    """What a trainer tells, and what its files tell at the same moments."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.trainer: list[Event] = []
        self.files: list[Event] = []
        self.follower: Follower | None = None

    def train(self, **options: Any) -> None:
        request = RunRequest(
            compile_text(SCHEDULE, "test.fcs", Request()), self.out, policy=Quick.of, log_every=1,
            save_every=3, **options,
        )  # fmt: skip
        Session(request, self.emit).train()
        self.look()

    def emit(self, event: Event) -> None:
        if not isinstance(event, Packing | Measuring | Notice):
            self.trainer.append(event)
        self.look()

    def look(self) -> None:
        if self.follower is None and (self.out / "events.jsonl").exists():
            self.follower = Follower(self.out)
        if self.follower is not None:
            self.files += self.follower.poll()


def plain(value: Any) -> Any:
    """Metrics without what is null, pairs as lists."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if v is not None}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def comparable(events: list[Event]) -> list[Any]:
    found: list[Any] = []
    for event in events:
        if isinstance(event, StepLogged):
            line = plain(event.metrics)
            if "grad_error" in line:
                line["grad_error"]["interval"].pop("signal", None)
            found.append(line)
        elif isinstance(event, RunStarted | Decided):
            found.append((event.step, event.plan.to_json(), type(event)))
        elif not isinstance(event, Notice):
            found.append(event)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A run to step 5 of 8 that is followed, then one that resumes it from step 3."""
    both = Both(tmp_path_factory.mktemp("watched") / "run")
    both.train(max_steps=5)
    return both


@pytest.fixture
def run(both: Both, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(both.out, tmp_path / "run"))


def test_files_tell_what_the_trainer_tells(both: Both) -> None:
    *told, finished = comparable(both.trainer)
    *seen, last = comparable(both.files)
    assert sum(isinstance(event, Decided) for event in both.trainer) > 2
    assert seen == told
    assert (last.step, last.load_line) == (finished.step, finished.load_line)
    assert both.follower is not None and both.follower.ended is not None
    assert both.follower.ended.outcome == "done"


def test_a_resume_is_followed_where_it_cut_the_files(run: Path) -> None:
    follower = Follower(run)
    follower.poll()
    (run / "checkpoints" / "step-00000005.safetensors").unlink()
    again = Both(run)
    again.follower = follower
    again.train(resume="auto")
    started = [e for e in again.files if isinstance(e, RunStarted)][-1]
    assert (started.step, started.stop_step) == (3, 8)
    steps = [e.metrics["step"] for e in again.files if isinstance(e, StepLogged)]
    assert steps[-8:] == list(range(1, 9))
    logged = [e for e in again.files if isinstance(e, StepLogged)][-8:]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [e.metrics["loss"] for e in logged] == [line["loss"] for line in lines]
    notices = [e.text for e in again.files if isinstance(e, Notice)]
    assert any("resumed after 3 steps" in text for text in notices)
    assert follower.ended is not None and follower.ended.step == 8


def test_a_line_that_is_being_written_waits(run: Path) -> None:
    path = run / "metrics.jsonl"
    content = path.read_bytes()
    first, second, *_ = content.splitlines(keepends=True)
    path.write_bytes(first + second[:40])
    follower = Follower(run)

    def steps() -> list[int]:
        return [e.metrics["step"] for e in follower.poll() if isinstance(e, StepLogged)]

    assert steps() == [1]
    with path.open("ab") as file:
        file.write(second[40:])
    assert steps() == [2]
    assert steps() == []


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_line(path: Path, number: int, **fields: Any) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **fields})
    path.write_text("\n".join(lines) + "\n")


def replaced_by_a_pipe(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda r: shutil.rmtree(r), "run: no such folder"),
    (lambda r: (r / "plan.json").unlink(), "plan.json: no such file, so no run's folder"),
    (lambda r: (r / "config.json").write_text("[" * 100_000), "config.json: not JSON"),
    (lambda r: (r / "events.jsonl").unlink(), "events.jsonl: no run has started here"),
    (replaced_by_a_pipe, "metrics.jsonl: not a file"),
    (lambda r: (r / "metrics.jsonl").write_bytes(b"\xff\n"), "metrics.jsonl:1: not JSON"),
    (lambda r: (r / "metrics.jsonl").write_bytes(b"x" * 9_000_000), "metrics.jsonl:1: longer than"),
    (lambda r: edit_line(r / "metrics.jsonl", 2, loss="low"), "metrics.jsonl:3: loss is 'low'"),
    (lambda r: edit_line(r / "metrics.jsonl", 2, loss=float("nan")), "metrics.jsonl:3: loss is na"),
    (lambda r: edit_line(r / "metrics.jsonl", 2, step_s=0), "metrics.jsonl:3: step_s is 0"),
    (lambda r: edit_line(r / "metrics.jsonl", 2, step=1), "metrics.jsonl: step 1 after step 2"),
    (lambda r: edit_line(r / "metrics.jsonl", 4, step=9), "metrics.jsonl: step 9 after step 4 of"),
    (lambda r: edit(r / "plan.json", lambda p: {**p, "segments": []}), "segments is [], not a li"),
    (lambda r: edit_line(r / "decisions.jsonl", 0, settings=3), "decisions.jsonl:1: settings is 3"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_what_is_no_run_is_refused_in_one_line(
    run: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(run)
    with pytest.raises(RunFolderError) as caught:
        Follower(run).poll()
    assert message in caught.value.message and "\n" not in caught.value.message
    damaged_line = re.search(r"jsonl:\d+: (?!longer)", message) is not None
    assert ("remove it to see the others" in caught.value.help) == damaged_line


def test_no_control_character_reaches_the_screen(run: Path, cli: Cli) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"
    edit_line(run / "events.jsonl", 0, title=evil, device=evil, precision=evil)
    edit_line(run / "events.jsonl", -1, outcome="failed", why=f"{evil}\n{evil}")
    edit_line(run / "decisions.jsonl", 0, to=evil, why=evil)
    code, stdout, stderr = cli("watch", str(run))
    assert (code, stderr) == (0, "")
    assert all(letter.isprintable() or letter == "\n" for letter in stdout)
    assert "the run failed: \ufffd]0;owned" in stdout
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    tui = Tui(console)
    for event in Follower(run).poll():
        tui(event)
    console.print(tui._panel())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b]0" not in shown and "\x1b[2J" not in shown and "\x07" not in shown


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def test_a_finished_run_is_shown_and_left(run: Path, cli: Cli) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, stdout, stderr = cli("watch", str(run))
    assert (code, stderr) == (0, "")
    assert "step 5/5" in stdout and "done after 5 steps" in stdout and "timm.create_model" in stdout
    assert stdout.count("stays with") + stdout.count(": least") > 2
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    code, error, _ = cli.error("watch", str(run / "checkpoints"))
    assert code == 2 and "no run's folder" in error


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_screen_fits_its_terminal(run: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    tui = Tui(console)
    for event in Follower(run).poll()[:-1]:
        tui(event)
    console.file = io.StringIO()
    console.print(tui._panel())
    lines = console.file.getvalue().splitlines()
    assert {len(line) for line in lines} == {width}
    text = "\n".join(lines)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for part in (f"5 of 5, epoch {last['epoch']:.2f}", f"{last['loss']:.4f}  ", "▼", " 16 tok"):
        assert part in text
    assert "step-00000005.safetensors" in text and "…" not in text


def long(run: Path, steps: int) -> None:
    """Make a run of very many log lines out of one."""

    def longer(plan: dict[str, Any]) -> dict[str, Any]:
        segment = {**plan["segments"][0], "end_step": steps}
        return {**plan, "segments": [segment], "epochs": steps / 4}

    edit(run / "plan.json", longer)
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps({**line, "step": step, "epoch": step / 4}) + "\n")
    (run / "decisions.jsonl").unlink()


def test_of_a_long_past_only_the_newest_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "BACKLOG", 50)
    long(run, 2000)
    steps = [e.metrics["step"] for e in Follower(run).poll() if isinstance(e, StepLogged)]
    assert steps == list(range(1951, 2001))


def test_silence_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    silence = view.Silence()
    lines: list[Event] = [StepLogged({"step": s, "step_s": 3.0}) for s in (10, 20)]
    assert silence.after(lines) is None
    now[0] = 299.0  # ten lines' time is 300 s
    assert silence.after([]) is None
    now[0] = 301.0
    assert silence.after([]) == "nothing new for 5:01 min: the run may have been killed"
    now[0] = 900.0
    assert silence.after([]) is None
    assert silence.after(lines[:1]) is None
    now[0] = 1900.0
    assert silence.after([]) is not None


def test_a_terminal_sees_a_running_run_until_ctrl_c(run: Path) -> None:
    """In a real terminal, with no torch to be had."""
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text(events[0])  # as if it still went on
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:3]))
    ours, theirs = pty.openpty()
    # A shell's background job ignores SIGINT, and so would its children.
    block = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "sys.modules['torch'] = None; sys.argv = ['fastcl', 'watch', sys.argv[1]]; "
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{block}from fastcl_cli.cli.main import main; main()", str(run)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(part: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while part not in seen:
            assert time.monotonic() < deadline, seen[-3000:]
            seen += os.read(ours, 65536)

    until(b"3 of 5, epoch")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(lines[3])
    until(b"4 of 5, epoch")
    process.send_signal(signal.SIGINT)
    until(b"no longer watching; the run goes on")
    assert process.wait(30) == 0
    until(b"\x1b[?25h")  # the cursor is back
    assert b"Traceback" not in seen
    os.close(ours)
