"""What a run makes of its device: operations a second, their share of what it can do, memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcl_cli.config import RunConfig
from fastcl_cli.cost import forward_flops
from fastcl_cli.estimate.devices import known_device
from fastcl_cli.plan import Segment
from fastcl_cli.processes import distributed
from fastcl_cli.train.device import Device
from fastcl_cli.train.memory import PeakMemory


class Usage:
    """Counts the operations that training needs; what `accumulate` repeats is not among them."""

    def __init__(self, config: RunConfig, device: Device) -> None:
        self._config = config
        self._memory = PeakMemory(device.device)
        known = known_device(device.hardware) if device.precision == "bf16" else None
        self._peak = None if known is None else known.peak

    def fields(self, segment: Segment, images_per_s: float) -> Mapping[str, Any]:
        """What a metrics line says.

        ``tflops`` is 10¹² operations a second on each device; ``mfu`` is over the device's dense
        bf16 peak (Chowdhery et al., arXiv 2204.02311, appendix B), null in float32 and where the
        table of devices has no peak; ``memory`` is the most bytes so far (`PeakMemory`), of this
        process.
        """
        flops = forward_flops(self._config, segment.views, segment.batch).training
        tflops = flops * images_per_s / distributed.size() / 1e12
        mfu = None if self._peak is None else tflops / self._peak
        return {"tflops": tflops, "mfu": mfu, "memory": self._memory.bytes()}
