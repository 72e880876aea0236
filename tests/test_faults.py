"""Kills, signals, full disks, two runs in a folder, jumping clocks: a run goes on, or says why."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from crashing import SCHEDULE, outcome
from tiny import moco

from fastcl_cli.checkpoint import check_whole, read_run_header
from fastcl_cli.cli.main import main
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.writer import BetonWriter
from fastcl_cli.errors import (
    CheckpointError,
    RequeueError,
    RunFailedError,
    UsageError,
)
from fastcl_cli.events import CheckpointSaved, Event, Notice, RunStarted
from fastcl_cli.model.vit import Encoder
from fastcl_cli.schedule import Request, compile_text
from fastcl_cli.train import folder, session
from fastcl_cli.train.changes import ChangedRunError
from fastcl_cli.train.device import choose_device
from fastcl_cli.train.memory import out_of_memory
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session

HERE = Path(__file__).resolve().parent
FORBIDDEN = "(Permission denied|Read-only file system)$"
OTHER_END = SCHEDULE.replace("full batch 8", "drop 0.25 batch 8")


def run(
    out: Path, text: str = SCHEDULE, emit: Callable[[Event], None] = lambda event: None, **more: Any
) -> list[str]:
    """Train in this process; returns the notices."""
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        emit(event)

    options = {"log_every": 2, "save_every": 4, **more}
    request = RunRequest(compile_text(text, "test.fcs", Request()), out, **options)
    Session(request, listen).train()
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.fixture(scope="module", autouse=True)
def one_loader() -> Any:
    """FFCV compiles for seconds, so all runs here share a loader."""
    with pytest.MonkeyPatch.context() as patch:
        loader: Any = cache(lambda identity: [])

        def shared(beton: Any, side: int, workers: int) -> DecodedLoader:
            made = loader(beton.identity)
            if not made:
                made.append(DecodedLoader(beton, side, workers))
            return made[0]

        patch.setattr(session, "DecodedLoader", shared)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


def begun(out: Path, steps: int = 8) -> Path:
    """A run that was stopped; returns its newest checkpoint."""
    run(out, max_steps=steps)
    (out / "backbone.safetensors").unlink()
    return out / "checkpoints" / f"step-{steps:08d}.safetensors"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_killed_and_told_to_stop_at_random_moments(tmp_path: Path) -> None:
    """Real processes, real signals, a disk that is really full; each run ends byte for byte as the
    one left alone."""
    command = [sys.executable, str(HERE / "crashing.py")]
    command += ["--kills", "6", "--terms", "3", "--fills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["random"] == seen["write"] == 3
    assert seen["SIGTERM"] == seen["SIGUSR1"] == seen["SIGINT"] == 1
    assert seen["runs ended"] >= 1 and seen["resumed"] >= 1
    if "full" in seen:  # where a small disk may be mounted
        assert seen["full"] == 4 and seen["runs ended, disk"] >= 1


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused: list[UsageError] = []

    def second(event: Event) -> None:
        if isinstance(event, RunStarted):
            for options in ({"resume": "auto"}, {"overwrite": True}):
                with pytest.raises(UsageError) as caught:
                    run(out, **options)
                refused.append(caught.value)

    run(out, emit=second, max_steps=1)
    for error in refused:
        assert f"is in use by process {os.getpid()} on {os.uname().nodename}" in error.message
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize(
    "name", ["checkpoints", ".lock", "metrics.jsonl", "checkpoints/step-00000008.safetensors"]
)
@pytest.mark.parametrize("options", [{"resume": "auto"}, {"overwrite": True}])
def test_no_path_leaves_the_folder(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Where one does, neither it nor the folder is touched; within the folder a link is a link."""
    out, there = tmp_path / "run", tmp_path / "there"
    (out / "checkpoints").mkdir(parents=True)
    there.mkdir()
    part = there / ".step-00000009.safetensors.1.part"  # of another run, which is writing it
    part.write_text("half")
    entry = out / name
    if name == "checkpoints":
        entry.rmdir()
    entry.symlink_to(there if name == "checkpoints" else part)
    with pytest.raises(UsageError, match="no path leaves the run's folder") as caught:
        run(out, **options)
    assert f"{entry} is a link to {entry.readlink()}" in caught.value.message
    assert part.read_text() == "half" and entry.is_symlink()
    assert not (out / "config.json").exists()


