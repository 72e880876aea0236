"""Where a training step's time goes, part by part, and how a phase begins.

Parts: making the views; the loss (both encoders and heads) and its gradient; update and average.
On a GPU by its own clock, each with the processor's time to give it that work. Whole steps of every
setting go before, one after the other as in a run: how much longer its first ones take shows what a
change of phase costs, and, on a GPU, torch's debug mode tells how often steps wait for it.
``--plain`` takes steps that are launched kernel by kernel there, not recorded.

    python benchmarks/parts.py [--bases moco_full] [--settings 'drop 0.5 patch 32' full] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import record, table
from step import SETTINGS, with_settings

from fastcl_cli.plan import Segment
from fastcl_cli.schedule import load
from fastcl_cli.train.ahead import Step, prepared_ahead
from fastcl_cli.train.bench import Bench, BenchRequest
from fastcl_cli.train.device import choose_device
from fastcl_cli.train.loop import batches
from fastcl_cli.train.step import Trainer

PARTS = ["views", "gradient", "update"]
HEADER = [
    "recipe", "setting", "cost", "whole, ms", "ideal / whole", *PARTS, "views + update",
    "processor, ms", "beginning, ms", "waits",
]  # fmt: skip
REPETITIONS = 7
STEPS = 12


class Clock:
    """Times between marks: the device's own, and the processor's until it had given the work."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._marks: list[tuple[float, Any]] = []

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True) if self._cuda else None
        if event is not None:
            event.record()
        self._marks.append((time.perf_counter(), event))

    def parts(self) -> tuple[list[float], float]:
        """Milliseconds of each part, and the processor's of all."""
        if self._cuda:
            torch.cuda.synchronize()
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        host = [1000 * (b[0] - a[0]) for a, b in pairs]
        if not self._cuda:
            return host, sum(host)
        return [a[1].elapsed_time(b[1]) for a, b in pairs], sum(host)


def in_parts(trainer: Trainer, item: Step) -> tuple[list[float], float]:
    """One step's parts, in the order of `Trainer.step`."""
    step, segment, batch = item
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clock = Clock()
    clock.mark()
    online, target = trainer.inputs(step, segment.views, batch)
    clock.mark()
    values = trainer.schedules.at(step)
    loss = trainer.differentiated(online, target, values.epochs)
    clock.mark()
    trainer.update(values, loss)
    clock.mark()
    return clock.parts()


def waits(work: Callable[[], object]) -> int:
    """How often this thread waits for the GPU during ``work``."""
    if not torch.cuda.is_available():
        work()
        return 0
    main, count = threading.get_ident(), 0

    def note(message: object, *arguments: object, **named: object) -> None:
        nonlocal count
        count += threading.get_ident() == main and "synchronizing" in str(message)

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        work()
    torch.cuda.set_sync_debug_mode("default")
    return count


class Setting:
    """The steps of one setting, of a trainer that all share."""

    def __init__(self, bench: Bench, segment: Segment) -> None:
        self._bench, self._next = bench, segment.first_step

    def steps(self, work: Callable[[Step], object], count: int) -> None:
        """Do ``work`` for so many steps' batches."""
        first, self._next = self._next, self._next + count
        source = batches(self._bench.plan, self._bench.loader, 0, first, first + 10 * count)
        with prepared_ahead(source, self._bench.trainer.inputs) as ahead:
            for _ in range(count):
                work(next(ahead))

    def train(self, count: int) -> None:
        """So many ordinary steps, all given to the device but not waited for."""
        trainer = self._bench.trainer
        self.steps(lambda item: trainer.step(item[0], item[1].views, item[2]), count)

    def seconds(self, count: int) -> float:
        """Of a step, the mean over so many, their batches at hand."""
        trainer = self._bench.trainer

        def work(item: Step) -> None:
            nonlocal begun
            if begun is None:
                synchronise()
                begun = time.perf_counter()
            trainer.step(item[0], item[1].views, item[2])

        begun: float | None = None
        self.steps(work, count)
        synchronise()
        assert begun is not None
        return (time.perf_counter() - begun) / count

    def row(self) -> tuple[float, list[str]]:
        """Seconds of a whole step, and what the table has after the ratio to the ideal."""
        trainer = self._bench.trainer
        first = trainer.differentiated.settling
        begun = self.seconds(first) * first
        waited = waits(lambda: self.train(STEPS))
        whole = self.seconds(STEPS)
        taken: list[tuple[list[float], float]] = []
        self.steps(lambda item: taken.append(in_parts(trainer, item)), REPETITIONS)
        medians = [statistics.median(each) for each in zip(*(p for p, _ in taken), strict=True)]
        return whole, [
            *(f"{part:,.1f}" for part in medians),
            f"{(medians[0] + medians[2]) / sum(medians):.1%}",
            f"{statistics.median(host for _, host in taken):,.1f}",
            f"{1000 * (begun - first * whole):,.0f}",
            f"{waited} in {STEPS} steps",
        ]


def rows_of(name: str, options: argparse.Namespace, scratch: Path) -> list[list[str]]:
    base = load(name)
    settings = options.settings or SETTINGS[base.config.method]
    loaded = with_settings(base, settings, options.batch, options.model)
    bench = Bench(BenchRequest(loaded.config, loaded.plan.segments, 1, 1.0, scratch), None)
    bench.compile(print)
    if options.plain:
        bench.trainer.differentiated.recorder = None
    ways = [Setting(bench, segment).row() for segment in bench.plan.segments]
    full, rows = ways[-1][0], []
    for words, segment, (whole, rest) in zip(settings, bench.plan.segments, ways, strict=True):
        ideal = full * segment.sample_cost
        figures = [f"{segment.sample_cost:.3f}", f"{1000 * whole:,.1f}", f"{ideal / whole:.2f}"]
        rows.append([name, words, *figures, *rest])
    return rows


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=["moco_full", "dino_full"])
    parser.add_argument("--settings", nargs="+", help="as phases have them; `full` comes last")
    parser.add_argument("--plain", action="store_true", help="steps are not recorded")
    parser.add_argument("--model", help="in place of the recipes' own")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.bases:
            rows += rows_of(name, options, Path(scratch))
    body = table(HEADER, rows) + (
        f"\n\nBatch {options.batch}, images in memory. Parts are medians of {REPETITIONS} steps "
        f"taken apart, the whole a mean of {STEPS} ordinary ones; the beginning is how much longer "
        "the setting's first steps took."
    )
    if options.record:
        record("Where a step's time goes", body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
