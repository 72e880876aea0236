"""An epoch as users start it: `fastcl run` beside lightly-train's command, SimCLR without
compression.

Same ViT, batch, precision, images, recipe of views (SimCLR's with jitter of 0.4, 0.4, 0.4 and 0.1),
sizes of the head and optimizer, each by its own code. Each reads the same folder of JPEGs as it
does by default, ours by way of the beton that its first command makes. A round runs both commands
for one epoch and for --epochs: an epoch is the difference over the epochs between, so what a
command takes to begin and to end is in the first column alone.

    python benchmarks/epochs.py FOLDER --lightly-train COMMAND [--model vit_small_patch16_224]
        [--batch 16] [--epochs 2] [--rounds 5] [--precision float32] [--record]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import record, table

from fastcl_cli.schedule import load
from fastcl_cli.train.device import choose_device

HEADER = [
    "command", "one epoch and start, s", "an epoch more, s", "least-greatest", "fastcl / this",
    "an epoch more, processor, s",
]  # fmt: skip
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "prob": 0.8}
HEAD = {"hidden_dim": 4096, "output_dim": 256, "num_layers": 3, "temperature": 0.1}


def ours(out: Path, epochs: int, options: argparse.Namespace) -> list[str]:
    """`simclr_full` for so many epochs."""
    kept = [line for line in load("simclr_full").text.splitlines() if not line.startswith("epochs")]
    file = out.with_suffix(".fcs")
    file.write_text("\n".join([*kept, f"epochs 0-{epochs}: full;", ""]), encoding="utf-8")
    settings = {
        "model": options.model,
        "batch": options.batch,
        "warmup": "1 steps",
        "precision": options.precision,
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "fastcl_cli", "run", str(file), "--data", str(options.folder)]
    return [*command, "--out", str(out), "--overwrite", "--ui", "none", *words]


def theirs(out: Path, epochs: int, options: argparse.Namespace) -> list[str]:
    precision = {"float32": "32-true", "bf16": "bf16-mixed"}[options.precision]
    settings = {
        "out": out,
        "data": options.folder,
        "model": f"timm/{options.model}",
        "method": "simclr",
        "epochs": epochs,
        "batch_size": options.batch,
        "precision": precision,
        "overwrite": True,
        "optim": "adamw",
        **{f"method_args.{name}": value for name, value in HEAD.items()},
        "transform_args.color_jitter.strength": 1.0,
        **{f"transform_args.color_jitter.{name}": value for name, value in JITTER.items()},
    }
    return [options.lightly_train, "pretrain", *(f"{k}={v}" for k, v in settings.items())]


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a command: of the wall's clock, and of the processor's."""
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wall, after = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        sys.exit(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-3000:]}")
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, worked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of JPEGs in folders of classes")
    parser.add_argument("--lightly-train", required=True, help="the command, or its path")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "bf16"], default="float32")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: at least 2, for one is taken off")
    commands = {"fastcl": ours, "lightly-train": theirs}
    first: dict[str, list[float]] = {name: [] for name in commands}
    more: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as scratch:

        def run(name: str, epochs: int) -> tuple[float, float]:
            return timed(commands[name](Path(scratch) / name, epochs, options))

        for name in commands:  # betons, machine code and caches, which users have after once
            run(name, 1)
        for round_ in range(options.rounds):
            for name in commands:
                one, whole = run(name, 1), run(name, options.epochs)
                first[name].append(one[0])
                a, b = ((w - o) / (options.epochs - 1) for w, o in zip(whole, one, strict=True))
                more[name].append((a, b))
                print(f"round {round_ + 1}, {name}: {one}, {whole}", file=sys.stderr, flush=True)
    rows = []
    for name in commands:
        walls = [wall for wall, _ in more[name]]
        ratios = [own / wall for (own, _), wall in zip(more["fastcl"], walls, strict=True)]
        rows.append(
            [
                name,
                f"{statistics.median(first[name]):.1f}",
                f"{statistics.median(walls):.1f}",
                f"{min(walls):.1f}-{max(walls):.1f}",
                f"{statistics.median(ratios):.3f}",
                f"{statistics.median(worked for _, worked in more[name]):.1f}",
            ]
        )
    images = sum(1 for path in options.folder.rglob("*") if path.is_file())
    body = f"{options.model}, batch {options.batch}, {images} images, {options.rounds} rounds."
    body += "\n\n" + table(HEADER, rows)
    if options.record:
        record("Epochs beside lightly-train's command", body, choose_device(options.precision))
    else:
        print(body)


if __name__ == "__main__":
    main()
