"""Where files go: room, and how fast it is written."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from fastcl_cli.doctor.finding import Finding
from fastcl_cli.files import cache_folder, sync

SHM = Path("/dev/shm")
GB, MB = 10**9, 10**6
WRITTEN = 8 * MB
"""Bytes written to time a disk."""
ROOM = {"cache": 10 * GB, "runs": 5 * GB}
"""Free bytes below which the doctor warns: a packed ImageNet-100 and three checkpoints of a ViT-B
need about so much."""
LEAST_ROOM = GB // 2
SLOW = 20 * MB
"""Bytes a second below which checkpoints and packing take minutes."""
LEAST_SHM = 128 * MB
"""Bytes: packing ImageNet keeps a table of half of that there, and NCCL its buffers."""


def cache() -> Finding:
    return _folder("cache", cache_folder(), "export FASTCL_CACHE=/a/larger/disk")


def runs() -> Finding:
    return _folder("runs", Path("runs").absolute(), "fastcl run ... --out /a/larger/disk/NAME")


def shared_memory() -> Finding:
    name, help = "/dev/shm", "docker run --shm-size 1g ..., or mount -o remount,size=1g /dev/shm"
    try:
        usage = shutil.disk_usage(SHM)
    except OSError:
        return Finding(name, "problem", "there is none, and packing needs it", help)
    value = f"{usage.free / MB:,.0f} MB free of {usage.total / MB:,.0f}"
    if usage.free < LEAST_SHM:
        value = f"{value}: too little to pack ImageNet, or for several GPUs"
        return Finding(name, "warning", value, help)
    return Finding(name, "ok", value)


def _folder(name: str, folder: Path, help: str) -> Finding:
    """A folder that may not be there yet: then the nearest one above it, where it will be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return Finding(name, "problem", f"{there} is not a folder", help)
    try:
        speed = _write_speed(there)
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, "problem", f"{there} cannot be written: {error.strerror}", help)
    value = f"{folder}, {free / GB:,.1f} GB free, {speed / MB:,.0f} MB/s written"
    if free < LEAST_ROOM:
        return Finding(name, "problem", f"{value}: full", help)
    if free < ROOM[name]:
        return Finding(name, "warning", f"{value}: little room", help)
    if speed < SLOW:
        return Finding(name, "warning", f"{value}: slow", help)
    return Finding(name, "ok", value)


def _write_speed(folder: Path) -> float:
    """Bytes a second that reach the disk; what was written is removed."""
    path = folder / f".fastcl-doctor-{os.getpid()}"
    data = os.urandom(WRITTEN)  # a file system may compress
    try:
        began = time.perf_counter()
        path.write_bytes(data)
        sync(path)
        return WRITTEN / (time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)
