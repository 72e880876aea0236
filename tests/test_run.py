"""Whole runs on the digits: what they write, how they resume, how they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastcl_cli.checkpoint import is_finite
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.errors import ConfigError, UsageError
from fastcl_cli.events import Event, Notice, RunFinished, StepLogged
from fastcl_cli.methods.base import Input
from fastcl_cli.plan import Segment
from fastcl_cli.schedule import Request, compile_text
from fastcl_cli.train.inputs import Batch, InputMaker
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session

SCHEDULE = """
method moco; data digits; image 32; batch 128; lr 1e-3; warmup 1 epochs; head 64 32;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8);
precision float32; knn none;
epochs 0-2: drop 0.5 patch 16;
epochs 2-3: drop 0.25 batch 100;
"""
STEPS = 7 + 7 + 10
CLOCK = {
    "images_per_s", "step_s", "data_wait_s", "knn_s", "grad_error_s", "tflops", "mfu", "memory",
}  # fmt: skip


def run(out: Path, text: str = SCHEDULE, **options: Any) -> list[Event]:
    events: list[Event] = []
    options = {"log_every": 3, "save_every": 5, **options}
    request = RunRequest(compile_text(text, "test.fcs", Request()), out, **options)
    Session(request, events.append).train()
    return events


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_clock(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def weights(out: Path) -> bytes:
    return (out / "backbone.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    events = run(out)
    assert isinstance(events[-1], RunFinished)
    return out


def test_a_run_writes_what_is_documented(whole: Path) -> None:
    names = {p.name for p in whole.iterdir()}
    assert names == {
        "schedule.fcs",
        "config.json",
        "plan.json",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoints",
        "backbone.safetensors",
    }
    assert (whole / "schedule.fcs").read_text() == SCHEDULE
    assert [p.name for p in sorted((whole / "checkpoints").iterdir())] == [
        f"step-{step:08d}.safetensors" for step in (15, 20, STEPS)
    ]
    config = json.loads((whole / "config.json").read_text())["config"]
    assert (config["decode"], config["precision"], config["images"]) == (32, "float32", 1000)


def test_metrics_say_what_was_used(whole: Path) -> None:
    lines = metrics(whole)
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 21, 24]
    first, last = lines[0], lines[-1]
    assert first["online"] == {"drop": 0.5, "patch": 16, "grid": 2, "tokens": 2}
    assert first["target"] == {"drop": 0, "patch": 16, "grid": 2, "tokens": 4}
    assert last["online"] == {"drop": 0.25, "patch": 8, "grid": 4, "tokens": 12}
    assert last["epoch"] == 3.0
    assert first["speedup"] == pytest.approx(1 / first["sample_cost"])
    required = "step epoch loss lr images_per_s step_s data_wait_s sample_cost speedup"
    assert set(required.split()) <= last.keys()
    plan = json.loads((whole / "plan.json").read_text())
    assert last["speedup"] == pytest.approx(plan["speedup"])


def test_the_same_seed_gives_the_same_run(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "again")
    assert weights(tmp_path / "again") == weights(whole)
    run(tmp_path / "other", seed=1, max_steps=2)
    one, other = (load_file(p / "backbone.safetensors") for p in (whole, tmp_path / "other"))
    assert not torch.equal(one["norm.weight"], other["norm.weight"])


@pytest.mark.parametrize("step", [1, 5, 7, 11, 14, 15, 23])
def test_stopped_and_resumed_is_never_stopped(whole: Path, tmp_path: Path, step: int) -> None:
    """In mid-epoch, on an epoch's end, on a phase boundary (14), one step to either side."""
    run(tmp_path / "run", max_steps=step)
    run(tmp_path / "run", resume="auto")
    assert weights(tmp_path / "run") == weights(whole)
    assert without_clock(metrics(tmp_path / "run")) == without_clock(metrics(whole))


def test_resuming_a_step_too_late_is_noticed(whole: Path, tmp_path: Path) -> None:
    """The negative control: what is compared above does depend on every step."""
    run(tmp_path / "run", max_steps=11)
    newest = tmp_path / "run" / "checkpoints" / f"step-{11:08d}.safetensors"
    from test_checkpoint import rewrite

    rewrite(newest, lambda tensors, header: header["run"].update(step=12))
    newest.rename(newest.with_name(f"step-{12:08d}.safetensors"))
    run(tmp_path / "run", resume="auto")
    assert weights(tmp_path / "run") != weights(whole)


