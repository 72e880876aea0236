"""What a search finds, and what its schedule is worth: on the digits, in minutes.

Searches from the settings of `quickstart`, then trains three schedules for several seeds: the one
found, no compression at all, and an `auto` phase over the same grid. Judged by weighted k-NN
(k = 20) on the held-out digits. ``--picture`` keeps the search's heat maps.

    python benchmarks/search.py [--seeds 0 1 2] [--stages 5] [--picture OUT.svg] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from common import record, table
from runs import Outcome, train_and_judge, without_compression

from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.events import Decided, Event
from fastcl_cli.files import write_text
from fastcl_cli.schedule import Loaded, load
from fastcl_cli.search.on_policy import SearchRequest, SearchResult, search
from fastcl_cli.search.texts import length_of, trial
from fastcl_cli.train.device import choose_device
from fastcl_cli.ui.search import picture

HEADER = ["schedule", "seed", "units", "of full", "training, s", "k-NN top-1", "untrained"]


def listen(event: Event) -> None:
    if isinstance(event, Decided):
        print(f"step {event.step}: {event.setting}: {event.why}", file=sys.stderr)


def found_in_words(result: SearchResult) -> str:
    cost = result.record["cost"]
    lines = [f"- {s.start!s}% to {s.end!s}%: `{s.words}`: {s.record['why']}" for s in result.stages]
    lines.append(
        f"- the search: {cost['seconds']:.0f} s; {cost['training_units']:,.0f} units for training, "
        f"{cost['measuring_units']:,.0f} for measuring"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="quickstart", help="schedule to start from")
    parser.add_argument("--grid", help="as `choices` has it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--picture", type=Path, help="where to write the heat maps")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    base = load(options.base, overrides=["knn=none"])
    settings = ProbeSettings(k=(20,))
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        request = SearchRequest(
            base, Path(scratch) / "found.fcs", options.grid,
            options.stages, options.groups, options.pairs,
        )  # fmt: skip
        result = search(request, listen)
        if options.picture is not None:
            write_text(options.picture, picture(result.record))
        print(result.schedule)
        schedules: dict[str, Loaded] = {
            "found": load(request.out),
            "full": without_compression(base),
            "auto": trial(base, options.grid, length_of(base)),
        }
        outcomes: dict[str, list[Outcome]] = {name: [] for name in schedules}
        for seed in options.seeds:
            for name, loaded in schedules.items():
                folder = Path(scratch) / f"{name} {seed}"
                outcomes[name].append(train_and_judge(loaded, folder, seed, settings))
                print(name, seed, outcomes[name][-1].rows[0].top1, file=sys.stderr)
    full = outcomes["full"][0].units
    for name, members in outcomes.items():
        for seed, outcome in zip(options.seeds, members, strict=True):
            rows.append(cells(name, str(seed), [outcome], full))
        rows.append(cells(name, f"mean of {len(members)}", members, full))
    body = f"{found_in_words(result)}\n\n{table(HEADER, rows)}"
    if options.record:
        title = f"Search and `auto` from {options.base}'s settings, k-NN (k = 20)"
        record(title, body, choose_device("float32"))
    else:
        print(body)


def cells(name: str, seed: str, members: list[Outcome], full: float) -> list[str]:
    units = statistics.mean(outcome.units for outcome in members)
    return [
        name,
        seed,
        f"{units:,.0f}",
        f"{units / full:.3f}",
        f"{statistics.mean(outcome.seconds for outcome in members):.0f}",
        f"{statistics.mean(outcome.rows[0].top1 for outcome in members):.3f}",
        f"{statistics.mean(outcome.untrained[0].top1 for outcome in members):.3f}",
    ]


if __name__ == "__main__":
    main()
