"""TensorBoard and W&B say what metrics.jsonl says, and never stop a run."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_cli_run import SCHEDULE, Cli
from test_run import CLOCK

from fastcl_cli.data.pack import pack
from fastcl_cli.loggers.logger import scalars
from fastcl_cli.loggers.tensorboard import TensorBoard

STEPS = 12


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("betons") / "train.beton"
    pack("digits", path, split="val")
    return path


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    beton: Path,
) -> Cli:
    monkeypatch.chdir(tmp_path)
    text = SCHEDULE.replace("train.beton", str(beton)).replace(
        "epochs 0-1: drop 0.5", "knn none;\n"
    )
    Path("test.fcs").write_text(f"{text.rstrip().rstrip(';')} epochs 0-1: drop 0.5;\n")
    return Cli(capsys, monkeypatch)


def run(cli: Cli, *options: str) -> str:
    """Train as asked, with a log line for every step and a checkpoint every fifth."""
    code, out, err = cli(
        "run", "test.fcs", "--out", "out", "--ui", "plain", "--log-every", "1", "--save-every", "5",
        *options,
    )  # fmt: skip
    assert (code, err) == (0, ""), err
    return out


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


def wandb_history() -> list[tuple[int, dict[str, float]]]:
    """What W&B would be sent, in order."""
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


def test_a_run_stopped_twice_is_one_series(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard comes in later than W&B; the third start goes back behind what was logged."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    has_wandb = "wandb" not in missing_here()
    wandb = ("--log", "wandb") if has_wandb else ()
    out = run(cli, "--max-steps", "4", *wandb)
    assert not Path("out/tensorboard").exists()
    out = run(cli, "--resume", "auto", "--max-steps", "11", *wandb, "--log", "tensorboard")
    assert "TensorBoard: tensorboard --logdir out/tensorboard" in out
    assert list(tensorboard()) == list(range(1, 12)) and tensorboard() == single(metrics())
    before = metrics()

    checkpoint = "out/checkpoints/step-00000005.safetensors"
    run(cli, "--resume", checkpoint, *wandb, *wandb, "--log", "tensorboard")
    assert metrics()[7] != before[7], "the clock's fields: else the rest proves nothing"
    assert list(metrics()) == list(range(1, STEPS + 1))
    assert tensorboard() == single(metrics())
    if not has_wandb:
        pytest.skip("W&B is not installed: pip install wandb")

    def steady(line: dict[str, float]) -> dict[str, float]:
        return {k: v for k, v in line.items() if k not in CLOCK}

    history = wandb_history()
    assert [step for step, _ in history] == list(range(1, STEPS + 1))
    assert all(steady(line) == steady(metrics()[step]) for step, line in history)
    ids = {path.name.rsplit("-")[-1] for path in Path("out/wandb").glob("offline-run-*")}
    assert ids == {json.loads(Path("out/wandb/series.json").read_text())["id"]}


def missing_here() -> set[str]:
    import importlib.util

    return {name for name in ("wandb",) if importlib.util.find_spec(name) is None}


def test_a_logger_that_fails_does_not_stop_the_run(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = TensorBoard._write, []

    def full(self: TensorBoard, event: Any) -> None:
        calls.append(event.step)
        if event.step == 3:
            raise OSError(28, "No space left on device")
        write(self, event)

    monkeypatch.setattr(TensorBoard, "_write", full)
    out = run(cli, "--log", "tensorboard", "--log", "tensorboard")
    assert out.count("warning: TensorBoard logs no more: OSError: [Errno 28]") == 1
    assert calls == [0, 1, 2, 3]
    assert list(metrics()) == list(range(1, STEPS + 1))
    assert Path("out/backbone.safetensors").exists()
    assert list(tensorboard()) == [1, 2]
    # What loggers wrote belongs to the run.
    run(cli, "--overwrite", "--max-steps", "0")
    assert not Path("out/tensorboard").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_before_anything(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    code, error, help = cli.error("run", "test.fcs", "--out", "out", "--log", name)
    assert (code, error, help) == (
        2, f"error: {name} is not installed", f"help: pip install 'fastcl[{name}]'",
    )  # fmt: skip
    assert not Path("out").exists()


def test_process_zero_alone_logs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcl_cli.distributed.rank", lambda: 1)
    monkeypatch.setattr("fastcl_cli.ui.run.make_loggers", lambda names: pytest.fail("made"))
    run(cli, "--log", "tensorboard", "--max-steps", "0")
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
    code, error, help = cli.error("run", "test.fcs", "--out", "out", "--log", "wandb")
    assert (code, error) == (2, "error: W&B: No API key configured.")
    assert help == "help: wandb login, or set WANDB_MODE=offline" and not Path("out").exists()

    monkeypatch.setitem(sys.modules, "wandb", FakeWandB(logged_in=True))  # type: ignore[arg-type]
    out = run(cli, "--log", "wandb", "--max-steps", "3")
    assert "W&B: where it is" in out
    assert out.count("warning: W&B logs no more: ConnectionError: the network is down") == 1


def test_numbers_of_a_line() -> None:
    line = {"step": 3, "loss": 0.5, "knn": {"top1": 1}, "interval": {"b": [1.0, 2.0]}, "none": None}
    assert scalars(line) == {
        "step": 3, "loss": 0.5, "knn/top1": 1, "interval/b/0": 1.0, "interval/b/1": 2.0,
    }  # fmt: skip
