"""Runs that are killed at random moments, go on, and must end as if nothing had happened.

`python tests/crashing.py --kills 6 --terms 3 --fills 3` prints what happened as JSON;
benchmarks/crash.py is the long form. Fills are of the disk, a small one that is mounted for them.
Importing torch, timm and FFCV takes seconds and compiling the loader some more, so a process that
has done both, and in which no other thread is at work, is forked for every run: each is a process
of its own, with a real folder, and the signals are real.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

SCHEDULE = """
method moco; data digits; image 16; batch 16; lr 1e-3; warmup 2 steps; head 16 8;
model vit_tiny_patch16_224 (embed_dim=16, depth=1, num_heads=2, patch_size=8);
precision float32; knn none; gradient_error 10 steps;
steps 0-8: drop 0.5;
steps 8-20: full batch 8;
"""
SIDE = 18
OPTIONS = ["--save-every", "3", "--log-every", "1", "--ui", "plain", "--resume", "auto"]
CLOCK = {
    "images_per_s", "step_s", "data_wait_s", "grad_error_s", "tflops", "mfu", "memory",
}  # fmt: skip
TOO_LONG_S = 600.0
ROOM = 200_000
"""Bytes, for what is smaller than a page and for what a run writes beside its checkpoints."""
NO_ROOM = "No space left on device"


class Herd:
    """Makes processes that run ``fastcl run`` on `SCHEDULE`."""

    def __init__(self, folder: Path) -> None:
        import timm  # noqa: F401
        import torch._dynamo  # noqa: F401  # AdamW's first step would

        from fastcl_cli.data.beton import Beton
        from fastcl_cli.data.loader import DecodedLoader
        from fastcl_cli.data.source import open_split
        from fastcl_cli.train import session
        from fastcl_cli.ui import run, run_plain  # noqa: F401

        self.folder = folder
        self.schedule = folder / "crash.fcs"
        self.schedule.write_text(SCHEDULE)
        # One core: FFCV compiles for one thread then, and numba starts none.
        os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
        data = open_split("digits", "train", announce=lambda text: None)
        loader = DecodedLoader(data, SIDE, 1)
        with loader.stream(np.arange(8), 4) as batches:
            assert len(list(batches)) == 2

        def compiled(beton: Beton, side: int, workers: int) -> DecodedLoader:
            assert (beton.identity, side, workers) == (data.identity, SIDE, 1)
            return loader

        session.DecodedLoader = compiled  # type: ignore[assignment, misc]

    def log(self, out: Path) -> Path:
        """Where the output of the last run in ``out`` is: not on its disk, which may be full."""
        return self.folder / f"{out.name}.log"

    def start(self, out: Path) -> int:
        """Fork a run; its output goes to `log`. Returns the process id."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        try:
            log = os.open(self.log(out), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["fastcl", "run", str(self.schedule), "--out", str(out), *OPTIONS]
            from fastcl_cli.cli.main import main

            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        finally:
            os._exit(99)


def wait(child: int) -> int:
    """The exit status of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def ended(child: int) -> int | None:
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def outcome(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What a run comes to: its backbone, and its metrics without the clock's figures."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
    return (out / "backbone.safetensors").read_bytes(), kept


def check_left(out: Path) -> None:
    """What a killed run leaves: every file under its own name is whole."""
    from fastcl_cli.checkpoint import check_whole

    for path in (out / "checkpoints").glob("step-*.safetensors"):
        check_whole(path)
    if (out / "backbone.safetensors").exists():
        check_whole(out / "backbone.safetensors")
    for name in ("config.json", "plan.json"):
        if (out / name).exists():
            json.loads((out / name).read_text())
    if (out / "metrics.jsonl").exists():
        for line in (out / "metrics.jsonl").read_text().splitlines()[:-1]:
            json.loads(line)


def holds(child: int, lock: Path) -> bool:
    """Whether a process has the lock: a killed one leaves the file."""
    try:
        return lock.read_text().startswith(f"process {child} ")
    except FileNotFoundError:
        return False


@dataclass(frozen=True, slots=True)
class Whole:
    """A run that nobody disturbed: how long it takes, what it comes to, and the bytes of a
    checkpoint and of its folder."""

    seconds: float
    outcome: tuple[bytes, list[dict[str, Any]]]
    checkpoint: int
    folder: int


def undisturbed(herd: Herd) -> Whole:
    began = time.monotonic()
    out = herd.folder / "reference"
    assert wait(herd.start(out)) == 0, herd.log(out).read_text()
    seconds = time.monotonic() - began
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    largest = max(path.stat().st_size for path in (out / "checkpoints").iterdir())
    return Whole(seconds, outcome(out), largest, sum(sizes))


def strike(child: int, out: Path, kind: str, longest: float, draw: random.Random) -> int | None:
    """End a run by ``kind``: ``random`` SIGKILL, ``write`` (SIGKILL while a checkpoint is being
    written), or a signal's name; a run that ends before that is left alone.

    Returns:
        the exit status, or None where it was over before it was struck.
    """
    number = signal.SIGKILL if kind in ("random", "write") else signal.Signals[kind]
    begun = time.monotonic()
    if number != signal.SIGKILL:  # before it holds its folder, it may not listen yet
        # SIGTERM waits for the first log line, so that some run goes on; the others for nothing.
        trains = kind != "SIGTERM"
        while not (trains and holds(child, out / ".lock")):
            trains = trains or (out / "metrics.jsonl").exists()
            if (code := ended(child)) is not None:
                return code
            time.sleep(0.001)
    moment = time.monotonic() + draw.uniform(0, longest)
    while True:
        if (code := ended(child)) is not None:
            assert code == 0, f"exit status {code}"
            return None
        assert time.monotonic() - begun < TOO_LONG_S, "the run hangs"
        if time.monotonic() >= moment and (
            kind != "write" or any((out / "checkpoints").glob(".*"))
        ):
            break
        time.sleep(0 if kind == "write" else 0.001)
    if kind == "write":
        time.sleep(draw.uniform(0, 0.002))
    os.kill(child, number)
    return wait(child)


def torture(herd: Herd, whole: Whole, kills: int, terms: int, draw: random.Random) -> Counter[str]:
    """So many SIGKILLs, half of them aimed into the writing of a checkpoint, then so many SIGTERM,
    SIGUSR1 and SIGINT in turn; every run goes on in the same folder until it is over, and is then
    compared with the one that nobody disturbed."""
    plan = ["random" if number % 2 else "write" for number in range(kills)]
    plan += [("SIGTERM", "SIGUSR1", "SIGINT")[number % 3] for number in range(terms)]
    count: Counter[str] = Counter()
    out = herd.folder / "run"
    while plan or out.exists():
        child = herd.start(out)
        kind = plan[0] if plan else "none"
        code = strike(child, out, kind, whole.seconds, draw) if plan else wait(child)
        said = herd.log(out).read_text()
        count["resumed"] += "resumed from" in said  # certain, once SIGTERM saved one
        if code in (None, 0):
            check_over(out, whole)
            count["runs ended"] += 1
            continue
        wanted = {"random": -9, "write": -9, "SIGINT": 130}.get(kind, 75)
        assert code == wanted, f"{kind}: {code}\n{said}"
        assert "Traceback" not in said, said
        check_left(out)
        if "stopped by" in said:  # in training: the step that it stood at was saved
            metrics = out / "metrics.jsonl"
            steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
            assert (out / "checkpoints" / f"step-{steps:08d}.safetensors").exists()
        count[kind] += 1
        count["parts left"] += any((out / "checkpoints").glob(".*"))
        plan.pop(0)
    return count


def check_over(out: Path, whole: Whole) -> None:
    """A run that came to its end is the undisturbed one; its folder goes."""
    assert outcome(out) == whole.outcome, f"{out} is another run"
    left = [path.name for path in out.rglob(".*")]
    assert not left, left
    shutil.rmtree(out)


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[bool]:
    """A disk of so many bytes at ``path``; False where none may be mounted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield bool(mounted)
    finally:
        if mounted:
            subprocess.run(["umount", str(path)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Take the room on a disk, but for about so many bytes."""
    with (disk / "ballast").open("wb") as ballast:
        while (room := shutil.disk_usage(disk).free - leave) > 0:
            with suppress(OSError):  # the run has written meanwhile
                os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, room)


def fill_up(herd: Herd, whole: Whole, fills: int, draw: random.Random) -> Counter[str]:
    """The disk becomes full so many times, half of them while a checkpoint is being written; the
    run must end with a word and leave what it had, and goes on once there is room."""
    count: Counter[str] = Counter()
    disk = herd.folder / "disk"
    size = whole.folder + 2 * whole.checkpoint + ROOM
    with small_disk(disk, size) as mounted:
        out = disk / "run"
        while mounted and (count["full"] < fills or out.exists()):
            child = herd.start(out)
            aimed = count["full"] % 2 == 0
            before: set[Path] = set()
            if count["full"] < fills and comes(child, out, aimed, draw.uniform(0, whole.seconds)):
                before = saved(out)
                fill(disk, draw.choice([0, draw.randrange(whole.checkpoint)]))
            code = wait(child)
            (disk / "ballast").unlink(missing_ok=True)
            if code == 0:
                check_over(out, whole)
                count["runs ended, disk"] += 1
                continue
            check_full(herd.log(out).read_text(), code, out, before)
            count["full"] += 1
            count["full, in a checkpoint"] += "/step-" in herd.log(out).read_text().splitlines()[-2]
    return count


def comes(child: int, out: Path, aimed: bool, delay: float) -> bool:
    """Wait for the moment, or, if ``aimed``, for the next checkpoint after it; False where the run
    is over before."""
    moment = time.monotonic() + delay
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        late = time.monotonic() >= moment and holds(child, out / ".lock")
        if late and not (aimed and not any((out / "checkpoints").glob(".*"))):
            return True
        time.sleep(0 if aimed else 0.001)
    return False


def saved(out: Path) -> set[Path]:
    return set((out / "checkpoints").glob("step-*.safetensors"))


def check_full(said: str, code: int, out: Path, before: set[Path]) -> None:
    """What a run says and leaves that the disk was full for; ``before`` are the checkpoints that it
    had."""
    *before_it, error, help = said.splitlines()
    assert not any(line.startswith(("error: ", "Traceback")) for line in before_it), said
    assert error.startswith("error: cannot write ") and NO_ROOM in error, said
    assert "make room" in help, said
    # Before it trains, it says that it cannot work there: that is another exit status.
    assert code == (2 if f"cannot write to {out}:" in error else 1), f"{code}\n{said}"
    check_left(out)
    assert not before or max(before) <= max(saved(out)), f"{max(before)} is gone"
    left = [path.name for path in out.rglob(".*")]
    assert not left, left


def everything(kills: int, terms: int, fills: int, seed: int) -> dict[str, float]:
    """How often what happened, and seconds: of all, and of the undisturbed run."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        herd = Herd(Path(name))
        whole = undisturbed(herd)
        draw = random.Random(seed)
        count = torture(herd, whole, kills, terms, draw) + fill_up(herd, whole, fills, draw)
    return {**count, "seconds": time.monotonic() - began, "undisturbed_s": whole.seconds}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--terms", type=int, default=3)
    parser.add_argument("--fills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def leave(work: Callable[[], None]) -> NoReturn:
    """Do the work and end the process at once: once it has forked, the end that numba or torch
    prepared for it may hang."""
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    asked = parse(sys.argv[1:])
    print(json.dumps(everything(asked.kills, asked.terms, asked.fills, asked.seed)))


if __name__ == "__main__":
    leave(main)
