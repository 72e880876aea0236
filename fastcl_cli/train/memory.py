"""The most memory in use during some work."""

from __future__ import annotations

from pathlib import Path

import torch

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
