"""The loop over a plan's steps, and what happens around them: logging, saving, stopping."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.data.loader import Decoded, DecodedLoader
from fastcl_cli.data.order import epoch_order
from fastcl_cli.errors import ConfigError
from fastcl_cli.gradient_error.running import RunningError
from fastcl_cli.methods.base import Teacher
from fastcl_cli.plan import Plan, Segment
from fastcl_cli.processes import distributed
from fastcl_cli.train.ahead import prepared_ahead
from fastcl_cli.train.health import effective_rank, feature_std, prototypes_used
from fastcl_cli.train.inputs import Batch
from fastcl_cli.train.judge import Judge
from fastcl_cli.train.memory import out_of_memory
from fastcl_cli.train.step import StepResult, Trainer


class Stop:
    """A request to stop: the signal that asked for it, or None so far.

    Args:
        announce: called, in the middle of whatever goes on, with a line that says it was heard.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.signal: signal.Signals | None = None
        self._announce = announce

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note SIGINT, SIGTERM and SIGUSR1 (SLURM's warning) instead of dying of them.

        A second SIGINT interrupts at once, unless other processes would be left behind. Processes
        that have agreed to stop are deaf from then on: a launcher that sees one of them end would
        end the others by SIGTERM.
        """

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = signal.Signals(number)
            if distributed.size() == 1:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            with suppress(RuntimeError):  # it came while a line was being written
                self._announce(f"{self.signal.name}: stopping after this step, with a checkpoint")

        heard = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, note) for number in heard}
        try:
            yield
        finally:
            deaf = distributed.size() > 1 and self.signal is not None
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if deaf else handler)

    def asked(self) -> bool:
        """Whether this process was."""
        return self.signal is not None

    def agreed(self) -> bool:
        """Whether any process was asked to stop, asked once a step: so all stop at the same one."""
        number = distributed.greatest(0 if self.signal is None else self.signal)
        if number:
            self.signal = signal.Signals(number)
        return number > 0


def check_batches(plan: Plan, processes: int) -> None:
    """Make sure that every batch of a plan can be shared out evenly.

    Raises:
        ConfigError: one cannot.
    """
    for segment in plan.segments:
        if segment.batch % processes:
            raise ConfigError(
                f"batch {segment.batch} cannot be shared evenly by {processes} processes",
                f"use a multiple of {processes}, or another number of processes",
            )


class Stream(Protocol):
    """Delivers images in a given order, as `DecodedLoader` does."""

    def stream(
        self, indices: NDArray[np.int64], batch_size: int
    ) -> AbstractContextManager[Iterator[Decoded]]: ...


def batches(
    plan: Plan, loader: Stream, seed: int, step: int, stop_step: int
) -> Generator[tuple[int, Segment, Batch], None, None]:
    """Decoded images for each step from ``step`` to ``stop_step``, each image decoded once, by the
    process that it belongs to.

    One stream of the loader serves the steps that share an epoch and a segment; starting in the
    middle of either gives what a run that came there from step 0 gets.
    """
    while step < stop_step:
        segment, position = plan.at(step), plan.position(step)
        left_in_epoch = (plan.images - position.offset) // segment.batch
        steps = min(left_in_epoch, segment.end_step - step, stop_step - step)
        order = epoch_order(plan.images, seed, position.epoch)
        indices = order[position.offset : position.offset + steps * segment.batch]
        indices = indices.reshape(steps, segment.batch)
        rows = distributed.rows(segment.batch)
        with loader.stream(indices[:, rows].ravel(), rows.stop - rows.start) as stream:
            for whole, decoded in zip(indices, stream, strict=True):
                yield step, segment, Batch(decoded.images, whole, rows)
                step += 1


class Meter:
    """Sums over the steps between two log lines; images are those of the global batches.

    ``state`` goes into every checkpoint and comes back as ``carried``, so that the first line after
    a resume covers the steps before it too.
    """

    def __init__(self, plan: Plan, carried: Mapping[str, float]) -> None:
        self.plan = plan
        self._reset()
        self._logged_steps = int(carried.get("steps", 0))
        self._loss: float | Tensor = carried.get("loss", 0.0)

    @property
    def state(self) -> dict[str, float]:
        return {"steps": self._logged_steps, "loss": float(self._loss)}

    def _reset(self) -> None:
        self._logged_steps = self._steps = self._images = 0
        self._loss, self._wait = 0.0, 0.0
        self._since = time.perf_counter()

    def add(self, segment: Segment, result: StepResult, wait: float) -> None:
        """Count one step; ``wait`` is how long it waited for data, in seconds."""
        self._logged_steps += 1
        self._steps += 1
        self._images += segment.batch
        self._loss = self._loss + result.loss.double()  # on the device: it is not waited for
        self._wait += wait

    def line(self, done: int, segment: Segment, result: StepResult) -> dict[str, Any]:
        """The log line after ``done`` updates, over the steps since the last one.

        ``loss`` is their mean; ``feature_std``, ``effective_rank``, ``teacher_entropy`` (in nats)
        and ``prototypes_used`` (see `health`; the last two None without a teacher) are of the last
        step's global batch; ``step_s`` and ``data_wait_s`` are seconds per step;
        ``speedup`` is what the images so far would have cost without compression over what they
        did cost.
        """
        loss = float(self._loss) / self._logged_steps  # a GPU has done all steps then
        seconds = time.perf_counter() - self._since
        described = segment.to_json()
        features = distributed.gather(result.features)
        metrics = {
            "step": done,
            "epoch": self.plan.epochs_at(done),
            "batch": segment.batch,
            "loss": loss,
            "gradient_norm": float(result.gradient_norm),
            "feature_std": feature_std(features),
            "effective_rank": effective_rank(features),
            **self._teacher(result.teacher),
            "lr": result.values.lr,
            "weight_decay": result.values.weight_decay,
            "momentum": result.values.momentum,
            "images_per_s": self._images / seconds,
            "step_s": seconds / self._steps,
            "data_wait_s": self._wait / self._steps,
            "sample_cost": segment.sample_cost,
            "speedup": self.plan.images_at(done) / self.plan.cost_at(done),
            "online": described["online"],
            "target": described["target"],
        }
        self._reset()
        return metrics

    @staticmethod
    def _teacher(seen: Teacher | None) -> dict[str, float | None]:
        if seen is None:
            return {"teacher_entropy": None, "prototypes_used": None}
        return {
            "teacher_entropy": float(distributed.average(seen.entropy)),
            "prototypes_used": prototypes_used(distributed.average(seen.mean)),
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time in this context out of every line."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began


def run_steps(
    trainer: Trainer,
    plan: Plan,
    loader: DecodedLoader,
    seed: int,
    first_step: int,
    stop_step: int,
    *,
    meter: Meter,
    error: RunningError | None,
    judge: Judge | None,
    log_every: int,
    save_every: int,
    log: Callable[[dict[str, Any]], None],
    log_later: Callable[[dict[str, Any]], None],
    save: Callable[[int], None],
    stop: Stop,
) -> int:
    """Train from ``first_step`` to ``stop_step``, or to where ``stop`` asks. A log line whose k-NN
    is given up for that goes to ``log_later``.

    Log lines, checkpoints and what is measured fall on multiples of their intervals, counted from
    step 0, so a resumed run writes the same ones. What the judge measures has a log line. The end
    is not saved.

    Returns:
        the number of updates done.
    """
    done = first_step
    waiting_since = time.perf_counter()
    source = batches(plan, loader, seed, first_step, stop_step)
    with prepared_ahead(source, trainer.inputs) as steps:
        for step, segment, batch in steps:
            wait = time.perf_counter() - waiting_since
            try:
                result = trainer.step(step, segment.views, batch)
            except (RuntimeError, MemoryError) as error:
                if said := out_of_memory(error, step, segment, trainer.method, trainer.device):
                    raise said from error
                raise
            done = step + 1
            meter.add(segment, result, wait)
            if error is not None and error.due(done, segment):
                with meter.paused():
                    error.measure(done, segment, plan.epochs_at(done))
            judged = judge is not None and judge.due(done)
            if judged or done % log_every == 0 or done == plan.steps:
                line = meter.line(done, segment, result)
                if error is not None:
                    line |= error.fields(segment)
                if judge is not None and judged:
                    with meter.paused():
                        knn = judge.measure(trainer.method.backbone, stop.asked)
                    if knn is None:
                        log_later(line)
                        break
                    line |= knn
                log(line)
            if done % save_every == 0:
                trainer.confirm()
                save(done)
            if stop.agreed():
                break
            waiting_since = time.perf_counter()
    trainer.confirm()
    return done
