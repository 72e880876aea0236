"""The most memory in use during some work, and what to say when there is too little."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from fastcl_cli.errors import RunFailedError
from fastcl_cli.heap import give_back_memory
from fastcl_cli.methods.base import Method
from fastcl_cli.plan import Segment
from fastcl_cli.processes import distributed
from fastcl_cli.shards import local
from fastcl_cli.train.device import Device

_BYTES_A_TOKEN = 34
"""Bytes that a block of width 1 keeps of a token for the backward pass in 16 bits (Korthikanti et
al. 2022, equation 2, without the attention matrix, which SDPA never stores)."""
_USABLE = 0.9
_GB = 1e9
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """On a GPU what torch allocated there; on the CPU the resident size of the process, which may
    hold on to what earlier work has freed."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True

    @property
    def kind(self) -> str:
        """What is counted, in words."""
        if self._device.type == "cuda":
            return "allocated on the device"
        return "resident size of the process"

    def reset(self) -> None:
        """Begin anew."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        give_back_memory()
        try:
            _CLEAR.write_text("5")  # Linux: the peak starts again from the present size
        except OSError:
            self._known = False

    def bytes(self) -> int | None:
        """The peak since `reset`, or None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if not self._known:
            return None
        try:
            lines = _STATUS.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
        return sizes[0] if sizes else None


def out_of_memory(
    error: BaseException, step: int, segment: Segment, method: Method, device: Device
) -> RunFailedError | None:
    """The error of a step that memory is too small for, with the batch that would fit, estimated
    from what the activations of an image take; None where ``error`` says something else."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    if not isinstance(error, kinds) and "can't allocate memory" not in str(error):
        return None
    total = _total(device.device)
    held = sum(local(value).nbytes for value in method.state_dict().values())
    # Gradients, and the two averages of AdamW.
    held += 3 * sum(local(p).nbytes for p in method.trained().values())
    image = _activations(segment, method, device)
    processes = distributed.size()
    fits = int(_USABLE * max(total - held, 0) / image) * processes
    fits = min(fits, segment.batch // 2) // processes * processes
    first = segment.views[0].online
    what = (
        f"step {step} (steps {segment.first_step} to {segment.end_step}: batch {segment.batch}, "
        f"{first.kept} of {first.grid**2} tokens of {first.patch} px) does not fit into the "
        f"{total / _GB:.1f} GB of {device.hardware}"
    )
    share = f"weights and optimizer take {held / _GB:.2g} GB, an image about {image / 1e6:.2g} MB"
    remedy = "a smaller model, or more devices"
    if fits:
        parts = math.ceil(segment.batch / fits)
        remedy = (
            f"--set accumulate={parts} takes it in parts, or a batch of about {fits} fits; or more "
            "devices, more `drop`, larger `patch`"
        )
    return RunFailedError(f"out of memory: {what}", f"{share}: {remedy}")


def _activations(segment: Segment, method: Method, device: Device) -> float:
    """Bytes that one image's views keep for the backward pass."""
    backbone = method.backbone
    tokens = sum(view.count * (view.online.kept + 1) for view in segment.views)
    wide = 2 if device.precision == "float32" else 1
    return tokens * len(backbone.vit.blocks) * backbone.width * _BYTES_A_TOKEN * wide


def _total(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
