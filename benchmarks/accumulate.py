"""What `accumulate` saves and costs: memory and time of loss and gradient, the batch in N parts.

    python benchmarks/accumulate.py [--parts 1 4 16] [--batch 32] [--depth 6] [--record]

Each number of parts is measured in a process of its own: an allocator keeps what it once had.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from common import record, table
from dino_head import peak_megabytes

from fastcl_cli.methods.base import Input
from fastcl_cli.methods.build import build_method
from fastcl_cli.schedule import compile_text
from fastcl_cli.train.device import choose_device

SCHEDULE = """
method moco; model vit_tiny_patch16_224 (depth={depth}); head 256 64; accumulate {parts};
epochs 0-1: full;
"""


def measure(parts: int, batch: int, depth: int) -> None:
    """Print peak megabytes above the start and the processor's seconds."""
    device = choose_device("auto")
    torch.set_num_threads(device.threads)
    config = compile_text(SCHEDULE.format(parts=parts, depth=depth)).config
    method = build_method(config, 0).to(device.device)

    def gradient(images: int) -> None:
        views = [Input(torch.randn(images, 3, 224, 224, device=device.device)) for _ in range(2)]
        with device.autocast():
            loss = method.loss(views, views, 0.0).value
        loss.backward()

    gradient(2)
    since = time.process_time()
    memory = peak_megabytes(lambda: gradient(batch), device)
    print(memory, time.process_time() - since)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = ["--batch", str(options.batch), "--depth", str(options.depth)]
    if options.alone is not None:
        measure(options.alone, options.batch, options.depth)
        return
    rows = []
    for parts in options.parts:
        command = [sys.executable, __file__, "--alone", str(parts), *size]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        memory, seconds = map(float, found.split())
        rows.append([str(parts), f"{memory:,.0f}", f"{seconds:.1f}"])
    body = table(["parts", "peak MB above the start", "processor time, s"], rows)
    title = f"accumulate: MoCo-v3, ViT-Ti of {options.depth} blocks, {options.batch} images"
    if options.record:
        record(title, body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
