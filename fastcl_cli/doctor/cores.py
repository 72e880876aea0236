"""Processor cores, and the images a second that they can be expected to decode."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

from fastcl_cli.cost import forward_flops
from fastcl_cli.doctor.finding import Finding
from fastcl_cli.estimate.devices import find_device
from fastcl_cli.extras import available_cores
from fastcl_cli.schedule import load

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
STAT = Path("/proc/stat")
_LOOK_S = 0.5
IMAGES_PER_CORE = 1200
"""Images a second that one core decodes from a beton as `fastcl pack` writes it (384 pixels,
quality 90) to the 256 pixels that training at 224 reads; half to twice that, by processor."""
YARDSTICK = "moco_opt"


def cores() -> Finding:
    """Cores that this process may run on, and how much of their time it may use."""
    allowed, limit = available_cores(), cgroup_limit()
    if limit is not None and limit < allowed:
        used = max(1, math.floor(limit))
        why = (
            f"but the container may use the time of {limit:g}: as many threads as cores would be "
            "held up"
        )
    else:
        busy = round(_busy())
        if busy == 0:
            return Finding("cores", "ok", f"{allowed}")
        used = max(1, allowed - busy)
        why = f"and other work keeps {busy} busy now: on a CPU a step waits for its slowest core"
        if busy >= allowed:
            return Finding("cores", "warning", f"{allowed}, {why}", "wait until it ends")
    help = f"taskset -c 0-{used - 1} fastcl run ..." if used > 1 else "taskset -c 0 fastcl run ..."
    return Finding("cores", "warning", f"{allowed}, {why}", help)


def loader(gpus: int) -> Finding:
    """Images a second that the cores decode, against what the GPUs would take."""
    usable = min(available_cores(), cgroup_limit() or math.inf)
    expected = usable * IMAGES_PER_CORE
    value = f"about {expected:,.0f} images/s"
    if gpus == 0:
        return Finding("loader", "ok", f"{value}: more than a CPU trains on")
    need, device = _need()
    value = (
        f"{value}; {gpus} x {device} may take {gpus * need:,.0f} in {YARDSTICK}'s lightest phase"
    )
    if expected >= gpus * need:
        return Finding("loader", "ok", value)
    more = math.ceil(gpus * need / IMAGES_PER_CORE)
    return Finding(
        "loader",
        "warning",
        f"{value}: {more} cores would be needed",
        f"fastcl bench {YARDSTICK} --data DATA measures it; fastcl pack --max-side 256 triples it",
    )


def _need() -> tuple[float, str]:
    """Images a second that this machine's GPU would take, by counted operations, and its name."""
    device, _ = find_device("auto")
    loaded = load(YARDSTICK)
    least = min(
        forward_flops(loaded.config, segment.views, segment.batch).training
        for segment in loaded.plan.segments
    )
    return device.peak * 1e12 * device.utilisation / least, device.name


def _busy() -> float:
    """Cores' worth of work that other processes do, over half a second; 0 where Linux's
    /proc/stat does not tell."""
    began = _idle_ticks()
    time.sleep(_LOOK_S)
    ended = _idle_ticks()
    if began is None or ended is None:
        return 0.0
    passed = sum(ended) - sum(began)
    return available_cores() * (ended[1] - began[1]) / passed if passed > 0 else 0.0


def _idle_ticks() -> tuple[int, int] | None:
    """Ticks that the cores of this process have been idle, and not."""
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    rows = [list(map(int, ticks[:8])) for name, *ticks in map(str.split, lines) if name in own]
    idle = sum(row[3] + row[4] for row in rows)  # idle, and waiting for a disk
    return idle, sum(map(sum, rows)) - idle


def cgroup_limit() -> float | None:
    """Cores' worth of time that control groups leave to this process, or None without a limit."""
    limits = [_quota_v1(), *(_quota(folder) for folder in _own_groups())]
    return min((limit for limit in limits if limit is not None), default=None)


def _own_groups() -> list[Path]:
    """The folders of this process's group (version 2) and of those around it."""
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = CGROUPS / own.lstrip("/")
    return [folder, *(f for f in folder.parents if f.is_relative_to(CGROUPS))]


def _quota(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1() -> float | None:
    try:
        quota, period = (
            int((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="utf-8"))
            for name in ("quota", "period")
        )
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None
