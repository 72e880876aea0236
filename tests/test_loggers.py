"""TensorBoard and W&B say what metrics.jsonl says, and never stop a run."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_cli_run import SCHEDULE, Cli
from test_run import CLOCK

from fastcl_cli.data.pack import pack
from fastcl_cli.events import Event, Notice, RunFinished, RunStarted, StepLogged
from fastcl_cli.extras import pip_install
from fastcl_cli.loggers.attach import LoggerName, attached, make_loggers
from fastcl_cli.loggers.logger import scalars
from fastcl_cli.loggers.tensorboard import TensorBoard
from fastcl_cli.schedule import compile_text
from fastcl_cli.train.folder import RunFolder

HAS_WANDB = importlib.util.find_spec("wandb") is not None
PLAN = compile_text("images 100; batch 10; epochs 0-2: drop 0.5 patch 32;").plan


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    Path("test.fcs").write_text(SCHEDULE)
    return Cli(capsys, monkeypatch)


def play(names: Sequence[LoggerName], first: int, last: int) -> list[str]:
    """What a run from one step to another tells its loggers; returns what they said.

    The lines are the same whenever they are written, but for those of the clock.
    """
    folder = RunFolder(Path("out"))
    if first == 0:
        folder.path.mkdir(exist_ok=True)
        folder.create()
        folder.write_description("", {"seed": 0}, PLAN.to_json())
    folder.rewind(first)
    said: list[str] = []

    def screen(event: Event) -> None:
        if isinstance(event, Notice):
            said.append(event.text)

    with attached(make_loggers(names), screen) as emit:
        emit(RunStarted("t", folder.path, PLAN, first, PLAN.steps, "CPU", "float32", 1, 100))
        for step in range(first + 1, last + 1):
            interval = {"bias2": [step / 7, 2.0]}
            line = {
                "step": step,
                "loss": step / 3,
                "teacher_entropy": None,
                "images_per_s": time.perf_counter(),
                "online": PLAN.at(0).to_json()["online"],
                "grad_error": {"interval": interval} if step % 2 else None,
            }
            folder.append_metrics(line)
            emit(StepLogged(line))
        if last == PLAN.steps:
            emit(RunFinished(last, last, 1.0, folder.path, ""))
    return said


def metrics() -> dict[int, dict[str, float]]:
    """The numbers of metrics.jsonl by step, in its order."""
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in scalars(line).items() if k != "step"} for line in lines}


def tensorboard() -> dict[int, dict[str, float]]:
    """What TensorBoard shows, read by its own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator("out/tensorboard", size_guidance={"tensors": 0, "scalars": 0})
    shown.Reload()
    found: dict[int, dict[str, float]] = {}
    for tag in shown.Tags()["scalars"]:
        for event in shown.Scalars(tag):
            assert tag not in found.setdefault(event.step, {}), "a step shown twice"
            found[event.step][tag] = event.value
    return found


