"""Runs that are killed at random moments, go on, and must end as if nothing had happened.

`python tests/crashing.py --kills 6 --terms 3` prints what happened as JSON; benchmarks/crash.py is
the long form. Importing torch, timm and FFCV takes seconds and compiling the loader some more, so a
process that has done both, and started no thread, is forked for every run: each is a process of its
own, with a real folder, and the signals are real.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
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

    def start(self, out: Path) -> int:
        """Fork a run; its output goes to ``out.log``. Returns the process id."""
        sys.stdout.flush()
        child = os.fork()
        if child:
            return child
        try:
            log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
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
            assert code == 0, out.with_suffix(".log").read_text()
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


def torture(folder: Path, kills: int, terms: int, seed: int) -> dict[str, Any]:
    """So many SIGKILLs, half of them aimed into the writing of a checkpoint, then so many SIGTERM,
    SIGUSR1 and SIGINT in turn; every run goes on in the same folder until it is over, and is then
    compared with one that nobody disturbed."""
    herd = Herd(folder)
    began = time.monotonic()
    reference = folder / "reference"
    assert wait(herd.start(reference)) == 0, reference.with_suffix(".log").read_text()
    longest = time.monotonic() - began
    expected = outcome(reference)
    draw = random.Random(seed)
    plan = ["random" if number % 2 else "write" for number in range(kills)]
    plan += [("SIGTERM", "SIGUSR1", "SIGINT")[number % 3] for number in range(terms)]
    count: Counter[str] = Counter()
    run, slowest = 0, 0.0
    out = folder / "run-0"
    while plan or out.exists():
        child = herd.start(out)
        started = time.monotonic()
        kind = plan[0] if plan else "none"
        code = strike(child, out, kind, longest, draw) if plan else wait(child)
        slowest = max(slowest, time.monotonic() - started)
        if code in (None, 0):
            assert outcome(out) == expected, f"{out} is another run"
            left = [path.name for path in out.rglob(".*")]
            assert not left, left
            count["runs ended"] += 1
            shutil.rmtree(out)
            run += 1
            out = folder / f"run-{run}"
            continue
        said = out.with_suffix(".log").read_text()
        wanted = {"random": -9, "write": -9, "SIGINT": 130}.get(kind, 75)
        assert code == wanted, f"{kind}: {code}\n{said}"
        assert "Traceback" not in said, said
        check_left(out)
        if "stopped by" in said:  # in training: the step that it stood at was saved
            metrics = out / "metrics.jsonl"
            steps = len(metrics.read_text().splitlines()) if metrics.exists() else 0
            assert (out / "checkpoints" / f"step-{steps:08d}.safetensors").exists()
        count[kind] += 1
        count["resumed"] += "resumed from" in said
        count["parts left"] += any((out / "checkpoints").glob(".*"))
        plan.pop(0)
    return {**count, "seconds": time.monotonic() - began, "undisturbed_s": longest,
            "slowest_s": slowest, "lines": len(expected[1])}  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--terms", type=int, default=3)
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
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(torture(Path(name), asked.kills, asked.terms, asked.seed)))


if __name__ == "__main__":
    leave(main)
