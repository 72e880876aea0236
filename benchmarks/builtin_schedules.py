"""Every built-in schedule with its real model and image, 20 steps through all its phases: plan,
estimate and run must agree on tokens and sample cost; the times show what the phases gain here.

The batch is small (--batch) and an epoch is one step. On two cores about ten minutes at batch 4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import record, shortened, table
from PIL import Image

from fastcl_cli.data.builtin import digits
from fastcl_cli.data.pack import pack
from fastcl_cli.estimate.clocks import AnalyticClock
from fastcl_cli.estimate.devices import DEVICES
from fastcl_cli.estimate.estimate import estimate
from fastcl_cli.schedule import Loaded, compile_text, load
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.train.device import choose_device
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session
from fastcl_cli.units import parse_budget


def images(folder: Path, count: int) -> Path:
    """A file of so many images."""
    pictures = folder / "images"
    pictures.mkdir()
    for number, pixels in enumerate(digits("train").pixels[:count]):
        Image.fromarray(pixels).save(pictures / f"{number:04}.png")
    pack(str(pictures), folder / "train.beton")
    return folder / "train.beton"


def train(item: Loaded, out: Path) -> list[dict[str, Any]]:
    """The metrics of every step."""
    request = RunRequest(item, out, log_every=1, save_every=item.plan.steps)
    Session(request, lambda event: None).train()
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def compare(item: Loaded, lines: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each segment.

    Raises:
        AssertionError: plan, estimate and run differ.
    """
    clock = AnalyticClock(DEVICES["a100"])
    result = estimate(item, parse_budget("1gpuh"), clock, named=True)
    assert abs(lines[-1]["speedup"] / result.speedup - 1) < 1e-9
    rows = []
    for number, timed in enumerate(result.segments, 1):
        segment, said = timed.segment, timed.to_json()
        own = lines[segment.first_step : segment.end_step]
        for line in own:
            for key in ("online", "target", "batch", "sample_cost"):
                assert line[key] == said[key] == segment.to_json()[key], (item.name, key)
        # The first step of a segment allocates its buffers.
        seconds = statistics.median(line["step_s"] for line in own[1:] or own)
        target = "–" if said["target"] is None else str(said["target"]["tokens"])
        tokens = f"{said['online']['tokens']} / {target}"
        cells = [f"{number}", f"{len(own)}", tokens, f"{said['sample_cost']:.3f}"]
        rows.append([item.name, *cells, f"{1000 * seconds:,.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", nargs="+", default=list(builtin_schedules()))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = images(Path(folder), options.batch)
        settings = {"batch": str(options.batch), "data": f'"{data}"'}
        for name in options.schedules:
            share = options.steps / load(name).plan.epochs
            item = compile_text(shortened(name, settings, share), name)
            since = time.perf_counter()
            rows += compare(item, train(item, Path(folder) / name))
            print(f"{name}: {time.perf_counter() - since:.0f} s", file=sys.stderr, flush=True)
    header = ["schedule", "segment", "steps", "tokens online / target", "sample cost", "ms/step"]
    body = table(header, rows) + (
        f"\n\nBatch {options.batch}. Plan, estimate and run agree on tokens and sample cost in "
        "every step."
    )
    if options.record:
        record("Built-in schedules at their real size", body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
