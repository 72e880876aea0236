"""GPUs: whether torch, its CUDA and the driver fit each other, and what the devices can do."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

from fastcl_cli.doctor.finding import Finding, first_line
from fastcl_cli.estimate.devices import nvidia_smi
from fastcl_cli.train.device import choose_device

DRIVER_FILE = Path("/proc/driver/nvidia/version")
LEAST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""The oldest Linux driver of each CUDA major version (CUDA release notes, minor version
compatibility)."""


def findings() -> list[Finding]:
    """CUDA, every device, and bf16."""
    cuda = _cuda()
    found = [cuda]
    if cuda.status == "ok":
        found += [_device(index) for index in range(torch.cuda.device_count())]
        found.append(_compiler())
    if all(finding.status != "problem" for finding in found):
        found.append(_bf16())
    return found


def _cuda() -> Finding:
    built, driver = torch.version.cuda, _driver()
    hip = getattr(torch.version, "hip", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        available = torch.cuda.is_available()
    if available:
        kind = f"ROCm {hip}" if hip else f"{built}, driver {driver or 'unknown'}"
        return Finding("CUDA", "ok", kind)
    if driver is None:
        return Finding(
            "CUDA",
            "warning",
            "no NVIDIA driver: runs train on the CPU",
            "where there is a GPU: install its driver, or start the container with --gpus all",
        )
    if built is None:
        return Finding(
            "CUDA",
            "problem",
            f"there is an NVIDIA driver ({driver}), but this torch is built for the CPU alone",
            "pip uninstall torch, then pip install a torch with CUDA",
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not re.match(r"\d|GPU-|MIG-", hidden):
        return Finding(
            "CUDA",
            "warning",
            f"CUDA_VISIBLE_DEVICES='{hidden}' hides all GPUs: runs train on the CPU",
            "unset CUDA_VISIBLE_DEVICES",
        )
    least = LEAST_DRIVER.get(int(built.split(".")[0]))
    if least is not None and _numbers(driver) < _numbers(least):
        return Finding(
            "CUDA",
            "problem",
            f"torch is built for CUDA {built}, which needs driver {least}; this is {driver}",
            "update the driver, or pip install a torch built for an older CUDA",
        )
    return Finding("CUDA", "problem", f"{built} does not start: {_why_not()}", "nvidia-smi")


def _why_not() -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return "it finds no device"


def _driver() -> str | None:
    """The version of the NVIDIA driver, or None where there is none."""
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8")
        found = re.search(r"Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
        if found:
            return found[1]
    except OSError:
        pass
    return nvidia_smi("driver_version")


def _device(index: int) -> Finding:
    """A device: its name and memory, and whether it computes."""
    properties = torch.cuda.get_device_properties(index)
    name, gib = f"GPU {index}", 2**30
    value = f"{properties.name}, {properties.total_memory / gib:.0f} GiB"
    try:
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        assert float((ones @ ones).sum()) == 64.0**3
        free, total = torch.cuda.mem_get_info(index)
    except (RuntimeError, AssertionError) as error:
        help = "pip install a torch whose CUDA knows this GPU" if "kernel" in str(error) else ""
        value = f"{value}: it does not compute: {first_line(error)}"
        return Finding(name, "problem", value, help or "nvidia-smi")
    if free < total / 2:
        value = f"{value}, of which {free / gib:.0f} are free"
        return Finding(name, "warning", value, "nvidia-smi  (shows who holds the rest)")
    return Finding(name, "ok", value)


def _compiler() -> Finding:
    """What torch.compile needs to make code for a GPU."""
    missing = [name for name in ("triton",) if find_spec(name) is None]
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing.append("a C compiler")
    if not missing:
        return Finding("torch.compile", "ok", "triton and a C compiler are there")
    value = f"{' and '.join(missing)} missing: blocks are not compiled, steps take longer"
    help = "apt-get install gcc" if "a C compiler" in missing else "pip install triton"
    return Finding("torch.compile", "warning", value, help)


def _bf16() -> Finding:
    device = choose_device("auto")
    faster = device.precision == "bf16"
    said = "precision auto is bf16" if faster else "precision auto is float32: bf16 is not faster"
    return Finding("bf16", "ok", f"{said} on {device.hardware}")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
