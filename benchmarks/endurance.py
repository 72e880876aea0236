"""Whether a long run stays as large as it was: memory, threads and open files, seen from outside.

The quickstart made tiny, 2,000 steps in a few minutes of one core, with all that a run can do
beside its steps: an `auto` phase, k-NN, the running gradient error, checkpoints. It is trained by
the program itself three times: in one process, in one that draws the screen, and stopped and
resumed (each time a process of its own). Every process counts from its own step 200 on, when
whatever is opened once has been opened.

    python benchmarks/endurance.py --record
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common import record, table

from fastcl_cli.train.device import choose_device

PHASES = """
steps 0-{auto}: auto;
steps {auto}-{steps}: full;
"""
SCHEDULE = """
method moco; data digits; image 32; batch 32; lr 1e-3; warmup 5%; momentum 0.9 -> 1; head 64 32;
model vit_tiny_patch16_224 (embed_dim=32, depth=2, num_heads=2, patch_size=4);
crop 0.5 1; flip 0; grayscale 0; jitter 0.4 0.4 0 0 0.8; blur 0.1 0.1; solarize 0 0;
precision float32; knn 50 steps; gradient_error 20 steps;
choices drop 0 0.5 patch 4 8;
"""
LOG_EVERY, SAVE_EVERY, SETTLED = 5, 50, 200
LOOK_S = 0.02
SCREEN = (40, 120)
"""Lines and columns."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A process after ``step`` updates of its run: resident bytes, threads, open files."""

    step: int
    rss: int
    threads: int
    files: int


@dataclass(frozen=True, slots=True)
class Life:
    """One process from its first log line to its last."""

    samples: list[Sample]

    @property
    def settled(self) -> list[Sample]:
        """From the first sample on that is `SETTLED` steps after its start."""
        start = self.samples[0].step - LOG_EVERY
        return [sample for sample in self.samples if sample.step >= start + SETTLED]

    @property
    def growth(self) -> float:
        """How much larger it became, at most, than it was when it had settled."""
        sizes = [sample.rss for sample in self.settled]
        return max(sizes) / sizes[0] - 1

    @property
    def slope(self) -> float:
        """Bytes that it grows a step, by least squares: what a run of a million steps would feel
        of a leak that is too small to see here."""
        settled = self.settled
        steps, sizes = [s.step for s in settled], [s.rss for s in settled]
        return statistics.linear_regression(steps, sizes).slope

    def row(self, name: str) -> list[str]:
        first, last = self.settled[0], self.settled[-1]
        return [
            name,
            f"{self.samples[0].step - LOG_EVERY:,}-{self.samples[-1].step:,}",
            f"{first.rss / 1e6:,.1f}",
            f"{last.rss / 1e6:,.1f}",
            f"{self.growth:.1%}",
            f"{self.slope / 1e3:+.1f}",
            *(
                f"{min(values)}-{max(values)}"
                for values in ([s.threads for s in self.settled], [s.files for s in self.settled])
            ),
        ]


def look(pid: int, step: int) -> Sample:
    """A process as the kernel tells of it.

    Raises:
        OSError: it has ended.
    """
    root = Path(f"/proc/{pid}")
    pages = int((root / "statm").read_text().split()[1])
    threads, files = (sum(1 for _ in (root / name).iterdir()) for name in ("task", "fd"))
    return Sample(step, pages * os.sysconf("SC_PAGE_SIZE"), threads, files)


def follow(process: subprocess.Popen[bytes], metrics: Path, before: int) -> Life:
    """Look at a process after every log line that it adds to the ``before`` that are there."""
    seen, samples = before, []
    while process.poll() is None:
        lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if lines > seen:
            seen = lines
            with contextlib.suppress(OSError):
                samples.append(look(process.pid, LOG_EVERY * lines))
        time.sleep(LOOK_S)
    assert process.returncode == 0, f"exit status {process.returncode}"
    return Life(samples)


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """A terminal that nobody reads from but to throw away what it shows."""
    reader, writer = pty.openpty()
    os.environ |= {"LINES": str(SCREEN[0]), "COLUMNS": str(SCREEN[1]), "TERM": "xterm-256color"}

    def drain() -> None:
        with contextlib.suppress(OSError):  # its last writer has gone
            while os.read(reader, 65536):
                pass

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield writer
    finally:
        os.close(writer)
        thread.join()
        os.close(reader)


def train(schedule: Path, out: Path, stop: int, *, screen: bool = False) -> Life:
    """Run the program until its run has done ``stop`` steps."""
    options = ["--save-every", str(SAVE_EVERY), "--log-every", str(LOG_EVERY)]
    options += ["--max-steps", str(stop), "--resume", "auto", "--ui", "tui" if screen else "plain"]
    command = [sys.executable, "-m", "fastcl_cli", "run", str(schedule), "--out", str(out)]
    metrics = out / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context(terminal()) if screen else subprocess.DEVNULL
        process = subprocess.Popen([*command, *options], stdout=shown, stderr=shown)
        return follow(process, metrics, before)


def endure(folder: Path, steps: int, resumes: int) -> list[tuple[str, Life]]:
    """All processes of the three runs, named."""
    schedule = folder / "endurance.fcs"
    schedule.write_text(SCHEDULE + PHASES.format(auto=steps * 3 // 4, steps=steps))
    lives = [
        ("one process", train(schedule, folder / "one", steps)),
        ("one process, with the screen", train(schedule, folder / "screen", steps, screen=True)),
    ]
    for part in range(resumes + 1):
        stop = steps * (part + 1) // (resumes + 1)
        lives.append((f"resumed {part} times", train(schedule, folder / "parts", stop)))
    results = {(folder / n / "backbone.safetensors").read_bytes() for n in ("one", "parts")}
    assert len(results) == 1, "the resumed run is another run"
    return lives


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--resumes", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        lives = endure(Path(name), asked.steps, asked.resumes)
    body = table(
        ["run", "steps", f"MB after {SETTLED}", "MB at the end", "greatest growth",
         "kB a step", "threads", "open files"],
        [life.row(name) for name, life in lives],
    )  # fmt: skip
    worst = max(life.growth for _, life in lives)
    body += (
        f"\n\nGreatest growth of a process after its first {SETTLED} steps: {worst:.1%}. "
        "The resumed run's backbone is that of one process, byte for byte."
    )
    if asked.record:
        record("Memory over a long run", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