def single(figures: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """In float32, which is what TensorBoard keeps."""
    return {
        step: {k: float(np.float32(v)) for k, v in line.items()} for step, line in figures.items()
    }


def records(path: Path) -> Iterator[bytes]:
    """Of a file in LevelDB's log format, after W&B's own header of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0:
            return
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_history(rows: int) -> list[tuple[int, dict[str, float]]]:
    """What W&B would be sent, by step: its own process writes it, soon after the run has ended."""
    until = time.monotonic() + 20
    while len(found := _wandb_history()) < rows and time.monotonic() < until:
        time.sleep(0.05)
    return sorted(found, key=lambda row: row[0])


def _wandb_history() -> list[tuple[int, dict[str, float]]]:
    from wandb.proto import wandb_internal_pb2 as proto

    found = []
    for path in sorted(Path("out/wandb").glob("offline-run-*/run-*.wandb")):
        for data in records(path):
            record = proto.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                own = {k: v for k, v in row.items() if not k.startswith("_") and k != "step"}
                found.append((row["step"], own))
    return found


def steady(line: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in line.items() if k not in CLOCK}


def test_tensorboard_shows_one_series_of_a_run_stopped_twice(cli: Cli) -> None:
    """It comes in late, and the third start goes back behind what was logged."""
    play([], 0, 4)
    said = play(["tensorboard"], 4, 11)
    assert said == ["TensorBoard: tensorboard --logdir out/tensorboard"]
    assert list(tensorboard()) == list(range(1, 12)) and tensorboard() == single(metrics())
    before = metrics()
    play(["tensorboard"], 5, PLAN.steps)
    assert metrics()[7] != before[7], "the clock's figure: else the rest proves nothing"
    assert tensorboard() == single(metrics())
    assert list(tensorboard()) == list(range(1, PLAN.steps + 1))
    assert {"loss", "online/tokens", "grad_error/interval/bias2/1"} <= tensorboard()[9].keys()
    # What loggers wrote belongs to the run.
    RunFolder(Path("out")).create()
    assert not Path("out/tensorboard").exists()


@pytest.mark.skipif(not HAS_WANDB, reason="W&B is not installed: pip install '.[wandb]'")
def test_wandb_has_one_series_of_a_run_stopped_twice(cli: Cli) -> None:
    assert play(["wandb"], 0, 4) == ["W&B: wandb sync out/wandb/offline-run-*"]
    play([], 4, 6)
    play(["wandb"], 6, 11)
    play(["wandb", "wandb"], 5, PLAN.steps)
    history = wandb_history(PLAN.steps)
    assert [step for step, _ in history] == list(range(1, PLAN.steps + 1))
    assert all(steady(line) == steady(metrics()[step]) for step, line in history)
    ids = {path.stem.removeprefix("run-") for path in Path("out/wandb").glob("offline-*/*.wandb")}
    assert ids == {json.loads(Path("out/wandb/series.json").read_text())["id"]}


def test_a_real_run_logs_what_its_metrics_say(cli: Cli) -> None:
    pack("digits", Path("train.beton"), split="val")
    names = ["tensorboard", *["wandb"] * HAS_WANDB]
    asked = [word for name in names for word in ("--log", name)]
    code, out, _ = cli(
        "run", "test.fcs", "--out", "out", "--ui", "plain", "--log-every", "1", "--max-steps", "3",
        "--set", "knn=none", *asked,
    )  # fmt: skip
    assert code == 0 and "TensorBoard: tensorboard --logdir out/tensorboard" in out
    assert list(metrics()) == [1, 2, 3] and tensorboard() == single(metrics())
    assert not HAS_WANDB or dict(wandb_history(3)) == metrics()


def test_a_logger_that_fails_is_left_out(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = TensorBoard._write, []

    def full(self: TensorBoard, event: Any) -> None:
        calls.append(event.step)
        if event.step == 3:
            raise OSError(28, "No space left on device")
        write(self, event)

    monkeypatch.setattr(TensorBoard, "_write", full)
    said = play(["tensorboard", "tensorboard"], 0, PLAN.steps)
    assert said[1:] == [
        "warning: TensorBoard logs no more: OSError: [Errno 28] No space left on device; "
        "the run goes on, and metrics.jsonl has every figure"
    ]
    assert calls == [0, 1, 2, 3] and list(tensorboard()) == [1, 2]
    assert list(metrics()) == list(range(1, PLAN.steps + 1))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_before_anything(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    code, error, help = cli.error("run", "test.fcs", "--out", "out", "--log", name)
    assert (code, error, help) == (
        2, f"error: {name} is not installed", f"help: {pip_install(name)}",
    )  # fmt: skip
    assert not Path("out").exists()


def test_process_zero_alone_logs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pack("digits", Path("train.beton"), split="val")
    monkeypatch.setattr("fastcl_cli.processes.distributed.rank", lambda: 1)
    monkeypatch.setattr("fastcl_cli.ui.run.make_loggers", lambda names: pytest.fail("made"))
    asked = ("run", "test.fcs", "--out", "out", "--log", "tensorboard", "--max-steps", "0")
    assert cli(*asked, "--set", "knn=none")[0] == 0
    assert not Path("out").exists()


class FakeWandB:
    """Stands for a W&B that needs a network."""

    class errors:  # noqa: N801
        class UsageError(Exception):
            pass

        class AuthenticationError(Exception):
            pass

    class Settings:
        model_fields: tuple[str, ...] = ("finish_timeout",)

        def __init__(self, **given: object) -> None:
            assert given["silent"] and given["console"] == "off" and given["finish_timeout"]

    def __init__(self, logged_in: bool) -> None:
        self.logged_in = logged_in
        self.finished: list[int] = []

    def setup(self) -> SimpleNamespace:
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))

    def login(self) -> None:
        if not self.logged_in:
            raise self.errors.UsageError("No API key configured.\nMore.")

    def init(self, **given: object) -> SimpleNamespace:
        def log(line: dict[str, float], step: int) -> None:
            if step == 2:
                raise ConnectionError("the network is down")

        def finish(exit_code: int) -> None:
            self.finished.append(exit_code)

        return SimpleNamespace(log=log, finish=finish, url="where it is")


def test_wandb_online(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcl_cli.loggers.attach.need_extra", lambda *names: None)
    monkeypatch.setitem(sys.modules, "wandb", FakeWandB(logged_in=False))  # type: ignore[arg-type]
    code, error, help = cli.error("run", "test.fcs", "--data", "digits", "--log", "wandb")
    assert (code, error) == (2, "error: W&B: No API key configured.")
    assert help == "help: wandb login, or set WANDB_MODE=offline" and not Path("runs").exists()

    monkeypatch.setitem(sys.modules, "wandb", FakeWandB(logged_in=True))  # type: ignore[arg-type]
    said = play(["wandb"], 0, PLAN.steps)
    assert said[0] == "W&B: where it is"
    assert [text.split(";")[0] for text in said[1:]] == [
        "warning: W&B logs no more: ConnectionError: the network is down"
    ]


def test_numbers_of_a_line() -> None:
    line = {"step": 3, "loss": 0.5, "knn": {"top1": 1}, "interval": {"b": [1.0, 2.0]}, "none": None}
    assert scalars(line) == {
        "step": 3, "loss": 0.5, "knn/top1": 1, "interval/b/0": 1.0, "interval/b/1": 2.0,
    }  # fmt: skip
