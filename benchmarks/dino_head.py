"""What DINO's prototypes cost: time and memory of head and loss, forward and backward.

Compares `PrototypeLoss`, which makes the gradient where the logits are, with the same loss written
as plain tensor operations for autograd to reverse. Ten views, 65,536 prototypes.

    python benchmarks/dino_head.py [--repetitions 5] [--record]
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleaved, record, table
from torch import Tensor

from fastcl_cli.methods.dino import DinoHead, PrototypeLoss
from fastcl_cli.train.device import Device, choose_device

VIEWS, WIDTH, HIDDEN, BOTTLENECK, PROTOTYPES, T = 10, 384, 2048, 256, 65536, 0.1


def plain(student: Tensor, prototypes: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Algorithm 1 of the paper with multi-crop, as it is written."""
    predicted = ((student @ prototypes.T).float() / temperature).log_softmax(2)
    terms = [
        -(teacher[i] * predicted[j]).sum(1).mean()
        for i in range(2)
        for j in range(len(student))
        if i != j
    ]
    return torch.stack(terms).mean()


def step(
    loss: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    head: DinoHead,
    features: Tensor,
    teacher: Tensor,
    device: Device,
) -> None:
    head.zero_grad(set_to_none=True)
    with device.autocast():
        student = torch.stack([head(x) for x in features])
        loss(student, head.prototypes, teacher, T).backward()


def peak_megabytes(work: Callable[[], object], device: Device) -> float:
    """Most memory in use during ``work`` above what was in use before it."""
    if device.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # On the CPU: the resident size, sampled every millisecond.
    page, sizes, done = 4096, [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
            time.sleep(0.001)

    before = int(Path("/proc/self/statm").read_text().split()[1]) * page
    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return (max(sizes) - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    device = choose_device("auto")
    torch.set_num_threads(device.threads)
    torch.manual_seed(0)
    head = DinoHead(WIDTH, HIDDEN, BOTTLENECK, PROTOTYPES, False, True).to(device.device)
    rows = []
    for batch in options.batches:
        features = torch.randn(VIEWS, batch, WIDTH, device=device.device)
        teacher = torch.randn(2, batch, PROTOTYPES, device=device.device).softmax(2)
        work = {
            "PrototypeLoss": lambda f=features, t=teacher: step(
                PrototypeLoss.apply, head, f, t, device
            ),
            "plain autograd": lambda f=features, t=teacher: step(plain, head, f, t, device),
        }
        memory = {name: peak_megabytes(call, device) for name, call in work.items()}
        for name, seconds in interleaved(work, options.repetitions).items():
            rows.append([str(batch), name, f"{seconds * 1000:,.0f}", f"{memory[name]:,.0f}"])
    body = table(["batch", "loss", "head + loss, ms", "peak MB above the start"], rows)
    if options.record:
        record("DINO's head and loss, 10 views, 65,536 prototypes", body, device)
    else:
        print(body)


if __name__ == "__main__":
    main()
