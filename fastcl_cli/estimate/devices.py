"""What an accelerator can do, for estimates where nothing has been measured.

``peak`` is the maker's figure for dense bf16 matrix products with float32 accumulation (fp16 where
the device has no bf16), in TFLOP/s. ``utilisation`` is the share of it that pre-training a ViT is
assumed to reach; small models on fast devices reach less. Both are printed with every estimate.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from fastcl_cli.errors import UsageError
from fastcl_cli.extras import processor_name
from fastcl_cli.schedule.diagnostics import did_you_mean


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    peak: float
    utilisation: float


DEVICES: dict[str, Device] = {
    "b200": Device("NVIDIA B200", 2250.0, 0.25),
    "h200": Device("NVIDIA H200", 989.0, 0.30),
    "h100": Device("NVIDIA H100", 989.0, 0.30),
    "a100": Device("NVIDIA A100", 312.0, 0.40),
    "a40": Device("NVIDIA A40", 149.7, 0.40),
    "a10": Device("NVIDIA A10", 125.0, 0.40),
    "l40s": Device("NVIDIA L40S", 362.0, 0.35),
    "l4": Device("NVIDIA L4", 121.0, 0.35),
    "a6000": Device("NVIDIA RTX A6000", 154.8, 0.40),
    "rtx4090": Device("NVIDIA GeForce RTX 4090", 165.2, 0.45),
    "rtx3090": Device("NVIDIA GeForce RTX 3090", 71.0, 0.45),
    "v100": Device("NVIDIA V100", 125.0, 0.35),
    "t4": Device("NVIDIA T4", 65.0, 0.30),
    "mi300x": Device("AMD Instinct MI300X", 1307.0, 0.25),
    "mi250x": Device("AMD Instinct MI250X", 383.0, 0.30),
}
DEFAULT = "a100"


def find_device(name: str) -> tuple[Device, str]:
    """The device called ``name``, and a sentence on how it was found.

    ``auto`` asks nvidia-smi, and takes the A100 where there is none or it names a device that the
    table does not have.

    Raises:
        UsageError: the table does not have ``name``.
    """
    key = _key(name)
    if key == "auto":
        found = nvidia_smi("name")
        if found is None:
            return DEVICES[DEFAULT], "no NVIDIA device found here: assumed"
        device = _match(found)
        if device is None:
            return DEVICES[DEFAULT], f"this machine's {found} is not in the table: assumed"
        return device, f"found here: {found}"
    device = DEVICES.get(key) or _match(name)
    if device is None:
        help = did_you_mean(key, ["auto", *DEVICES], "devices")
        raise UsageError(f"--gpu '{name}' is not a known device", help)
    return device, "named with --gpu"


def this_hardware() -> str:
    """The name of what a run on this machine would compute on: the first NVIDIA device, else the
    processor; the same that `fastcl bench` writes into a profile."""
    return nvidia_smi("name") or processor_name()


def is_hardware(gpu: str) -> Callable[[str], bool]:
    """What says whether hardware of some name is the one that ``--gpu`` asks for: this machine's
    for ``auto``, else any of the table's that it names, or the very name."""
    if gpu.lower() == "auto":
        here = this_hardware()
        return lambda name: name == here
    device = DEVICES.get(_key(gpu)) or _match(gpu)
    return lambda name: (
        name.lower() == gpu.lower() or (device is not None and _match(name) == device)
    )


def known_device(hardware: str) -> Device | None:
    """The device of the table that a product's full name tells of, or None."""
    return _match(hardware)


def _key(name: str) -> str:
    return name.lower().replace(" ", "").replace("-", "")


def _match(name: str) -> Device | None:
    """The device whose key stands as a word, or as two, in a full product name."""
    words = name.lower().replace("-", " ").replace("_", " ").split()
    joined = [a + b for a, b in pairwise(words)]
    return next((DEVICES[word] for word in [*joined, *words] if word in DEVICES), None)


def nvidia_smi(field: str) -> str | None:
    """What nvidia-smi says of this machine's first device (``name``, ``driver_version``, ...)."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        result = subprocess.run(
            [program, f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = result.stdout.strip().splitlines()
    return lines[0].strip() if lines else None
