"""What measuring gradient errors costs in memory, and how far precision and probe batch move it.

- ``memory``: 24 settings of ViT-S/16 in one group, peak resident memory beside the vectors that
  the estimates need (the bytes of the trained parameters each);
- ``precision``: bias², variance and CA-MSE in bf16 over the same in float32, same pairs;
- ``batch``: CA-MSE predicted for the training batch from two probe batches, for MoCo-v3, whose
  InfoNCE and batch norm mix the images of a batch.

    python benchmarks/gradient_error.py memory|precision|batch [--record]
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import record, table

from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.gradient_error.estimators import GradientError, Mean
from fastcl_cli.gradient_error.paired import PairedGradients, measure
from fastcl_cli.schedule import load
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.search.texts import length_of, trial
from fastcl_cli.train.device import choose_device
from fastcl_cli.train.loop import batches
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session

GRID = "drop 0 0.25 0.5 0.75 patch 4 8"
VIT_S = "drop 0 0.2 0.4 0.5 0.6 0.75 patch 16 28 32 56"


def opened(base: str, grid: str, *overrides: str) -> Session:
    loaded = load(base, overrides=["knn=none", "gradient_error=none", *overrides], data="digits")
    return Session(RunRequest(trial(loaded, grid, length_of(loaded)), Path()), lambda event: None)


def resident() -> int:
    """Bytes of this process's memory that are in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak:
    """The most resident memory while it runs, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self.start = self.most = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.most = max(self.most, resident())
            time.sleep(0.005)

    @property
    def growth(self) -> int:
        return self.most - self.start


def memory() -> str:
    session = opened("moco_full", VIT_S, "batch=8", "precision=float32")
    rungs = ladder(session.config, 8)
    assert len(rungs) == 24
    gradients, full = session.estimates.gradients("memory", 4), full_views(session.config)
    vector = 4 * sum(p.numel() for p in session.method.trained().values())
    # One pair without a compressed setting: the model's activations, the loader, g and its sum.
    measure(gradients, full, [full], 0.0, groups=1, pairs=2)
    with Peak() as least:
        measure(gradients, full, [full], 0.0, groups=1, pairs=2, first=10)
    with Peak() as most:
        measure(gradients, full, [rung.views for rung in rungs], 0.0, groups=1, pairs=2, first=20)
    compressed = sum(rung.views != full for rung in rungs)
    extra = (most.growth - least.growth) / vector
    rows = [
        ["trained parameters", f"{vector / 4e6:.1f} million, {vector / 1e6:.0f} MB a vector"],
        ["settings", f"{len(rungs)}, {compressed} of them compressed"],
        ["growth with `full` alone", f"{least.growth / 1e6:,.0f} MB"],
        ["growth with all", f"{most.growth / 1e6:,.0f} MB"],
        ["difference in vectors", f"{extra:.1f}, {extra / compressed:.2f} a setting"],
    ]
    return table(["what", "figure"], rows)


def trained(steps: int) -> Session:
    """The quickstart's network after so many steps with its cheapest setting."""
    session = opened("quickstart", GRID)
    assert session.config.decode is not None
    loader = DecodedLoader(session.data, session.config.decode, session.device.threads)
    trainer = session.trainer()
    for step, segment, batch in batches(session.plan, loader, 0, 0, steps):
        trainer.step(step, segment.views, batch)
    return session


def compare(
    session: Session, sources: dict[str, tuple[PairedGradients, int]], batch: int
) -> dict[str, list[GradientError]]:
    rungs, full = ladder(session.config, batch), full_views(session.config)
    views = [rung.views for rung in rungs]
    epochs = session.plan.epochs_at(200)
    return {
        name: measure(gradients, full, views, epochs, groups=groups, pairs=4)
        for name, (gradients, groups) in sources.items()
    }


def rows_of(session: Session, found: dict[str, list[GradientError]], batch: int) -> list[list[str]]:
    rows = []
    for index, rung in enumerate(ladder(session.config, batch)):
        name = f"drop {float(rung.online.drop):g} patch {rung.online.patch}"
        cells = [name]
        for errors in found.values():
            error = errors[index]
            for values in (error.bias2, error.variance, error.ca_mse(rung.sample_cost, batch)):
                mean = Mean.of(values)
                cells.append(f"{mean.value:.3g} ± {mean.error or 0:.2g}")
        rows.append(cells)
    return rows


def precision() -> str:
    session = trained(200)
    bf16 = type(session.device)(session.device.device, "bf16", session.device.threads)
    sources = {}
    for name, device in {"float32": session.device, "bf16": bf16}.items():
        gradients = session.estimates.gradients("precision", 64)
        gradients.device = device
        sources[name] = (gradients, 8)
    found = compare(session, sources, session.config.batch)
    header = ["setting", *(f"{name} {figure}" for name in found for figure in FIGURES)]
    return table(header, rows_of(session, found, session.config.batch))


FIGURES = ("bias²", "variance", "CA-MSE")


def batch() -> str:
    session = trained(200)
    sources = {
        f"b = {b}": (session.estimates.gradients("batch", b), 1024 // b) for b in (16, 32, 64, 128)
    }
    found = compare(session, sources, session.config.batch)
    header = ["setting", *(f"{name} {figure}" for name in found for figure in FIGURES)]
    return table(header, rows_of(session, found, session.config.batch))


QUESTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "memory": ("Memory of measuring 24 settings of ViT-S/16", memory),
    "precision": ("Gradient error in bf16 and in float32, quickstart after 200 steps", precision),
    "batch": ("Gradient error from four probe batches, for training with 128", batch),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=list(QUESTIONS))
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    device = choose_device("float32")
    torch.set_num_threads(device.threads)
    title, answer = QUESTIONS[options.question]
    body = answer()
    if options.record:
        record(title, body, device)
    else:
        print(body)


if __name__ == "__main__":
    main()
