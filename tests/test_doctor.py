"""`fastcl doctor`: each finding provoked, and what a healthy machine gets."""

from __future__ import annotations

import json
import re
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_cli_run import Cli

from fastcl_cli.doctor import accelerators, cores, libraries, storage
from fastcl_cli.doctor.examine import examine
from fastcl_cli.doctor.finding import Finding
from fastcl_cli.extras import available_cores

ROOT = Path(__file__).resolve().parent.parent
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCL_CACHE", str(tmp_path / "cache"))
    return Cli(capsys, monkeypatch)


def test_a_machine_that_can_train_says_so(cli: Cli, tmp_path: Path) -> None:
    code, out, _ = cli("doctor", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["schema_version"] == 1 and answer["ready"] is True
    found = {finding["name"]: finding for finding in answer["findings"]}
    always = "Python fastcl torch CUDA bf16 timm torchvision numba FFCV cores loader cache runs"
    assert {*always.split(" "), "threading layer", "/dev/shm"} <= set(found)
    for finding in found.values():
        assert finding.keys() == {"name", "status", "value", "help"}
        assert finding["status"] in ("ok", "warning")
        assert bool(finding["help"]) == (finding["status"] != "ok")
    assert torch.__version__.startswith(found["torch"]["value"])
    assert found["cores"]["value"].startswith(str(available_cores()))
    assert not list(tmp_path.iterdir())


def test_a_machine_that_cannot_train_says_why(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    code, out, _ = cli("doctor")
    assert code == 1 and out.splitlines()[-1] == "training will not work: 2 problems"
    lines = out.splitlines()
    for name in ("timm", "FFCV"):
        (at,) = [i for i, line in enumerate(lines) if re.match(rf"problem +{name} ", line)]
        assert "not installed" in lines[at] and "pip install '.[train]'" in lines[at + 1]


def test_without_torch_the_rest_is_still_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    report = examine()
    assert not report.ready
    found = {finding.name: finding for finding in report.findings}
    assert found["torch"].value == "not installed" and found["torch"].status == "problem"
    assert {"cores", "cache", "runs"} <= set(found) and not {"CUDA", "FFCV"} & set(found)


def test_the_oldest_versions_are_those_of_the_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = text.split("\ntrain = [")[1].split("]")[0]
    assert dict(re.findall(r'"(\w+)>=([\d.]+)"', extra)).items() >= libraries.LEAST.items()
    assert f"ffcv=={libraries.FFCV}" in extra


def test_old_broken_and_mismatched_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"timm": "1.0.3", "torch": "2.9.1+cu128", "torchvision": "0.21.0", "ffcv": "0.0.3"}
    monkeypatch.setattr(libraries.metadata, "version", lambda name: versions[name])
    old = libraries.library("timm")
    assert (old.status, old.help) == ("problem", "pip install 'timm>=1.0.19'")
    assert old.value == "1.0.3: 1.0.19 or newer is needed"
    monkeypatch.setattr(libraries.metadata, "requires", lambda name: ["numpy", "torch==2.6.0"])
    other = libraries.library("torchvision")
    assert other.value == "0.21.0 is made for torch 2.6.0; installed is 2.9.1"
    assert other.help == "pip install torch==2.9.1 torchvision"
    monkeypatch.setattr(libraries.metadata, "requires", lambda name: ["torch==2.9.1"])
    assert libraries.library("torchvision").status == "ok"
    assert libraries.ffcv() == Finding(
        "FFCV", "problem", "0.0.3: 1.0.2 is needed", "pip install ffcv==1.0.2"
    )

    def broken(name: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file\nmore")

    monkeypatch.setattr(libraries.importlib, "import_module", broken)
    finding = libraries.library("timm")
    assert finding.status == "problem" and "--force-reinstall" in finding.help
    assert (
        finding.value == "1.0.3 cannot be loaded: libcudart.so.12: cannot open shared object file"
    )


def test_ffcv_without_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "ffcv"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "cv2", None)
    finding = libraries.ffcv()
    assert finding.status == "problem" and "cv2" in finding.value
    assert "libopencv-dev" in finding.help


def test_threading_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import config

    loadable = {"numba.np.ufunc.omppool", "numba.np.ufunc.workqueue"}
    monkeypatch.setattr(libraries, "_loads", lambda module: module in loadable)
    monkeypatch.setattr(config, "THREADING_LAYER", "default")
    monkeypatch.setattr(config, "THREADING_LAYER_PRIORITY", ["tbb", "omp", "workqueue"])
    monkeypatch.delenv("NUMBA_THREADING_LAYER", raising=False)
    assert libraries.threading_layer() == Finding("threading layer", "ok", "omp")
    loadable.remove("numba.np.ufunc.omppool")
    finding = libraries.threading_layer()
    assert finding.status == "problem" and finding.help == "apt-get install libgomp1"
    monkeypatch.setattr(config, "THREADING_LAYER", "tbb")
    finding = libraries.threading_layer()
    assert finding.value == "numba cannot load tbb" and finding.help.startswith("unset")


DRIVER = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
)
OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.10  Release Build\n"


