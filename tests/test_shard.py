"""A model that is shared out over processes trains as a whole one does."""

from __future__ import annotations

import gc
import json
import signal
import time
from pathlib import Path

import pytest
import torch
from contrastive import batch
from safetensors.torch import load_file, save_file
from test_auto import SCHEDULE as AUTO_SCHEDULE
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
from test_lost_process import END_S, kill
from test_run import STEPS, metrics, run, wait_for_step
from test_run import cli as launched

from fastcl_cli import distributed
from fastcl_cli.evaluate.probe import probe
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.data.source import open_split
from fastcl_cli.gradient_error import paired as paired_gradients
from fastcl_cli.gradient_error.estimators import squared_length
from fastcl_cli.gradient_error.paired import adam_scale
from fastcl_cli.joining import processes
from fastcl_cli.launchers import Place
from fastcl_cli.methods.base import Method
from fastcl_cli.shards import local, total_squared_length, whole
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.sharding import is_sharded, place_method

CPU = torch.device("cpu")
LEGS = ((0, 1, 4, True), (1, 3, 2, True), (3, 4, 1, False), (4, 5, 4, True))
"""First update, the one after the last, processes, and whether they share the model out: each goes
on from the checkpoint of the one before. The phase changes after the second update."""


def leg_of_four(place: Place, out: Path) -> None:
    first, stop = (0, 1) if not (out / "leg 1 0").exists() else (4, 5)
    with processes(place):
        save_file(through(first, stop, out, shard=True), out / f"leg {first} {place.rank}")


def leg_of_two(place: Place, out: Path) -> None:
    """In three parts, whose activations are made again in the backward pass."""
    with processes(place):
        save_file(through(1, 3, out, shard=True, parts=3), out / f"leg 1 {place.rank}")


def test_shards_of_any_number_of_processes_equal_one(tmp_path: Path) -> None:
    """Losses, gradients and all that is learned in float64, with clipping and frozen prototypes,
    through a change of phase, and from one number of processes to the next by checkpoints."""
    (tmp_path / "alone").mkdir()
    for first, stop, size, shard in LEGS:
        if shard:
            target = leg_of_four if size == 4 else leg_of_two
            assert start(target, size, tmp_path) == [0] * size
            results = [load_file(tmp_path / f"leg {first} {rank}") for rank in range(size)]
        else:
            results = [through(first, stop, tmp_path)]
        check_equals(results, through(first, stop, tmp_path / "alone"))
    assert stop == len(PHASES)
    for name in METHODS:
        one, other = (load_file(f / f"{name}.safetensors") for f in (tmp_path, tmp_path / "alone"))
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}


def updated(name: str, *, shard: bool, parts: int = 1) -> tuple[Method, torch.optim.AdamW]:
    """A method after two updates."""
    build, values, sides, targets, clip = METHODS[name]
    method = build().double()
    method.parts = parts
    place_method(method, CPU, shard=shard)
    assert is_sharded(method) is shard
    trainer = make_trainer(method, values, [batch(PATHS, sides, targets, s) for s in (5, 6)], clip)
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
    found = [local(value) for value in gc.get_objects() if isinstance(value, torch.Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (value.untyped_storage() for value in found)}
    return sum(storages.values())


def figures(*, shard: bool) -> Results:
    """Bytes, and what is measured of gradients."""
    out: Results = {}
    before = alive()
    for name in METHODS:
        for parts in (1, 3):
            method, optimizer = updated(name, shard=shard, parts=parts)
            out[f"held/{name}, {parts}"] = torch.tensor(held(method, optimizer))
            out[f"alive/{name}, {parts}"] = torch.tensor(alive() - before)
            del method, optimizer
    method, optimizer = updated("moco", shard=shard)
    length = total_squared_length if shard else squared_length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired_gradients, "LEAST_UPDATES", 2)
        out["adam"] = torch.tensor(length(adam_scale(method, optimizer)), dtype=torch.float64)
    return out | {"paired": paired(shard=shard)["paired/figures"]}


def count(place: Place, out: Path) -> None:
    with processes(place):
        save_file(figures(shard=True), out / str(place.rank))


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    out = tmp_path_factory.mktemp("counted")
    assert start(count, 4, out) == [0] * 4
    return [load_file(out / str(rank)) for rank in range(4)]


def test_each_process_holds_its_share(counted: list[Results]) -> None:
    """Of what is held between two steps, also where blocks are run again; and nothing whole is left
    over from the step."""
    alone = figures(shard=False)
    for name in METHODS:
        for parts in (1, 3):
            key = f"held/{name}, {parts}"
            own = [int(results[key]) for results in counted]
            print(key, own, int(alone[key]), [int(r[f"alive/{name}, {parts}"]) for r in counted])


def test_gradient_errors_are_those_of_one_process(counted: list[Results]) -> None:
    alone = figures(shard=False)
    for name in ("adam", "paired"):
        print(name, [results[name] for results in counted], alone[name])
