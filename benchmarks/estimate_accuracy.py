"""What `fastcl estimate` says from a profile, against runs that were timed beside it.

For each quickstart, as it is and without compression, every round measures a profile and runs both,
each in a process of its own (as users start them), so that the machine's drift hits all alike. A
predicted time is of the round's own profile. Schedules are shortened to --share of their length,
of which start-up is a large part where that is little: --share 1 is the quickstart itself. Without
compression that takes four times as long; --alone leaves those runs out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import record, table

from fastcl_cli.estimate.clocks import ProfileClock
from fastcl_cli.estimate.estimate import estimate
from fastcl_cli.estimate.profile_file import read_profile
from fastcl_cli.schedule import load
from fastcl_cli.schedule.grid import settings_text
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.train.device import choose_device
from fastcl_cli.units import format_decimal, parse_budget

RUN = """
import sys
from pathlib import Path
from fastcl_cli.events import RunFinished
from fastcl_cli.schedule import compile_text, load
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session
events = []
Session(RunRequest(load(sys.argv[1]), Path(sys.argv[2]), overwrite=True), events.append).train()
print(next(event.seconds for event in events if isinstance(event, RunFinished)))
"""


def call(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return result.stdout


def measure(file: Path, repetitions: int, seconds: float) -> ProfileClock:
    """A profile from a process of its own; it holds no compression too."""
    path = file.with_suffix(".json")
    options = ["--repetitions", str(repetitions), "--seconds", str(seconds)]
    call("-m", "fastcl_cli", "bench", str(file), "--out", str(path), *options)
    return ProfileClock(path, read_profile(path))


def predicted(file: Path, clock: ProfileClock) -> float:
    """Seconds of a whole run."""
    return 3600 * estimate(load(file), parse_budget("1gpuh"), clock, named=True).gpu_hours


def actual(file: Path) -> float:
    return float(call("-c", RUN, str(file), str(file.with_suffix(""))))


def files(name: str, share: float, folder: Path) -> tuple[Path, Path]:
    """A share of each phase of a quickstart, in steps, and as many steps without compression."""
    loaded = load(name, overrides=["knn=none"])
    phases, done = [], 0
    for segment in loaded.plan.segments:
        begin, drop = done, format_decimal(segment.online.drop)
        done += max(1, round(share * (segment.end_step - segment.first_step)))
        phases.append(f"steps {begin}-{done}: drop {drop} patch {segment.online.patch};")
    settings = settings_text(loaded, {"length"})
    paths = folder / f"{name}.fcs", folder / f"{name}_full.fcs"
    for path, lines in zip(paths, (phases, [f"steps 0-{done}: full;"]), strict=True):
        path.write_text("\n".join([settings, *lines, ""]), encoding="utf-8")
    return paths


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def row(name: str, steps: int, found: list[tuple[float, ...]]) -> dict[str, str]:
    """A schedule's row; ``found`` holds (predicted, actual) of each round, and the same of full."""
    cells = {
        "schedule": name,
        "steps": f"{steps}",
        "run, s": f"{statistics.median(took for _, took, *_ in found):.1f}",
        "predicted / run": spread([told / took for told, took, *_ in found]),
    }
    if len(found[0]) == 4:
        cells |= {
            "full, s": f"{statistics.median(d for *_, d in found):.1f}",
            "predicted / full": spread([c / d for *_, c, d in found]),
            "speed-up predicted / real": spread([(c / a) / (d / b) for a, b, c, d in found]),
        }
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    quickstarts = [name for name in builtin_schedules() if name.startswith("quickstart")]
    parser.add_argument("--schedules", nargs="+", default=quickstarts)
    parser.add_argument("--repetitions", type=int, default=5, help="rounds")
    parser.add_argument("--share", type=float, default=0.1, help="of the schedule's length")
    parser.add_argument("--alone", action="store_true", help="no runs without compression")
    parser.add_argument("--timings", type=int, default=3, help="repetitions of each profile")
    parser.add_argument("--seconds", type=float, default=0.7, help="of a timing")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTCL_CACHE"] = folder
        pairs = {name: files(name, options.share, Path(folder)) for name in options.schedules}
        steps = {name: load(file).plan.steps for name, (file, _) in pairs.items()}
        times: dict[str, list[tuple[float, ...]]] = {name: [] for name in pairs}
        for round_ in range(options.repetitions):
            for name, (file, full) in pairs.items():
                clock = measure(file, options.timings, options.seconds)
                one: tuple[float, ...] = predicted(file, clock), actual(file)
                if not options.alone:
                    one += predicted(full, clock), actual(full)
                times[name].append(one)
                print(f"round {round_ + 1}, {name}: {one}", file=sys.stderr, flush=True)
    rows = [row(name, steps[name], found) for name, found in times.items()]
    body = table(list(rows[0]), [list(cells.values()) for cells in rows])
    body += f"\n\nMedian (least-greatest) of {options.repetitions} rounds."
    if options.record:
        record("Estimates from a measured profile", body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
