"""What the benchmarks share: the machine in words, interleaved timing, and RESULTS.md."""

from __future__ import annotations

import datetime
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import timm
import torch

from fastcl_cli.estimate.clocks import AnalyticClock
from fastcl_cli.estimate.devices import DEVICES
from fastcl_cli.estimate.estimate import estimate, fit
from fastcl_cli.schedule import compile_text, load
from fastcl_cli.train.device import Device
from fastcl_cli.units import parse_budget

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


def interleaved(work: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median seconds of each piece of work, run in turn so that the machine's drift hits all.

    One round that is not counted goes first.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repetitions + 1):
        for name, call in work.items():
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(taken) for name, taken in times.items()}


def shortened(name: str, settings: Mapping[str, str], share: float) -> str:
    """The text of a built-in schedule with other settings, all its phases but ``share`` of their
    length (whole epochs)."""
    kept = [line for line in load(name).text.splitlines() if line.split(" ")[0] not in settings]
    own = "".join(f"{key} {value};\n" for key, value in settings.items())
    whole = compile_text(own + "\n".join(kept), name)
    clock = AnalyticClock(DEVICES["a100"])  # which one is all the same to a budget in units
    units = estimate(whole, parse_budget("1units"), clock, named=True).units
    units *= share * (1 + 1e-6)  # so that rounding takes no epoch away
    return fit(whole, parse_budget(f"{units:.9g}units"), clock)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def record(title: str, body: str, device: Device) -> None:
    """Print a result, and append it to RESULTS.md with its command, machine and versions."""
    print(body)
    command = " ".join(["python", *sys.argv])
    stamp = datetime.date.today().isoformat()
    where = f"{device.name}, {device.precision}, torch {torch.__version__}, timm {timm.__version__}"
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(f"\n## {title}\n\n`{command}`, {stamp}, {where}\n\n{body}\n")