def test_a_folder_that_is_a_link(whole: Path, tmp_path: Path) -> None:
    """And one that holds a link to what it holds, and a user's own link elsewhere."""
    (tmp_path / "disk").mkdir()
    out = tmp_path / "run"
    out.symlink_to(tmp_path / "disk", target_is_directory=True)
    begun(out)
    (out / "checkpoints" / "latest.safetensors").symlink_to("step-00000008.safetensors")
    (out / "notes").symlink_to(tmp_path)
    notices = run(out, resume="auto")
    assert any("after 8 steps" in text for text in notices)
    assert out.is_symlink() and outcome(tmp_path / "disk") == outcome(whole)


def test_a_full_disk_while_saving_or_logging(whole: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end; /dev/full is one for the metrics."""
    out = tmp_path / "run"
    metrics = out / "metrics.jsonl"

    def limit(event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    def fill(event: Event) -> None:
        if isinstance(event, RunStarted):
            metrics.unlink()
            metrics.symlink_to("/dev/full")

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RunFailedError, match=r"write \S+-00000008\S+: File too large$") as e:
            run(out, emit=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "--resume auto" in e.value.help
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000004.safetensors"]
    check_whole(out / "checkpoints" / "step-00000004.safetensors")
    with pytest.raises(RunFailedError, match=r"cannot write .*metrics\.jsonl: No space"):
        run(out, emit=fill, resume="auto")
    metrics.unlink()
    run(out, resume="auto")
    assert outcome(out)[0] == outcome(whole)[0]


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Nobody may write to a folder: its owner by its mode, root because it is mounted so."""
    if os.geteuid() != 0:
        path.chmod(0o555)
        yield
        path.chmod(0o755)
        return
    mount = ["mount", "--bind", str(path), str(path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("nothing may be mounted here")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.parametrize("options", [{}, {"resume": "auto"}, {"overwrite": True}])
def test_a_folder_that_may_not_be_written(options: dict[str, Any], tmp_path: Path) -> None:
    """A new run above it, and one that has begun in it, which stays as it is."""
    out = tmp_path / "run"
    if options:
        begun(out)
    files = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    with (
        read_only(out if options else tmp_path),
        pytest.raises(UsageError, match=f"cannot write to {out}: {FORBIDDEN}") as caught,
    ):
        run(out, **options)
    assert caught.value.help == "name another folder with --out"
    assert {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()} == files


def test_a_folder_that_may_not_be_written_any_more(whole: Path, tmp_path: Path) -> None:
    """It comes while the run trains; what was written before is taken up later."""
    out = tmp_path / "run"
    with ExitStack() as stack:

        def forbid(event: Event) -> None:
            if isinstance(event, CheckpointSaved) and event.step == 8:
                stack.enter_context(read_only(out / "checkpoints"))

        with pytest.raises(RunFailedError, match=rf"cannot write \S+-00000012\S+: {FORBIDDEN}"):
            run(out, emit=forbid)
    for step in (4, 8):
        check_whole(out / "checkpoints" / f"step-{step:08d}.safetensors")
    assert any("after 8 steps" in text for text in run(out, resume="auto"))
    assert outcome(out) == outcome(whole)


def test_the_newest_whole_checkpoint_is_taken(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    newest = begun(out)
    flip(newest, newest.stat().st_size - 1000)
    left = [
        out / "checkpoints" / name for name in (".step-00000009.safetensors.1.part", ".tmpAb12Cd")
    ]
    for path in left:
        path.write_bytes(b"half")
    notices = run(out, resume="auto")
    assert any("step-00000008.safetensors is damaged" in text for text in notices)
    assert any("resumed from" in text and "after 4 steps" in text for text in notices)
    assert outcome(out) == outcome(whole)
    assert not any(path.exists() for path in left)
    for path in (out / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints is whole"):
        run(out, resume="auto")


def test_a_changed_schedule_is_shown_and_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begun(out)
    text = OTHER_END.replace("lr 1e-3;", "lr 1e-3; temperature 0.3;")
    with pytest.raises(ChangedRunError, match=r"temperature was 0\.2, is 0\.3") as caught:
        run(out, text, resume="auto")
    assert "--allow-changes" in caught.value.help
    assert caught.value.details.splitlines() == [
        "temperature  0.2 -> 0.3",
        "- 8 to 20 steps: online drop 0 patch 8, target drop 0 patch 8, batch 8",
        "+ 8 to 20 steps: online drop 0.25 patch 8, target drop 0 patch 8, batch 8",
    ]
    for was, now, why in (
        ("batch 16", "batch 8", "keep the phases before it as they were"),
        ("head 16 8", "head 24 8", "another head is another network"),
        ("steps 8-20: full batch 8;", "", "ends after 8 steps|of the new plan"),
    ):
        changed = SCHEDULE.replace(was, now)
        if not now:
            changed = changed.replace("steps 0-8", "steps 0-7")
        with pytest.raises(ChangedRunError) as caught:
            run(out, changed, resume="auto", allow_changes=True)
        assert any(part in caught.value.help for part in why.split("|")) or not now
    with pytest.raises(ChangedRunError, match="seed was 0, is 1"):
        run(out, resume="auto", allow_changes=True, seed=1)


def test_changes_that_are_allowed_make_the_new_plan_the_plan(tmp_path: Path) -> None:
    """Until step 8 both schedules say the same: the run that changed is the one that always had
    the new end."""
    run(tmp_path / "new", OTHER_END)
    begun(tmp_path / "run")
    notices = run(tmp_path / "run", OTHER_END, resume="auto", allow_changes=True, max_steps=12)
    assert any("with these changes" in text and "+ 8 to 20 steps" in text for text in notices)
    (tmp_path / "run" / "backbone.safetensors").unlink()
    run(tmp_path / "run", OTHER_END, resume="auto")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "new")
    described = [json.loads((tmp_path / name / "plan.json").read_text()) for name in ("run", "new")]
    assert described[0] == described[1]
    (change,) = json.loads((tmp_path / "run" / "config.json").read_text())["changes"]
    assert change["step"] == 8 and len(change["phases"]) == 2


class Judging:
    """In place of k-NN: a figure of the weights, and a signal in the middle if that is asked."""

    def __init__(self, interrupt: bool) -> None:
        self.interrupt = interrupt
        self.plan: Any = None

    def due(self, done: int) -> bool:
        return done in (6, 20)

    def measure(self, backbone: Encoder, stopped: Callable[[], bool]) -> dict[str, Any] | None:
        if self.interrupt:
            os.kill(os.getpid(), signal.SIGUSR1)
            for _ in range(100):  # handlers run between instructions
                if stopped():
                    return None
        return {"knn": {"top1": float(backbone.vit.norm.weight.sum())}}


def test_stopped_in_the_middle_of_knn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, and the run that goes on measures it first: the same lines as ever."""
    for name, interrupt in (("whole", False), ("run", True)):
        monkeypatch.setattr(session, "open_judge", lambda *a, now=interrupt, **k: Judging(now))
        if interrupt:
            with pytest.raises(RequeueError, match="stopped by SIGUSR1 after 6 of 20 steps"):
                run(tmp_path / name)
        else:
            run(tmp_path / name)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000006.safetensors"
    assert read_run_header(checkpoint).pending["step"] == 6
    monkeypatch.setattr(session, "open_judge", lambda *a, **k: Judging(False))
    run(tmp_path / "run", resume="auto")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_told_to_stop_while_packing(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is lost but the packing; what a library makes of the exception does not matter."""

    def interrupted(self: BetonWriter, *image: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException as error:
            raise ValueError("could not determine the shape") from error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(BetonWriter, "add", interrupted)
    monkeypatch.setattr(sys, "argv", ["fastcl", "run", "quickstart", "--out", "run"])
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(SystemExit) as caught:
        main()
    for one, handler in zip((signal.SIGTERM, signal.SIGUSR1), before, strict=True):
        signal.signal(one, handler)
    stderr = capsys.readouterr().err
    code, word = (130, "interrupted") if number == signal.SIGINT else (75, "stopped")
    assert caught.value.code == code, stderr
    assert stderr.splitlines()[-2].startswith(f"{word} before training: ")
    assert "error: " not in stderr
    assert not list((tmp_path / "cache").iterdir()) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 2), (signal.SIGUSR1, 2), (signal.SIGINT, -2)]
)
def test_a_signal_to_a_process_that_is_ending(number: signal.Signals, status: int) -> None:
    """What it had to say is said; a second Ctrl-C ends what hangs."""
    script = f"""
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: os.kill(os.getpid(), {int(number)}))
from fastcl_cli.cli.main import main
sys.argv = ["fastcl", "run", "no-such-schedule"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 2


def test_out_of_memory_says_what_would_fit() -> None:
    segment = compile_text("batch 1024; epochs 0-90: full;").plan.segments[0]
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    error = out_of_memory(caught.value, 3, segment, moco(), choose_device("float32"))
    assert isinstance(error, RunFailedError)
    assert "out of memory: step 3" in error.message
    assert "batch 1024, 196 of 196 tokens of 16 px" in error.message
    fits = int(error.help.split("a batch of about ")[1].split()[0])
    assert 0 < fits <= 512
    parts = int(error.help.split("accumulate=")[1].split()[0])
    assert (parts - 1) * fits < 1024 <= parts * fits
    other = out_of_memory(RuntimeError("no"), 3, segment, moco(), choose_device("float32"))
    assert other is None


WALL = r"time\.time\(|time_ns\(|\.now\(|\.utcnow\(|\.today\(|localtime|gmtime|strftime|ctime"
STAMPS = {
    "loggers/tensorboard.py": "event.wall_time = time.time()",
    "train/bench.py": "date=datetime.datetime.now(datetime.timezone.utc)",
    "train/folder.py": "now = datetime.now(timezone.utc).isoformat(",
}
"""All that is made of a clock that may jump: stamps for people."""


def test_no_time_is_taken_from_a_clock_that_may_jump() -> None:
    package = HERE.parent / "fastcl_cli"
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        stamp = STAMPS.get(path.relative_to(package).as_posix(), "")
        assert stamp in text and not re.search(WALL, text.replace(stamp, "", 1)), path


class Jumping(datetime):
    """A wall clock that jumps by hours, to and fro, whenever it is looked at."""

    looks = 0

    @classmethod
    def jumped(cls) -> float:
        cls.looks += 1
        return 1.7e9 + (-1) ** cls.looks * 3600 * cls.looks

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.fromtimestamp(cls.jumped(), tz)


def test_a_clock_that_jumps_changes_stamps_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(time, "time", Jumping.jumped)
    monkeypatch.setattr(time, "time_ns", lambda: int(1e9 * Jumping.jumped()))
    monkeypatch.setattr(folder, "datetime", Jumping)
    began = time.monotonic()
    begun(out)
    run(out, resume="auto")
    took = time.monotonic() - began
    monkeypatch.undo()
    assert outcome(out) == outcome(whole)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert 0 < line["step_s"] < took and 0 <= line["data_wait_s"] <= line["step_s"]
        assert 0 <= line["grad_error_s"] < took and line["images_per_s"] > 8 / took
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    ended = [event["seconds"] for event in events if event["event"] == "ended"]
    assert len(ended) == 2 and all(0 < seconds < took for seconds in ended)
    stamps = [datetime.fromisoformat(event["time"]).timestamp() for event in events]
    assert max(abs(b - a) for a, b in pairwise(stamps)) > 3600, "no clock jumped"
