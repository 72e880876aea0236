"""The quickstarts on the digits: accuracy, cost and time, beside the same epochs without
compression.

Trains each method's built-in quickstart and its counterpart (the same settings, its phases replaced
by one phase `full`), and judges both on the held-out digits by weighted k-NN, k = 20. Times are
those of training alone; give them the machine for themselves.

    python benchmarks/quickstarts.py [--methods moco dino] [--seeds 0 1 2] [--full-seeds 0]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import groupby
from pathlib import Path

from common import record, table
from runs import Outcome, train_and_judge, without_compression

from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.schedule import load
from fastcl_cli.train.device import choose_device

SCHEDULES = {"moco": "quickstart", "simclr": "quickstart_simclr", "dino": "quickstart_dino"}
HEADER = [
    "method", "schedule", "seed", "top-1", "mean over classes", "untrained top-1",
    "units", "training, s",
]  # fmt: skip


def row(method: str, schedule: str, seed: int, outcome: Outcome) -> list[str]:
    trained, untrained = outcome.rows[0], outcome.untrained[0]
    return [
        method,
        schedule,
        str(seed),
        f"{trained.top1:.3f}",
        f"{trained.mean_class:.3f}",
        f"{untrained.top1:.3f}",
        f"{outcome.units:,.0f}",
        f"{outcome.seconds:.0f}",
    ]


def summary(rows: list[list[str]]) -> str:
    """Means over the seeds, of each method's schedules."""
    lines = []
    for (method, schedule), group in groupby(rows, key=lambda cells: (cells[0], cells[1])):
        members = list(group)
        top1 = [float(cells[3]) for cells in members]
        seconds = statistics.mean(float(cells[7]) for cells in members)
        lines.append(
            f"- {method}, {schedule}: top-1 {statistics.mean(top1):.3f} "
            f"(least {min(top1):.3f}) of {len(top1)} seeds, {seconds:.0f} s"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--full-seeds", nargs="*", type=int, help="default: those of --seeds")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    full_seeds = options.seeds if options.full_seeds is None else options.full_seeds
    settings = ProbeSettings(k=(20,))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in options.methods:
            quick = load(SCHEDULES[method])
            for name, loaded, seeds in (
                ("quickstart", quick, options.seeds),
                ("full", without_compression(quick), full_seeds),
            ):
                for seed in seeds:
                    folder = Path(scratch) / f"{method} {name} {seed}"
                    outcome = train_and_judge(loaded, folder, seed, settings)
                    rows.append(row(method, name, seed, outcome))
                    print(" | ".join(rows[-1]), flush=True)
    body = f"{table(HEADER, rows)}\n\n{summary(rows)}"
    if options.record:
        record("Quickstarts on the digits, k-NN (k = 20)", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
