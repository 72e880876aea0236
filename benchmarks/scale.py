"""Time and memory of what grows with a data set or a run: ten times as much should take ten times.

- A beton of so many records, all of one small JPEG: to open it, to draw an epoch's order, to
  compile a loader for it and to decode a first batch of 256 from the order's start.
- Lines of metrics a second, from a step's numbers to the file.

Each size is measured in a process of its own, whose peak memory is that of its work.

    python benchmarks/scale.py [--records 100000 1000000 10000000] [--lines 100000] [--record]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import record, table
from PIL import Image

from fastcl_cli.data.beton import ALLOCATION, FIELD, HEADER, IMAGE, IMAGE_TYPE, INT_TYPE, VERSION
from fastcl_cli.data.beton import open_beton as open_it
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.order import epoch_order
from fastcl_cli.train.device import choose_device
from fastcl_cli.train.folder import RunFolder

SIDE = 64


def write(path: Path, count: int) -> None:
    """A beton whose records all point at one image."""
    buffer = io.BytesIO()
    Image.effect_noise((SIDE, SIDE), 50).convert("RGB").save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    fields = np.zeros(2, FIELD)
    kinds = [(b"image", IMAGE_TYPE), (b"label", INT_TYPE)]
    for row, (name, kind) in zip(fields, kinds, strict=True):
        row["type_id"], row["name"][: len(name)] = kind, np.frombuffer(name, np.uint8)
    metadata = np.zeros(count, np.dtype([("", IMAGE), ("", "<i8")], align=True))
    at = HEADER.itemsize + fields.nbytes + metadata.nbytes
    metadata["f0"]["width"] = metadata["f0"]["height"] = SIDE
    metadata["f0"]["data_ptr"] = at
    allocations = np.zeros(count, ALLOCATION)
    allocations["sample_id"], allocations["ptr"] = np.arange(count), at
    allocations["size"] = len(jpeg)
    header = np.zeros(1, HEADER)
    header["version"], header["num_fields"], header["page_size"] = VERSION, 2, 1 << 23
    header["num_samples"], header["alloc_table_ptr"] = count, at + len(jpeg)
    with path.open("wb") as file:
        for part in (header, fields, metadata):
            file.write(part.tobytes())
        file.write(jpeg)
        file.write(allocations.tobytes())


def measure(small: Path, path: Path) -> dict[str, float]:
    """Seconds of each piece of work, and the peak of memory in MB."""
    DecodedLoader(open_it(small), SIDE, 1)  # libraries are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = {"before, MB": before / 1024}
    marks = [time.perf_counter()]

    def lap(name: str) -> None:
        marks.append(time.perf_counter())
        times[name] = marks[-1] - marks[-2]

    beton = open_it(path)
    lap("open, s")
    order = epoch_order(beton.images, 0, 0)
    lap("order, s")
    loader = DecodedLoader(beton, SIDE, 1)
    lap("loader, s")
    with loader.stream(order, 256) as batches:
        next(batches)
        lap("first batch, s")
    times["peak, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return times


def lines_per_second(folder: Path, lines: int) -> float:
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.create()
    line = {f"figure {i}": i / 7 for i in range(30)}
    since = time.perf_counter()
    for step in range(lines):
        run.append_metrics({"step": step, **line})
    return lines / (time.perf_counter() - since)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", nargs="+", type=int, default=[10**5, 10**6, 10**7])
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(*options.measure)))
        return
    rows: list[list[str]] = []
    header: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "small.beton"
        write(small, 10)
        for count in options.records:
            path = Path(scratch) / "records.beton"
            write(path, count)
            command = [sys.executable, __file__, "--measure", str(small), str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout)
            header = ["records", *found]
            rows.append([f"{count:,}", *(f"{value:.2f}" for value in found.values())])
            path.unlink()
        rate = lines_per_second(Path(scratch) / "run", options.lines)
    body = f"{table(header, rows)}\n\nMetrics: {rate:,.0f} lines a second."
    if options.record:
        record("Data sets of many records, and lines of metrics", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