def cli(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastcl_cli", *arguments]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        lines = out / "metrics.jsonl"
        if lines.exists() and len(lines.read_text().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def test_a_full_folder_is_refused_with_both_ways_out(whole: Path) -> None:
    with pytest.raises(UsageError, match="not empty") as caught:
        run(whole)
    assert "--resume auto" in caught.value.help and "--overwrite" in caught.value.help


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path / "run", max_steps=1)
    run(tmp_path / "run", max_steps=2, overwrite=True, log_every=2)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2]
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.tex was not written by a run"):
        run(tmp_path / "run", max_steps=1, overwrite=True)
    assert (tmp_path / "run" / "thesis.tex").exists()
    assert (tmp_path / "run" / "backbone.safetensors").exists()


def test_unwritable_out_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        run(tmp_path / "file" / "run")


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_every_method_trains_and_resumes(tmp_path: Path, method: str) -> None:
    """DINO with two local views, stochastic depth, and prototypes frozen for the first epoch."""
    extra = {"simclr": "", "dino": "locals 2 16; drop_path 0.1;"}[method]
    head = {"simclr": "64 32", "dino": "64 32 128"}[method]
    text = SCHEDULE.replace("method moco;", f"method {method}; {extra}")
    text = text.replace("head 64 32", f"head {head}")
    run(tmp_path / "whole", text)
    run(tmp_path / "run", text, max_steps=9)
    run(tmp_path / "run", text, resume="auto")
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert without_clock(metrics(tmp_path / "run")) == without_clock(metrics(tmp_path / "whole"))


def test_a_batch_above_the_data_set_names_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"1,001.*1,000"):
        run(tmp_path / "run", SCHEDULE.replace("batch 128", "batch 1001"))


def test_max_steps_before_the_step_reached(tmp_path: Path) -> None:
    """Ending there would pass for the result of fewer steps. Ending where it is changes nothing."""
    run(tmp_path / "run", max_steps=4)
    before = (tmp_path / "run" / "backbone.safetensors").read_bytes()
    with pytest.raises(UsageError, match="--max-steps 3: the run is after step 4 already"):
        run(tmp_path / "run", resume="auto", max_steps=3)
    run(tmp_path / "run", resume="auto", max_steps=4)
    assert (tmp_path / "run" / "backbone.safetensors").read_bytes() == before


def test_resume_auto_starts_again_where_there_is_no_checkpoint(whole: Path, tmp_path: Path) -> None:
    """As after a kill before the first checkpoint: what a scheduler starts again must go on."""
    run(tmp_path / "run", resume="auto", max_steps=2, log_every=1)
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(UsageError, match="holds a backbone and no checkpoint"):
        run(tmp_path / "run", resume="auto")
    (tmp_path / "run" / "backbone.safetensors").unlink()
    run(tmp_path / "run", resume="auto")
    assert without_clock(metrics(tmp_path / "run")) == without_clock(metrics(whole))


def test_max_steps_zero_gives_the_untrained_network(tmp_path: Path) -> None:
    events = run(tmp_path / "run", max_steps=0)
    assert not any(isinstance(event, StepLogged) for event in events)
    from fastcl_cli.checkpoint import load_backbone
    from fastcl_cli.methods.build import build_backbone

    encoder, spec = load_backbone(tmp_path / "run" / "backbone.safetensors")
    initial = build_backbone(spec).vit.state_dict()
    assert all(torch.equal(v, initial[k]) for k, v in encoder.vit.state_dict().items())


