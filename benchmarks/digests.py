"""What it costs to check every image's checksum as it is decoded, and every tensor's digest as a
checkpoint is written or read.

    python benchmarks/digests.py --record
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import record, table
from safetensors.torch import save_file

from fastcl_cli.checkpoint.file import digest_of
from fastcl_cli.data.beton import open_beton, read_records
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.train.device import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from data_photos import write_beton

IMAGES, PASSES, SIDE = 200, 5, 128


def decoding(folder: Path, rounds: int) -> tuple[float, list[float], list[float]]:
    """Mean bytes of an image, and microseconds of processor time for one, with and without the
    check, in turn."""
    beton = open_beton(write_beton(folder / "photos.beton", IMAGES))
    loader = DecodedLoader(beton, SIDE, 1)
    checksums = loader._files.reader.metadata["f0"]["checksum"]
    known, none = checksums.copy(), np.zeros_like(checksums)
    order = np.tile(np.arange(IMAGES), PASSES)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for values, found in zip((known, none), times, strict=True):
            checksums[:] = values
            began = time.process_time()
            with loader.stream(order, 100) as batches:
                for _ in batches:
                    pass
            if number >= 0:
                found.append((time.process_time() - began) / len(order) * 1e6)
    return float(read_records(beton.shards[0]).sizes.mean()), *times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        size, checked, plain = decoding(Path(name), asked.rounds)
        tensors = {str(i): torch.randn(1_000_000) for i in range(50)}
        digest, save = [], []
        for _ in range(7):
            for work, found in (
                (lambda: digest_of({}, tensors), digest),
                (lambda: save_file(tensors, Path(name) / "x"), save),
            ):
                began = time.process_time()
                work()
                found.append(time.process_time() - began)
    pairs = [a - b for a, b in zip(checked, plain, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4)
    body = table(
        ["what, in processor time", "figure"],
        [
            [
                f"decode a JPEG of {size / 1000:.0f} kB to {SIDE} pixels",
                f"{statistics.median(plain):.0f} µs",
            ],
            [
                "difference that the checksum makes: median (quartiles) of pairs",
                f"{middle:.1f} µs ({low:.1f} to {high:.1f})",
            ],
            ["SHA-256 over 200 MB of weights", f"{statistics.median(digest):.3f} s"],
            ["safetensors writes them (to the page cache)", f"{statistics.median(save):.3f} s"],
        ],
    )
    if asked.record:
        record("What digests cost", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
