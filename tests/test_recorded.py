"""Recorded steps, with a recorder that does the work anew where a GPU would replay it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcl_cli.config import TeacherTemperature
from fastcl_cli.errors import RunFailedError, UsageError
from fastcl_cli.methods.base import Input, Loss
from fastcl_cli.methods.dino import temperature_at
from fastcl_cli.train import recorded as recorded_module
from fastcl_cli.train.recorded import PLAIN_STEPS, CudaGraphs, Differentiated, recorder_for
from fastcl_cli.transfer import map_tensors
from tests.steps import QUICKSTARTS, batch, device, quick, trainer

CPU = device("cpu", "float32")


class Again:
    """Does the work again into the tensors that it gave the first time."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def watch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        self.recorded += 1
        made = map_tensors(lambda tensor: tensor.clone(), work())
        # What a recording writes is worth nothing before it is replayed.
        map_tensors(lambda tensor: tensor.fill_(float("nan")), made)

        def replay() -> None:
            self.replayed += 1
            fresh: list[Tensor] = []
            map_tensors(fresh.append, work())
            values = iter(fresh)
            map_tensors(lambda tensor: tensor.copy_(next(values)), made)

        return replay, made


@pytest.mark.parametrize("name", QUICKSTARTS)
def test_recorded_steps_train_as_steps_do(name: str) -> None:
    """To the bit, over changes of phase, of images, and of what counts in epochs."""
    loaded = quick(name)
    plain, recorded = trainer(loaded, CPU), trainer(loaded, CPU)
    recorder = recorded.differentiated.recorder = Again()
    for segment in loaded.plan.segments:
        steps = range(segment.first_step, segment.end_step, 3)[: PLAIN_STEPS + 3]
        for step in steps:
            seen = batch(16, 32, seed=step)
            a, b = (one.step(step, segment.views, seen) for one in (plain, recorded))
            assert torch.equal(a.loss, b.loss) and torch.equal(a.gradient_norm, b.gradient_norm)
            assert torch.equal(a.features, b.features)
    phases = len(loaded.plan.segments)
    assert (recorder.recorded, recorder.replayed) == (phases, 3 * phases)
    own, other = plain.method.state_dict(), recorded.method.state_dict()
    assert all(torch.equal(own[key], other[key]) for key in own)


def test_a_result_outlives_the_next_step() -> None:
    loaded = quick("quickstart_dino")
    own = trainer(loaded, CPU)
    own.differentiated.recorder = Again()
    views = loaded.plan.segments[0].views
    results = [own.step(step, views, batch(16, 32, seed=step)) for step in range(PLAIN_STEPS + 2)]
    kept = [(float(result.loss), result.features.clone()) for result in results[-2:]]
    own.step(len(results), views, batch(16, 32, seed=99))
    assert kept[0][0] != kept[1][0]
    for result, (loss, features) in zip(results[-2:], kept, strict=True):
        assert float(result.loss) == loss and torch.equal(result.features, features)


def test_what_cannot_be_recorded_runs_as_it_stands() -> None:
    class Refusing(Again):
        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
            try:
                raise RuntimeError("operation not permitted\nwhen capturing")
            finally:
                raise RuntimeError("an error has ended the recording")

    weight = torch.nn.Parameter(torch.ones(()))
    own = Differentiated(
        lambda online, target, epochs: Loss(weight * online[0].pixels.sum(), torch.zeros(1)),
        [weight],
        CPU,
        Refusing(),
    )
    for count in range(1, 2 * PLAIN_STEPS + 2):
        seen = [Input(torch.full((1, 3, 2, 2), float(count)))]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            loss = own(seen, [], 0.0)
        assert weight.grad is not None
        assert float(loss.value) == float(weight.grad) == 12 * count
        assert [str(w.message) for w in told] == (
            ["steps are launched kernel by kernel, slower: operation not permitted"]
            if count == PLAIN_STEPS + 1
            else []
        )


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_that_a_recording_has_broken_ends_the_run(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(work: object) -> None:
        raise RuntimeError("capture invalidated\nand more")

    graphs = CudaGraphs()
    monkeypatch.setattr(graphs, "_record", fail)
    monkeypatch.setattr(recorded_module, "_settled", lambda: works)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    with pytest.raises(RuntimeError if works else RunFailedError, match="capture invalidated") as e:
        graphs.record(lambda: None)  # type: ignore[arg-type, return-value]
    assert works or "FASTCL_CUDA_GRAPHS=0" in str(e.value.help)  # type: ignore[attr-defined]
    assert not recorded_module.alone.locked()


def test_no_more_is_recorded_than_memory_is_left_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10**9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 10**9)
    graphs = CudaGraphs()
    monkeypatch.setattr(graphs, "_record", lambda work: "recorded")
    with graphs.watch():
        pass
    for free in (4.3, 4.5):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free * 1e9, 8e9))
        if free > 4.4:
            assert graphs.record(lambda: None) == "recorded"  # type: ignore[arg-type, return-value, comparison-overlap]
            continue
        with pytest.raises(RuntimeError, match=r"it needs 4.0 GB, and 4.3 GB are free"):
            graphs.record(lambda: None)  # type: ignore[arg-type, return-value]


def test_the_environment_switches_recording_off(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = device("cuda", "bf16")
    assert isinstance(recorder_for(gpu), CudaGraphs)
    assert recorder_for(CPU) is None
    monkeypatch.setenv("FASTCL_CUDA_GRAPHS", "0")
    assert recorder_for(gpu) is None
    monkeypatch.setenv("FASTCL_CUDA_GRAPHS", "off")
    with pytest.raises(UsageError, match="FASTCL_CUDA_GRAPHS is 'off', not 0 or 1"):
        recorder_for(gpu)


@pytest.mark.parametrize("over", [0.0, 0.5, 1.0, 3.0, 7.5])
def test_the_teachers_temperature_is_the_same_on_the_device(over: float) -> None:
    schedule = TeacherTemperature(0.04, 0.07, over)
    for epochs in torch.linspace(0, 9, 181, dtype=torch.float64):
        there = temperature_at(schedule, epochs)
        assert isinstance(there, Tensor)
        assert float(there) == temperature_at(schedule, float(epochs))
