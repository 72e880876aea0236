"""A model that is shared out over processes trains as a whole one does."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contrastive import batch
from safetensors.torch import load_file, save_file
from test_auto import decisions
from test_auto import train as train_auto
from test_distributed import (
    METHODS,
    PATHS,
    PHASES,
    SCHEDULE,
    Results,
    check_equal_run,
    check_equals,
    make_trainer,
    paired,
    start,
    through,
)
from test_run import cli, metrics, run, wait_for_step
from torch import Tensor

from fastcl_cli.data.source import open_split
from fastcl_cli.errors import UsageError
from fastcl_cli.evaluate.probe import probe
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.gradient_error import paired as paired_gradients
from fastcl_cli.gradient_error.estimators import squared_length
from fastcl_cli.gradient_error.paired import adam_scale
from fastcl_cli.methods.base import Input, Method
from fastcl_cli.processes.joining import processes
from fastcl_cli.processes.launchers import Place
from fastcl_cli.shards import is_shard, local, total_squared_length
from fastcl_cli.train import sharding
from fastcl_cli.train.inputs import InputMaker
from fastcl_cli.train.sharding import is_sharded, place_method
from fastcl_cli.ui.processes import need_several

CPU = torch.device("cpu")
LEGS = ((0, 1, 1), (1, 3, 4), (3, 4, 2), (4, 5, 1))
"""First update, the one after the last, and processes, which share the model out where there are
several. Each goes on from the checkpoint of the one before; the phase changes after update 2."""
HELD = [("moco", 1), ("simclr", 1), ("dino", 1), ("dino", 3)]
"""Methods, and in how many parts images go through their backbones."""


def four(place: Place, out: Path) -> None:
    with processes(place):
        save_file(through(1, 3, out, shard=True), out / f"leg 1 {place.rank}")
        save_file(bytes_held(shard=True), out / f"bytes {place.rank}")


def two(place: Place, out: Path) -> None:
    """In three parts, whose activations are made again in the backward pass."""
    with processes(place):
        save_file(through(3, 4, out, shard=True, parts=3), out / f"leg 3 {place.rank}")
        save_file(measured(shard=True), out / f"measured {place.rank}")
        save_file({"let go": let_go()}, out / f"let go {place.rank}")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all `LEGS` wrote."""
    out = tmp_path_factory.mktemp("legs")
    for first, stop, size in LEGS:
        if size == 1:
            save_file(through(first, stop, out), out / f"leg {first} 0")
        else:
            assert start({4: four, 2: two}[size], size, out) == [0] * size
    return out


def test_shards_of_any_number_of_processes_equal_one(out: Path, tmp_path: Path) -> None:
    """Losses, gradients and all that is learned in float64, with clipping and frozen prototypes,
    through a change of phase, and from one number of processes to the next by checkpoints."""
    for first, stop, size in LEGS:
        results = [load_file(out / f"leg {first} {rank}") for rank in range(size)]
        check_equals(results, through(first, stop, tmp_path))
    assert stop == len(PHASES)
    for name in METHODS:
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (out, tmp_path))
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def updated(name: str, *, shard: bool, parts: int = 1) -> tuple[Method, torch.optim.AdamW]:
    """A method after two updates."""
    build, values, sides, targets, clip = METHODS[name]
    method = build().double()
    method.parts = parts
    place_method(method, CPU, shard=shard)
    assert is_sharded(method) is shard
    trainer = make_trainer(
        method, values, [batch(PATHS, sides, targets, s, 12) for s in (5, 6)], clip
    )
    for step in range(2):
        trainer.step(step, None, None)  # type: ignore[arg-type]
    return method, trainer.optimizer


def held(method: Method, optimizer: torch.optim.AdamW) -> int:
    """Bytes of this process's weights, target, gradients and optimizer state."""
    kept = [*method.parameters(), *(p.grad for p in method.parameters() if p.grad is not None)]
    kept += [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    return sum(local(value).nbytes for value in kept)


def alive() -> int:
    """Bytes of all tensors of this process, whoever holds them."""
    gc.collect()
    found = [local(value) for value in gc.get_objects() if issubclass(type(value), torch.Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (value.untyped_storage() for value in found)}
    return sum(storages.values())


def bytes_held(*, shard: bool) -> Results:
    out: Results = {}
    before = alive()
    for name, parts in HELD:
        method, optimizer = updated(name, shard=shard, parts=parts)
        out[f"held/{name}, {parts}"] = torch.tensor(held(method, optimizer))
        out[f"alive/{name}, {parts}"] = torch.tensor(alive() - before)
        del method, optimizer
    return out


def measured(*, shard: bool) -> Results:
    """What is measured of gradients, and of AdamW's metric."""
    method, optimizer = updated("moco", shard=shard)
    length = total_squared_length if shard else squared_length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired_gradients, "LEAST_UPDATES", 2)
        # Where a gradient is rounding only, its scale is, too.
        scale = adam_scale(method, optimizer).clamp(max=1e5)
    adam = torch.tensor(length(scale), dtype=torch.float64)
    return {"adam": adam, "paired": paired(shard=shard)["paired/figures"]}


def let_go() -> Tensor:
    """Whether a block's weights are shards again, after each time that it has run in parts."""
    run_again, seen = sharding._run_again, []

    def watched(block: Any, x: Tensor) -> Tensor:
        output = run_again(block, x)
        seen.append(is_shard(block.attn.qkv.weight))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "_run_again", watched)
        updated("dino", shard=True, parts=3)
    return torch.tensor(seen)


def test_a_block_that_is_run_again_is_let_go_of(out: Path) -> None:
    """Two steps of two blocks: three parts of global views and of local ones, each forward twice;
    and three parts that the target sees."""
    seen = load_file(out / "let go 0")["let go"]
    assert seen.shape == (2 * 2 * (2 * (3 + 3) + 3),) and bool(seen.all())


