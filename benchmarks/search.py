"""What a search finds, and what its schedule is worth: on the digits, in minutes.

Searches from the settings of `quickstart`, then trains three schedules for several seeds: the one
found, no compression at all, and an `auto` phase over the same grid. Judged by weighted k-NN
(k = 20) on the held-out digits. ``--epochs`` makes the runs of the first and the last shorter, so
that all that is compared costs what it should. The search is `fastcl search`, timed as users run
it; ``--found`` takes one that was made before, with its JSON beside it.

    python benchmarks/search.py [--set batch=32 lr=1e-3] [--found OUT.fcs] [--schedules found auto]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from common import record, table
from runs import Outcome, train_and_judge, without_compression

from fastcl_cli.cost import units_per_image
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.schedule import Loaded, load
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.search.texts import length_of, trial
from fastcl_cli.train.device import choose_device
from fastcl_cli.units import format_decimal

SCHEDULES = ["found", "full", "auto"]
HEADER = [
    "schedule",
    "epochs",
    "seed",
    "units",
    "of full",
    "training, s",
    "k-NN top-1",
    "untrained",
]


def found_in_words(result: Mapping[str, Any]) -> str:
    cost = result["cost"]
    lines = [
        f"- {stage['start']:g}% to {stage['end']:g}%: `{stage['setting']}`: {stage['why']}"
        for stage in result["stages"]
    ]
    lines.append(
        f"- the search: {cost['seconds']:.0f} s; {cost['training_units']:,.0f} units for training, "
        f"{cost['measuring_units']:,.0f} for measuring"
    )
    return "\n".join(lines)


def search(options: argparse.Namespace, out: Path) -> None:
    grid = [] if options.grid is None else ["--grid", options.grid]
    counts = ["--stages", options.stages, "--groups", options.groups, "--pairs", options.pairs]
    settings = [word for setting in options.set for word in ("--set", setting)]
    command = ["-m", "fastcl_cli", "search", options.base, *settings, "--out", out]
    subprocess.run([sys.executable, *map(str, [*command, *counts, *grid])], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="quickstart", help="schedule to start from")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE")
    parser.add_argument("--grid", help="as `choices` has it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--groups", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--found", type=Path, help="schedule of a search made before")
    parser.add_argument("--epochs", type=Fraction, help="of `found` and `auto`")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    options.set.append("knn=none")
    base = load(options.base, overrides=options.set)
    settings = ProbeSettings(k=(20,))
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        found = options.found or Path(scratch) / "found.fcs"
        if options.found is None:
            search(options, found)
        result = json.loads(found.with_suffix(".json").read_text(encoding="utf-8"))
        epochs = options.epochs or length_of(base)
        schedules: dict[str, Loaded] = {
            "found": load(str(found), overrides=[f"length={format_decimal(epochs)} epochs"]),
            "full": without_compression(base),
            "auto": trial(base, options.grid, epochs),
        }
        for name in options.schedules:
            outcomes: list[Outcome] = []
            for seed in options.seeds:
                folder = Path(scratch) / f"{name} {seed}"
                outcomes.append(train_and_judge(schedules[name], folder, seed, settings))
                rows.append(cells(name, str(seed), outcomes[-1:], base))
                print(" | ".join(rows[-1]), flush=True)
            rows.append(cells(name, f"mean of {len(outcomes)}", outcomes, base))
    body = f"{found_in_words(result)}\n\n{table(HEADER, rows)}"
    if options.record:
        title = f"Search and `auto` from {options.base}'s settings, k-NN (k = 20)"
        record(title, body, choose_device("float32"))
    else:
        print(body)


def cells(name: str, seed: str, members: list[Outcome], base: Loaded) -> list[str]:
    plan = base.plan
    full = plan.images_at(plan.steps) * units_per_image(base.config, full_views(base.config))
    units = statistics.mean(outcome.units for outcome in members)
    return [
        name,
        f"{statistics.mean(outcome.epochs for outcome in members):g}",
        seed,
        f"{units:,.0f}",
        f"{units / full:.3f}",
        f"{statistics.mean(outcome.seconds for outcome in members):.0f}",
        f"{statistics.mean(outcome.rows[0].top1 for outcome in members):.3f}",
        f"{statistics.mean(outcome.untrained[0].top1 for outcome in members):.3f}",
    ]


if __name__ == "__main__":
    main()
