"""A whole training step against its ideal: the time without compression x the analytic cost.

Times real steps (data, views, both encoders, heads, loss, optimizer, average) of built-in recipes,
as `fastcl bench` does: all settings in turn, round by round. DATA is any data set; without it
random pixels stand for the decoded images. ViT-S at batch 32 takes a quarter of an hour for each
method on two cores. On a GPU the counted operations are also set against a large product of
matrices in bf16, measured first.

    python benchmarks/step.py [--bases moco_full dino_full] [--data DATA] [--batch 32] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import record, table

from fastcl_cli.data.source import open_split
from fastcl_cli.estimate.profile import Profile
from fastcl_cli.extras import available_cores
from fastcl_cli.plan import Segment
from fastcl_cli.schedule import Loaded, compile_text, load
from fastcl_cli.schedule.grid import settings_text
from fastcl_cli.train.bench import Bench, BenchRequest
from fastcl_cli.train.device import choose_device

SETTINGS = {
    "moco": [
        "drop 0.5", "patch 28", "drop 0.25 patch 28", "patch 32 drop 0.25", "drop 0.5 patch 32",
        "drop 0.75 patch 32", "full",
    ],
    "simclr": ["drop 0.5", "patch 28", "drop 0.5 patch 32", "full"],
    "dino": ["patch 28", "drop 0.5 patch 32", "full"],
}  # fmt: skip
HEADER = [
    "recipe", "setting", "tokens", "cost", "ms/step", "quartiles", "ideal ms", "ideal / real",
    "images/s", "wait", "TFLOP/s", "peak MB",
]  # fmt: skip


def with_settings(base: Loaded, settings: list[str], batch: int, model: str | None) -> Loaded:
    """A recipe with a phase for each setting."""
    own = [f"batch {batch};", *([] if model is None else [f"model {model};"])]
    dropped = {"length", "warmup", "freeze_last_layer", *(line.split()[0] for line in own)}
    phases = [f"epochs {i}-{i + 1}: {words};" for i, words in enumerate(settings)]
    text = "\n".join([settings_text(base, dropped), *own, *phases, ""])
    return compile_text(text, base.name, base.request)


def matrix_rate(side: int = 8192, products: int = 30) -> float:
    """Operations a second of a product of square bf16 matrices of random numbers."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(3):
        torch.cuda.synchronize()
        since = time.perf_counter()
        for _ in range(products):
            a @ b
        torch.cuda.synchronize()
        times.append((time.perf_counter() - since) / products)
    return 2 * side**3 / statistics.median(times)


def measure(loaded: Loaded, data: str | None, repetitions: int) -> Profile:
    opened = None
    if data is not None:
        opened = open_split(data, "train", announce=print, workers=available_cores())
    segments: tuple[Segment, ...] = loaded.plan.segments
    with tempfile.TemporaryDirectory() as scratch:
        request = BenchRequest(loaded.config, segments, repetitions, 1.0, Path(scratch))
        return Bench(request, opened).measure(print, lambda done, total: None)


def rows_of(loaded: Loaded, settings: list[str], profile: Profile) -> list[list[str]]:
    full = profile.measured[-1].step_ms.median
    rows = []
    for words, segment, measured in zip(
        settings, loaded.plan.segments, profile.measured, strict=True
    ):
        assert measured.setting.views == segment.views
        ideal = full * segment.sample_cost
        spread = measured.step_ms
        rows.append(
            [
                Path(loaded.name).stem,
                words,
                str(segment.views[0].online.kept),
                f"{segment.sample_cost:.3f}",
                f"{spread.median:,.0f}",
                f"{spread.low:,.0f}-{spread.high:,.0f}",
                f"{ideal:,.0f}",
                f"{ideal / spread.median:.2f}",
                f"{1000 * segment.batch / spread.median:,.0f}",
                f"{measured.wait_ms / spread.median:.1%}",
                f"{measured.flops / spread.median / 1e9:.3g}",
                "" if measured.memory is None else f"{measured.memory / 1e6:,.0f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=["moco_full", "dino_full"])
    parser.add_argument("--settings", nargs="+", help="as phases have them; `full` comes last")
    parser.add_argument("--model", help="in place of the recipes' own")
    parser.add_argument("--data", help="beton, image folder, or a set's name")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    rows: list[list[str]] = []
    for name in options.bases:
        base = load(name, data=options.data)
        settings = options.settings or SETTINGS[base.config.method]
        loaded = with_settings(base, settings, options.batch, options.model)
        profile = measure(loaded, options.data, options.repetitions)
        rows += rows_of(loaded, settings, profile)
    body = table(HEADER, rows) + f"\n\nBatch {options.batch}; {options.repetitions} rounds."
    if torch.cuda.is_available():
        rate = matrix_rate() / 1e12
        body += f" A product of 8,192 x 8,192 bf16 matrices: {rate:.0f} TFLOP/s."
    if options.record:
        record("Training steps against their ideal", body, choose_device("auto"))
    else:
        print(body)


if __name__ == "__main__":
    main()
