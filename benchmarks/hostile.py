"""Damaged and hostile files by the thousand: each refused in words, or what it was before.

tests/hostile.py says what is done to them, tests/test_schedule_fuzz.py to schedules; this is the
long form. Ten minutes of one core.

    nice python benchmarks/hostile.py --record
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from common import record, table

from fastcl_cli.train.device import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import hostile
from test_schedule_fuzz import examine, mutate


def schedules(count: int, seed: int) -> hostile.Tally:
    """Mutated schedules; what is accepted must survive formatting unchanged."""
    draw, tally = random.Random(seed), hostile.Tally()
    for _ in range(count):
        tally["accepted" if examine(mutate(draw)).valid else "refused"] += 1
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000, help="of each kind")
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good = hostile.make_good(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for what, work in {
            "checkpoints and backbones": hostile.checkpoints,
            "betons": hostile.betons,
            "config.json, metrics, profiles, sidecars": hostile.run_files,
        }.items():
            began = time.process_time()
            tally = work(folder, good, asked.files, asked.seed)
            rows.append((what, tally, time.process_time() - began))
            print(*rows[-1], file=sys.stderr, flush=True)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    began = time.process_time()
    rows.append(("schedules", schedules(asked.schedules, asked.seed), time.process_time() - began))
    body = table(
        ["files", "mutated", "refused in words", "accepted, and what they were", "processor s"],
        [
            [
                what,
                f"{tally.total():,}",
                f"{tally['refused']:,}",
                f"{tally['accepted']:,}",
                f"{s:.0f}",
            ]
            for what, tally, s in rows
        ],
    )
    body += (
        f"\n\nNo traceback, no hang; the process grew by {grown:,.0f} MB over all but schedules."
    )
    if asked.record:
        record("Hostile files", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
