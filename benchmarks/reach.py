"""How soon a compressed schedule reaches the k-NN of no compression, on small labelled images.

Each method trains a small ViT without compression (`full`) and, for as many epochs and with the
same settings, compressed, weaker and weaker. Both are judged by k-NN on FOLDER/val along the way.
The mark is what `full` ends at, its mean over the seeds; the table has the units (uncompressed
forward passes) and the seconds of training at which a run first stands there. Rates should be the
best ones for `full`: compare several (--schedules full --lr moco=1e-3) before.

Runs are `fastcl run` in processes of their own; with --at-once, several share the machine, and
their seconds say less.

    python benchmarks/reach.py FOLDER [--methods moco simclr dino] [--epochs 60] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from common import record, table

from fastcl_cli.cost import units_per_image
from fastcl_cli.schedule import Loaded, compile_text
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.train.device import choose_device

COMMON = """
model vit_tiny_patch16_224 (embed_dim={width}, depth=6, num_heads={heads}, patch_size=8);
image 64;
data "{data}";
length {epochs} epochs;
batch {batch};
lr {lr};
warmup 10%;
knn 5%;
crop 0.3 1;
flip 0;
grayscale 0.1;
jitter 0.3 0.3 0.2 0.02 0.8;
"""
METHODS = {
    "moco": "method moco; momentum 0.99 -> 1; head 1024 128; blur 0.2 0.2; solarize 0 0;",
    "simclr": "method simclr; head 1024 128; blur 0.2 0.2;",
    "dino": "method dino; momentum 0.99 -> 1; head 1024 128 1024; head_norm on; locals 0 16;"
    " drop_path 0; blur 0.2 0.2 0; solarize 0 0 0;",
}
RATES = {"moco": "1e-3", "simclr": "1e-3", "dino": "1e-3"}
PHASES = {
    "full": "0%-100%: full;",
    "opt": "0%-60%: drop 0.5 patch 16; 60%-90%: patch 16; 90%-100%: full;",
}
HEADER = [
    "method", "lr", "schedule", "seed", "units", "training, s", "k-NN at the end", "the mark",
    "units to it", "of full's", "seconds to it", "of full's",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """A schedule of a method, and a seed."""

    method: str
    schedule: str
    seed: int


@dataclass(frozen=True, slots=True)
class Judged:
    """A run's k-NN after so many units and seconds of training."""

    units: float
    seconds: float
    top1: float


def compiled(run: Run, options: argparse.Namespace) -> Loaded:
    settings = COMMON.format(
        width=options.width,
        heads=options.width // 32,
        data=options.folder,
        epochs=options.epochs,
        batch=options.batch,
        lr=options.rates[run.method],
    )
    text = "\n".join([METHODS[run.method], settings, PHASES[run.schedule], ""])
    return compile_text(text, f"{run.method} {run.schedule}")


def train(run: Run, options: argparse.Namespace, scratch: Path) -> list[Judged]:
    """What k-NN said during a run, the end last."""
    loaded = compiled(run, options)
    name = f"{run.method}_{run.schedule}_{run.seed}"
    schedule, out = scratch / f"{name}.fcs", scratch / name
    schedule.write_text(loaded.text, encoding="utf-8")
    command = ["run", str(schedule), "--out", str(out), "--seed", str(run.seed), "--ui", "plain"]
    done = subprocess.run(
        [sys.executable, "-m", "fastcl_cli", *command], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return list(judged(out / "metrics.jsonl", loaded))


def judged(metrics: Path, loaded: Loaded) -> Iterator[Judged]:
    of_full = units_per_image(loaded.config, full_views(loaded.config))
    seconds, before = 0.0, 0
    for line in map(json.loads, metrics.read_text(encoding="utf-8").splitlines()):
        if "step_s" not in line:
            continue
        seconds += line["step_s"] * (line["step"] - before)
        before = line["step"]
        if "knn" in line:
            units = loaded.plan.cost_at(before) * of_full
            yield Judged(units, seconds, line["knn"]["top1"])


def rows_of(runs: dict[Run, list[Judged]], options: argparse.Namespace) -> list[list[str]]:
    rows = []
    for method in options.methods:
        ends = [j[-1] for run, j in runs.items() if (run.method, run.schedule) == (method, "full")]
        mark = statistics.mean(end.top1 for end in ends) if ends else math.nan
        units = statistics.mean(end.units for end in ends) if ends else math.nan
        seconds = statistics.mean(end.seconds for end in ends) if ends else math.nan
        for run, along in runs.items():
            if run.method != method:
                continue
            end = along[-1]
            there = next((each for each in along if each.top1 >= mark), None)
            reached = ["", "", "", ""]
            if there is not None:
                reached = [
                    f"{there.units:,.0f}", f"{there.units / units:.2f}",
                    f"{there.seconds:.1f}", f"{there.seconds / seconds:.2f}",
                ]  # fmt: skip
            cost = [f"{end.units:,.0f}", f"{end.seconds:.1f}", f"{end.top1:.3f}"]
            rate = options.rates[method]
            name = [method, rate, run.schedule, str(run.seed)]
            rows.append([*name, *cost, f"{mark:.3f}", *reached])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with train/ and val/, one sub-folder for each class")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--schedules", nargs="+", choices=PHASES, default=[*PHASES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=192, help="of the network, a multiple of 32")
    parser.add_argument("--lr", nargs="+", default=[], metavar="METHOD=RATE")
    parser.add_argument("--at-once", type=int, default=1, help="runs that share the machine")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    if not Path(options.folder, "val").is_dir():
        parser.error(f"{options.folder}: no folder with train/ and val/")
    options.rates = RATES | dict(each.split("=", 1) for each in options.lr)
    wanted = [Run(*each) for each in product(options.methods, options.schedules, options.seeds)]
    with (
        tempfile.TemporaryDirectory() as scratch,
        ThreadPoolExecutor(options.at_once) as pool,
    ):
        found = pool.map(lambda run: train(run, options, Path(scratch)), wanted)
        runs = dict(zip(wanted, found, strict=True))
    body = table(HEADER, rows_of(runs, options))
    body += f"\n\n{options.epochs} epochs, batch {options.batch}, {options.at_once} at once."
    if options.record:
        record("How soon a compressed schedule is where full ends", body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