def test_each_process_holds_its_share(out: Path) -> None:
    """Of what is there between two steps, also where blocks are run again; nothing whole is left
    over. Process 0 has what cannot be divided: tensors of one row, as position embeddings are."""
    counted = [load_file(out / f"bytes {rank}") for rank in range(4)]
    alone = bytes_held(shard=False)
    for name, parts in HELD:
        whole = int(alone[f"held/{name}, {parts}"])
        shares = [int(results[f"held/{name}, {parts}"]) for results in counted]
        assert sum(shares) == whole
        for share, results in zip(shares, counted, strict=True):
            assert share == pytest.approx(whole / 4, rel=0.1)
            assert int(results[f"alive/{name}, {parts}"]) < 1.12 * share


def test_gradient_errors_are_those_of_one_process(out: Path) -> None:
    """To rounding in float32, and to the bit the same in all, which decide by them. Also AdamW's
    metric."""
    one, other = (load_file(out / f"measured {rank}") for rank in range(2))
    alone = measured(shard=False)
    for name, tolerance in (("paired", 1e-3), ("adam", 1e-8)):
        assert torch.equal(one[name], other[name])
        assert torch.allclose(one[name], alone[name], rtol=tolerance), name


def session(place: Place, out: Path) -> None:
    """A run with decisions, from another one's backbone; both processes are needed at its end."""
    with processes(place):
        train_auto(out / "run", shard=True, init_from=out / "init.safetensors")


def die_in_a_step(place: Place, out: Path) -> None:
    """The other process waits for shards of weights."""
    die(place, out, "fastcl_cli.train.loop.Meter.add")


def die_before_a_checkpoint(place: Place, out: Path) -> None:
    """It waits for shards to save."""
    die(place, out, "fastcl_cli.train.session.save_run")


def die(place: Place, out: Path, where: str) -> None:
    with processes(place), pytest.MonkeyPatch.context() as patch:
        if place.rank == 1:
            patch.setattr(where, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        run(out / "run", SCHEDULE, shard=True, save_every=1)


def diverge(place: Place, out: Path) -> None:
    """An image of one process is not finite in the third step."""
    render, calls = InputMaker.render, [0]

    def broken(self: InputMaker, views: Any, ready: Any) -> tuple[list[Input], list[Input]]:
        calls[0] += 1
        online, target = render(self, views, ready)
        if place.rank == 1 and calls[0] == 3:
            online[0].pixels[0] = float("nan")
        return online, target

    with processes(place), pytest.MonkeyPatch.context() as patch:
        patch.setattr(InputMaker, "render", broken)
        run(out / "run", SCHEDULE, shard=True, save_every=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(folder, SCHEDULE, log_every=1)
    return folder


def test_auto_phases_decide_on_shards(whole: Path, tmp_path: Path) -> None:
    weights = load_file(whole / "backbone.safetensors")
    (tmp_path / "init.safetensors").write_bytes((whole / "backbone.safetensors").read_bytes())
    assert start(session, 2, tmp_path) == [0, 0]
    train_auto(tmp_path / "alone", init_from=tmp_path / "init.safetensors")
    first, expected = (decisions(tmp_path / name)[0] for name in ("run", "alone"))
    for row, other in zip(first["settings"], expected["settings"], strict=True):
        assert row["ca_mse"] == pytest.approx(other["ca_mse"], rel=1e-2)
    assert [d["step"] for d in decisions(tmp_path / "run")] == [1, 2, 3]
    lines = [metrics(tmp_path / name)[0] for name in ("run", "alone")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)
    learned = load_file(tmp_path / "run" / "backbone.safetensors")
    assert learned.keys() == weights.keys()


@pytest.mark.parametrize("target", [die_in_a_step, die_before_a_checkpoint])
def test_a_lost_process_is_named(target: Callable[[Place, Path], None], tmp_path: Path) -> None:
    assert start(target, 2, tmp_path) == [1, -signal.SIGKILL]
    (said,) = [path.read_text() for path in tmp_path.glob("die*")]
    assert said == "process 1 (on host1) of 2 ended without a word"


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    assert start(diverge, 2, tmp_path) == [4, 4]
    (said,) = [path.read_text() for path in tmp_path.glob("diverge *")]
    assert said.startswith("step 2: loss nan") and "the update was refused" in said
    assert said.endswith("step-00000002.safetensors")


def test_a_run_that_was_stopped_goes_on_and_equals_one_process(whole: Path, tmp_path: Path) -> None:
    schedule, out = tmp_path / "test.fcs", tmp_path / "run"
    schedule.write_text(SCHEDULE)
    command = ["run", str(schedule), "--gpus", "2", "--shard", "--out", str(out)]
    command += ["--resume", "auto", "--log-every", "1", "--save-every", "4"]
    process = cli(*command)
    wait_for_step(process, out, 3)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75, stderr
    assert json.loads((out / "config.json").read_text())["shard"] is True

    process = cli(*command, "--set", "accumulate=2")
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    check_equal_run(out, whole)
    train, val = (open_split("digits", part, announce=print) for part in ("train", "val"))
    accuracy = [
        probe(folder / "backbone.safetensors", train, val, ProbeSettings(k=(20,))).results[0].top1
        for folder in (out, whole)
    ]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.01)


@pytest.mark.parametrize("gpus", [None, 1])
def test_one_process_has_nobody_to_share_with(gpus: int | None) -> None:
    with pytest.raises(UsageError, match="and here is one") as caught:
        need_several(gpus)
    assert "--gpus N" in caught.value.help and "torchrun" in caught.value.help
    need_several(2)