def test_init_from_starts_with_those_weights(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", max_steps=0, init_from=whole / "backbone.safetensors")
    started, source = (load_file(p / "backbone.safetensors") for p in (tmp_path / "run", whole))
    assert all(torch.equal(started[k], v) for k, v in source.items())


SMALL_DINO = """
method dino; data digits; image 32; locals 8 16; batch 64; lr 1e-3; warmup 1 steps;
model vit_tiny_patch16_224 (embed_dim=32, depth=1, num_heads=2, patch_size=8);
head 64 32 128; precision float32; knn none;
"""
MULTI_CROP = (
    SMALL_DINO
    + """
steps 0-2: drop 0.5 patch 16;
steps 2-4: drop 0.25 on both;
steps 4-5: patch 16 on online drop 0.5 batch 32;
steps 5-6: full;
"""
)
SEEN = {
    # Pixels of the low-resolution view (tokens per side times 8) and tokens kept, of the online
    # global and local views and of the target's; 0 stands for all.
    (0, 1): (64, (16, 2), (16, 2), (16, 0)),
    (2, 3): (64, (32, 12), (16, 3), (32, 12)),
    (4,): (32, (16, 2), (16, 2), (32, 0)),
    (5,): (64, (32, 0), (16, 0), (32, 0)),
}


def test_multi_crop_decodes_once_and_sees_what_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINO's 2 + 8 views: one decoding for each image, and the shapes of every step."""
    loaders: list[DecodedLoader] = []
    inputs: dict[int, tuple[list[Input], list[Input]]] = {}
    make = InputMaker.__call__

    def loader(*arguments: Any) -> DecodedLoader:
        loaders.append(DecodedLoader(*arguments))
        return loaders[-1]

    def watched(self: InputMaker, step: int, segment: Segment, batch: Batch) -> Any:
        inputs[step] = make(self, step, segment, batch)
        return inputs[step]

    monkeypatch.setattr("fastcl_cli.train.session.DecodedLoader", loader)
    monkeypatch.setattr(InputMaker, "__call__", watched)
    run(tmp_path / "run", MULTI_CROP)
    assert [one.decoded for one in loaders] == [5 * 64 + 32]
    plan = compile_text(MULTI_CROP, "test.fcs", Request()).plan
    assert sorted(inputs) == list(range(plan.steps))
    for steps, (images, *expected) in SEEN.items():
        for step in steps:
            online, target = inputs[step]
            assert [x.shape for x in online] == [expected[0]] * 2 + [expected[1]] * 8
            assert [x.shape for x in target] == [expected[2]] * 2
            assert {len(x.pixels) for x in online + target} == {images}
            assert {len(x.kept) for x in online + target if x.kept is not None} <= {images}
            for view, seen in zip(plan.at(step).views, (online[0], online[2]), strict=True):
                kept = 0 if view.online.kept == view.online.grid**2 else view.online.kept
                assert seen.shape == (8 * view.online.grid, kept)


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_no_compression_written_out_is_full(tmp_path: Path, method: str) -> None:
    """`drop 0 patch 8` with the model's own patch: the same bytes and figures; but not `drop 0.1`,
    which is the negative control."""
    text = SMALL_DINO.replace("8 16", "2 16")
    if method == "moco":
        text = text.replace("dino", method).replace("locals 2 16;", "").replace(" 128;", ";")
    phases = {"full": "full", "written": "drop 0 on both patch 8 on both", "other": "drop 0.1"}
    for name, clauses in phases.items():
        run(tmp_path / name, f"{text} steps 0-3: {clauses};", log_every=1)
    assert weights(tmp_path / "written") == weights(tmp_path / "full")
    assert without_clock(metrics(tmp_path / "written")) == without_clock(metrics(tmp_path / "full"))
    assert weights(tmp_path / "other") != weights(tmp_path / "full")


def test_a_refused_update_names_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """Weights that grow ninefold a step: lr times weight decay is 10, and float32 ends at 1e38."""
    schedule, out = tmp_path / "test.fcs", tmp_path / "run"
    schedule.write_text(SCHEDULE)
    often = ["--save-every", "1", "--out", str(out), "--ui", "plain"]
    wild = ["--set", "lr=100", "--set", "warmup=0 steps", "--set", "decay=constant"]
    process = cli("run", str(schedule), *often, *wild)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 4, stderr
    assert "the update was refused" in stderr and "Traceback" not in stderr
    named = stderr.split("the last good checkpoint is ")[1].split()[0]
    assert f"`--init-from {named} --out NEW`" in stderr
    assert not (out / "backbone.safetensors").exists()
    tensors = load_file(named)
    assert all(bool(value.isfinite().all()) for value in tensors.values())
    refused = int(stderr.split("step ")[1].split(":")[0])
    newest = out / "checkpoints" / f"step-{refused:08d}.safetensors"
    # The update before may itself have left what is not finite; then the one before it is named.
    assert Path(named) == newest or not is_finite(newest)
    run(tmp_path / "new", init_from=Path(named), max_steps=1)
    assert (tmp_path / "new" / "backbone.safetensors").exists()


COLLAPSING = """
method dino; locals 0 16; solarize 0 0 0; head 64 32 128; teacher_temperature 0.1;
momentum 0.9 -> 1; drop_path 0; center_momentum 1; lr 2e-3;
"""
HEALTHY = "method moco; head 64 32; lr 1e-3;"


@pytest.mark.parametrize("collapses", [True, False], ids=["dino without centring", "moco"])
def test_the_watch_speaks_of_a_collapse_alone(tmp_path: Path, collapses: bool) -> None:
    """DINO whose centre never moves, and a soft teacher: nothing keeps the features apart. The
    contrast is MoCo-v3 on the same data, whose negatives do."""
    text = (COLLAPSING if collapses else HEALTHY) + (
        "data digits; image 32; batch 128; precision float32; flip 0; warmup 10%; crop 0.5 1;"
        "model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=8); knn none;"
        "epochs 0-12: full;"
    )
    events = run(tmp_path / "run", text, log_every=3, save_every=1000)
    notices = [event.text for event in events if isinstance(event, Notice)]
    if collapses:
        assert any("nearly the same features" in text for text in notices)
        assert all(text.startswith("warning: step ") for text in notices)
    else:
        assert notices == []
