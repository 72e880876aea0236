"""Which precision `auto` is."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from fastcl_cli.train import device
from fastcl_cli.train.device import choose_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is chosen first")


@pytest.mark.parametrize(
    ("flags", "float32_s", "bf16_s", "expected"),
    [
        ("fma avx512_bf16", 2.7, 1.0, "bf16"),
        ("avx512_bf16 amx_bf16", 8.0, 1.0, "bf16"),
        ("fma avx512_bf16", 1.0, 1.5, "float32"),  # there, but slow
        ("fma avx512f", 9.0, 1.0, "float32"),  # not there, whatever a clock says
    ],
)
def test_auto_is_bf16_where_that_is_faster(
    flags: str, float32_s: float, bf16_s: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.float32: float32_s, torch.bfloat16: bf16_s}
    monkeypatch.setattr(device, "cpuinfo", lambda name: flags)
    monkeypatch.setattr(device, "_product_seconds", seconds.__getitem__)
    assert choose_device("auto").precision == expected
    assert choose_device("float32").precision == "float32"
    assert choose_device("bf16").precision == "bf16"


def test_a_product_is_timed() -> None:
    assert 0 < device._product_seconds(torch.float32) < 10


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
