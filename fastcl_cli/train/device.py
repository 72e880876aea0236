"""Where a run computes, and in which precision."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from fastcl_cli.errors import ConfigError
from fastcl_cli.extras import available_cores, computing_threads, cpuinfo, processor_name
from fastcl_cli.heap import keep_freed_memory
from fastcl_cli.processes import distributed

_LEAST_GAIN, _ROUNDS = 1.2, 40
"""How much faster products in bf16 must be to be worth their 8 bits; and how often they are timed,
a millisecond each."""


@dataclass(frozen=True, slots=True)
class Device:
    """This process's compute device and the dtype that its matrix products run in.

    Weights, optimizer state, normalisations, softmaxes and losses stay in float32 whatever
    ``precision`` says.
    """

    device: torch.device
    precision: Literal["float32", "bf16"]
    threads: int

    @property
    def loader_threads(self) -> int:
        """Threads that decode: all of them on the CPU, where training waits meanwhile; beside a
        GPU, two are left for the one that gives it work and the one that prepares batches."""
        return self.threads if self.device.type == "cpu" else max(1, self.threads - 2)

    def begin(self) -> None:
        """Set this process up for training steps: its threads, and on the CPU its heap."""
        torch.set_num_threads(self.threads)
        if self.device.type == "cpu":
            keep_freed_memory()

    def autocast(self) -> AbstractContextManager[None]:
        """The context of forward passes."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @property
    def remark(self) -> str | None:
        """What should be known before training in this precision here, if anything."""
        flags = cpuinfo("flags").split()
        computes = self.device.type == "cuda" or self.precision == "float32" or _has_bf16(flags)
        if computes or not flags:
            return None
        return (
            f"precision bf16: {processor_name()} has no instructions for it, so products take many "
            "times as long as in float32; `precision auto` is float32 here"
        )

    @property
    def hardware(self) -> str:
        """The hardware's own name; of a CPU, which all processes of a machine share, with the
        number of threads."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return processor_name()

    @property
    def name(self) -> str:
        """The hardware, and how many processes use it, for people."""
        count = distributed.size()
        if count == 1:
            return self.hardware
        each = self.device.type == "cuda"
        return f"{count} x {self.hardware}" if each else f"{self.hardware}, {count} processes"


def choose_device(precision: Literal["auto", "float32", "bf16"]) -> Device:
    """The process's CUDA device (the first one, where it is alone), or the CPU where there is none.

    Processes on one machine share its cores evenly.

    ``auto`` is bf16 where a GPU computes it, or the CPU is markedly faster with it, else float32.

    Raises:
        ConfigError: ``precision bf16`` on a GPU that cannot compute it.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if precision == "bf16" and not native:
            raise ConfigError(
                f"precision bf16: {torch.cuda.get_device_name(device)} does not compute bf16",
                "use precision float32",
            )
        # TF32 in float32 products: what is left in float32 under bf16 need not be slower for it.
        torch.backends.cuda.matmul.allow_tf32 = precision != "float32"
    else:
        device = torch.device("cpu")
        native = precision == "auto" and _cpu_gains_by_bf16()
    if precision == "auto":
        precision = "bf16" if native else "float32"
    threads = computing_threads() if device.type == "cpu" else available_cores()
    return Device(device, precision, max(1, threads // distributed.local_size()))


def _cpu_gains_by_bf16() -> bool:
    """Whether the slowest process's CPU multiplies bf16 markedly faster than float32.

    Having the instructions does not say so: with AVX-512 BF16 one processor trains nearly twice as
    fast in bf16 and another half as fast. So products like those of a ViT are timed.
    """
    gain = _gain() if _has_bf16(cpuinfo("flags").split()) else 0.0
    # The same in all processes, which must not differ.
    return distributed.greatest(int(gain < _LEAST_GAIN)) == 0


def _has_bf16(flags: Collection[str]) -> bool:
    """Whether a processor with these flags (x86) has instructions for products in bf16."""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _gain() -> float:
    """How much less time a product takes in bf16 than in float32: the same on every day.

    Of short products, in turn, on one thread, the fastest of each: other work on the machine
    interrupts some of them, and threads that wait for each other nearly all.
    """
    products = {
        dtype: (torch.ones(256, 384, dtype=dtype), torch.ones(384, 512, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    least = dict.fromkeys(products, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_ROUNDS):
            for dtype, (a, b) in products.items():
                since = time.perf_counter()
                a @ b
                least[dtype] = min(least[dtype], time.perf_counter() - since)
    finally:
        torch.set_num_threads(threads)
    return least[torch.float32] / least[torch.bfloat16]