@pytest.mark.parametrize(
    ("driver", "cuda", "visible", "status", "words"),
    [
        (None, "13.0", None, "warning", "no NVIDIA driver: runs train on the CPU"),
        (DRIVER, None, None, "problem", "built for the CPU alone"),
        (DRIVER, "12.8", "", "warning", "hides all GPUs"),
        (DRIVER, "13.0", "0", "problem", "CUDA 13.0, which needs driver 580.65.06; this is 535.10"),
        (OPEN_DRIVER, "13.0", None, "problem", "13.0 does not start: no CUDA here"),
    ],
)
def test_cuda_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    driver: str | None,
    cuda: str | None,
    visible: str | None,
    status: str,
    words: str,
) -> None:
    file = tmp_path / "version"
    if driver is not None:
        file.write_text(driver)
    monkeypatch.setattr(accelerators, "DRIVER_FILE", file)
    monkeypatch.setenv("PATH", str(tmp_path))

    def init() -> None:
        raise RuntimeError("no CUDA here")

    fake = SimpleNamespace(is_available=lambda: False, init=init)
    monkeypatch.setattr(
        accelerators, "torch", SimpleNamespace(version=SimpleNamespace(cuda=cuda), cuda=fake)
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    finding = accelerators._cuda()
    assert finding.status == status and words in finding.value and finding.help


def test_a_gpu_that_works_is_taken_or_does_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of the processor: only what is asked of the device is made up."""
    free = [70 * 2**30]
    properties = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    fake = SimpleNamespace(
        get_device_properties=lambda index: properties,
        mem_get_info=lambda index: (free[0], 80 * 2**30),
    )

    def ones(*shape: int, device: str) -> torch.Tensor:
        assert device == "cuda:1"
        return torch.ones(*shape)

    monkeypatch.setattr(accelerators, "torch", SimpleNamespace(cuda=fake, ones=ones))
    assert accelerators._device(1) == Finding("GPU 1", "ok", "NVIDIA H100, 80 GiB")
    free[0] = 30 * 2**30
    assert accelerators._device(1).value == "NVIDIA H100, 80 GiB, of which 30 are free"

    def no_kernel(*shape: int, device: str) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

    monkeypatch.setattr(accelerators.torch, "ones", no_kernel)
    finding = accelerators._device(1)
    assert finding.status == "problem" and "no kernel image is available" in finding.value


def test_what_compiling_for_a_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(triton: bool, compiler: str | None) -> Finding:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(accelerators, "find_spec", lambda name: object() if triton else None)
        programs = {"clang": compiler}
        monkeypatch.setattr(accelerators, "shutil", SimpleNamespace(which=programs.get))
        return accelerators._compiler()

    assert look(True, "/usr/bin/clang").status == "ok"
    without = look(True, None)
    assert without.status == "warning" and "a C compiler missing" in without.value
    assert without.help == "apt-get install gcc"
    assert look(False, "/usr/bin/clang").help == "pip install triton"
    assert "triton and a C compiler missing" in look(False, None).value


def test_cores_and_the_limit_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = tmp_path / "pod" / "container"
    group.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/pod/container\n")
    monkeypatch.setattr(cores, "CGROUPS", tmp_path)
    monkeypatch.setattr(cores, "OWN_CGROUP", tmp_path / "self")
    monkeypatch.setattr(cores, "available_cores", lambda: 16)
    monkeypatch.setattr(cores, "_busy", lambda: 0.4)
    (group / "cpu.max").write_text("max 100000\n")
    assert cores.cgroup_limit() is None and cores.cores() == Finding("cores", "ok", "16")
    (tmp_path / "pod" / "cpu.max").write_text("250000 100000\n")
    finding = cores.cores()
    assert finding.value.startswith("16, but the container may use the time of 2.5")
    assert (finding.status, finding.help) == ("warning", "taskset -c 0-1 fastcl run ...")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores.cgroup_limit() == 1.0
    assert "about 1,200 images/s" in cores.loader(0).value


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        # user nice system idle iowait irq softirq steal (guest: in user already)
        ((90, 0, 10, 100, 0, 0, 0, 0, 9), (90, 0, 10, 150, 0, 0, 0, 0, 9), "ok"),
        ((90, 0, 10, 100, 0, 0, 0, 0, 9), (100, 5, 20, 110, 10, 1, 1, 3, 99), "busy"),
        ((90, 0, 10, 100, 0, 0, 0, 0, 9), (190, 0, 10, 100, 0, 0, 0, 0, 9), "all busy"),
    ],
)
def test_other_work_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    before: tuple[int, ...], after: tuple[int, ...], said: str,
) -> None:  # fmt: skip
    stat = tmp_path / "stat"

    def show(ticks: tuple[int, ...]) -> None:
        row = " ".join(map(str, ticks))
        stat.write_text(f"cpu 1 1 1 1 1 1 1 1\ncpu0 {row}\ncpu1 {row}\ncpu9 {row}\nintr 5\n")

    show(before)
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr(cores, "cgroup_limit", lambda: None)
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: show(after))
    finding = cores.cores()
    if said == "ok":
        assert finding == Finding("cores", "ok", "2")
    elif said == "all busy":
        assert finding.value.startswith("2, and other work keeps 2 busy now")
        assert (finding.status, finding.help) == ("warning", "wait until it ends")
    else:  # 30 of 50 ticks of each core: 1.2 cores
        assert finding.value.startswith("2, and other work keeps 1 busy now")
        assert (finding.status, finding.help) == ("warning", "taskset -c 0 fastcl run ...")
    stat.unlink()
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: None)
    assert cores.cores().status == "ok"


def test_a_loader_that_would_hold_gpus_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "cgroup_limit", lambda: None)
    monkeypatch.setattr(cores, "find_device", lambda name: _a100())
    monkeypatch.setattr(cores, "available_cores", lambda: 128)
    assert cores.loader(1).status == "ok"
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    finding = cores.loader(8)
    assert finding.status == "warning" and "8 x NVIDIA A100 may take" in finding.value
    need = int(re.findall(r"may take ([\d,]+)", finding.value)[0].replace(",", ""))
    wanted = int(re.findall(r"(\d+) cores would", finding.value)[0])
    assert need <= wanted * cores.IMAGES_PER_CORE < need + cores.IMAGES_PER_CORE


def _a100() -> tuple[object, str]:
    from fastcl_cli.estimate.devices import DEVICES

    return DEVICES["a100"], "found here"


def test_room_and_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTCL_CACHE", str(tmp_path / "deep" / "cache"))
    free = [10**12]
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: Usage(10**12, 0, free[0]))
    healthy = storage.cache()
    assert healthy.status == "ok" and healthy.value.startswith(f"{tmp_path}/deep/cache, 1,000.0 GB")
    free[0] = 2 * 10**9
    assert [storage.cache().status, storage.runs().status] == ["warning", "warning"]
    assert "FASTCL_CACHE" in storage.cache().help and "--out" in storage.runs().help
    free[0] = 10**8
    assert storage.runs().status == "problem" and "full" in storage.runs().value
    free[0] = 10**12
    monkeypatch.setattr(storage, "sync", lambda path: storage.time.sleep(0.5))
    assert storage.runs().status == "warning" and "slow" in storage.runs().value
    assert not list(tmp_path.iterdir())

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    assert storage.runs().value == f"{tmp_path} cannot be written: No space left on device"
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").write_text("")
    assert storage.runs().value == f"{tmp_path}/runs is not a folder"


def test_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: Usage(64 * 10**6, 0, 64 * 10**6))
    finding = storage.shared_memory()
    assert finding.status == "warning" and "64 MB free of 64" in finding.value
    monkeypatch.undo()
    monkeypatch.setattr(storage, "SHM", tmp_path / "none")
    assert storage.shared_memory().status == "problem"


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Finding:
        raise RuntimeError("sysfs is gone")

    monkeypatch.setattr(cores, "cores", fail)
    monkeypatch.setitem(sys.modules, "torch", None)
    (finding,) = [f for f in examine().findings if f.name == "cores"]
    assert finding.status == "problem" and "sysfs is gone" in finding.value
