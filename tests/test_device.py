"""Which precision `auto` is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from fastcl_cli import extras
from fastcl_cli.train import device
from fastcl_cli.train.device import choose_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is chosen first")


@pytest.mark.parametrize(
    ("flags", "gain", "expected"),
    [
        ("fma avx512_bf16", 2.7, "bf16"),
        ("avx512_bf16 amx_bf16", 8.0, "bf16"),
        ("fma avx512_bf16", 0.7, "float32"),  # there, but slow
        ("fma avx512f", 9.0, "float32"),  # not there, whatever a clock says
    ],
)
def test_auto_is_bf16_where_that_is_faster(
    flags: str, gain: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpuinfo", lambda name: flags)
    monkeypatch.setattr(device, "_gain", lambda: gain)
    assert choose_device("auto").precision == expected
    assert choose_device("float32").precision == "float32"
    assert choose_device("bf16").precision == "bf16"
    emulated = "bf16" not in flags
    assert (choose_device("bf16").remark is not None) is emulated
    assert choose_device("auto").remark is choose_device("float32").remark is None


@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({}, 4),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "99"}, 4),
        ({"OMP_NUM_THREADS": "0"}, 4),
        ({"OMP_NUM_THREADS": "4,2"}, 4),  # nested regions: a list
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, 4),
    ],
)
def test_threads_are_the_cores_or_as_many_as_openmp_is_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], threads: int
) -> None:
    for name in ("OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(extras, "available_cores", lambda: 4)
    monkeypatch.setattr(device, "available_cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("float32").threads == threads
    assert extras.processor_name().endswith(f" ({threads} threads)")


def test_the_gain_is_the_same_each_time_and_leaves_the_threads_alone() -> None:
    threads = torch.get_num_threads()
    gains = [device._gain() for _ in range(5)]
    assert max(gains) < 1.5 * min(gains)
    assert torch.get_num_threads() == threads


FAULTS = """
import resource, sys
import torch
from fastcl_cli.heap import give_back_memory, keep_freed_memory

def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        pieces = [torch.ones(10_000_000) for _ in range(2)]  # 40 MB each
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

work()
plain = work()
keep_freed_memory()
work()
kept, held = work(), resident()
give_back_memory()
print(plain, kept, held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is told")
def test_freed_memory_is_kept_and_given_back_when_asked() -> None:
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept, given_back = map(int, ran.stdout.split())
    assert plain > 100_000 and kept < plain / 20
    assert given_back > 60_000_000
