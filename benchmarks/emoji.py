"""Compression against none on real images: a small ViT, MoCo-v3, on the CPU.

The data are emoji of 64 x 64 pixels, with the drawing styles of train/ and val/ apart (53 classes).
Three schedules with the same settings:

    opt            strong compression first, weaker later, none at the end
    full-epochs    no compression, as many epochs as opt
    full-cost      no compression, as many epochs as opt's cost in units pays for, rounded; its
                   warm-up and decay are those of its own length

Judged by weighted k-NN (k = 20) and a linear probe, top-1 and the mean over classes (the classes
are of unequal size), beside the untrained network and k-NN on 16 x 16 pixels less the image's mean,
which is strong here because drawings are centred. Views are not mirrored and colours little
changed: left and right, and colour, tell emoji apart.

The learning rate is one for all three and should be the best for no compression: compare
`--schedules full-cost` with several.

    python benchmarks/emoji.py FOLDER [--epochs 10] [--image 48] [--seeds 0 1] [--record]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from common import record, table
from runs import Outcome, train_and_judge, without_compression

from fastcl_cli.data.beton import Beton
from fastcl_cli.evaluate.bench import Row
from fastcl_cli.evaluate.features import Features
from fastcl_cli.evaluate.images import Images
from fastcl_cli.evaluate.knn import knn_accuracy
from fastcl_cli.evaluate.sets import open_probe_data
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.schedule import Loaded, compile_text
from fastcl_cli.train.device import choose_device

SETTINGS = """
method moco;
model vit_tiny_patch16_224 (embed_dim=96, depth=6, num_heads=3, patch_size=8);
image {image};
data "{data}";
length {epochs} epochs;
batch {batch};
lr {lr};
warmup 10%;
momentum {momentum} -> 1;
head 512 64;
crop 0.3 1;
flip 0;
grayscale 0.1;
jitter 0.3 0.3 0.2 0.02 0.8;
blur 0.2 0.2;
solarize 0 0;
precision float32;
"""
PHASES = """
0%-60%:   drop 0.5 patch 16;
60%-90%:  patch 16;
90%-100%: full;
"""
SCHEDULES = ["opt", "full-epochs", "full-cost"]
K = 20
PIXELS = 16
HEADER = [
    "schedule", "epochs", "seed", "units", "training, s",
    "k-NN top-1", "k-NN mean over classes", "linear top-1", "linear mean over classes",
]  # fmt: skip


def schedules(options: argparse.Namespace) -> dict[str, Loaded]:
    """The three schedules, by the names above."""

    def opt(epochs: int) -> Loaded:
        settings = SETTINGS.format(
            data=options.folder,
            image=options.image,
            epochs=epochs,
            lr=options.lr,
            batch=options.batch,
            momentum=options.momentum,
        )
        return compile_text(settings + PHASES, "opt")

    compressed = opt(options.epochs)
    paid = max(1, round(options.epochs * compressed.plan.mean_cost))
    return {
        "opt": compressed,
        "full-epochs": without_compression(compressed),
        "full-cost": without_compression(opt(paid)),
    }


def pixel_accuracy(train: Beton, val: Beton) -> tuple[float, float]:
    """k-NN on small images less their mean colour: top-1 and the mean over classes."""
    parts = []
    for data in (train, val):
        images = Images(data, PIXELS, 1.0, torch.device("cpu"), threads=1)
        views = torch.cat([view for view, _ in images.centre()])
        centred = views - views.mean(dim=(2, 3), keepdim=True)
        parts.append(Features(centred.flatten(1), images.labels))
    accuracy = knn_accuracy(parts[0], parts[1], (K,))[0].accuracy
    return accuracy.top1, accuracy.mean_class


def figures(rows: tuple[Row, ...]) -> list[float]:
    """k-NN and linear, top-1 and the mean over classes of each."""
    return [figure for row in rows for figure in (row.top1, row.mean_class)]


def cells(name: str, seed: str, outcome: Outcome, values: list[float]) -> list[str]:
    run = [f"{outcome.epochs:g}", seed, f"{outcome.units:,.0f}", f"{outcome.seconds:.0f}"]
    return [name, *run, *(f"{value:.3f}" for value in values)]


def run_all(options: argparse.Namespace) -> list[list[str]]:
    """The table's rows: each run, each schedule's mean over the seeds, and the baselines."""
    settings = ProbeSettings(tasks=("knn", "linear"), k=(K,))
    rows: list[list[str]] = []
    untrained: list[list[float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, loaded in schedules(options).items():
            if name not in options.schedules:
                continue
            values = []
            for seed in options.seeds:
                outcome = train_and_judge(loaded, Path(scratch) / f"{name} {seed}", seed, settings)
                values.append(figures(outcome.rows))
                untrained.append(figures(outcome.untrained))
                rows.append(cells(name, str(seed), outcome, values[-1]))
                print(" | ".join(rows[-1]), flush=True)
            if len(values) > 1:
                rows.append([name, "", "mean", "", "", *mean_cells(values)])
    train, val = open_probe_data(options.folder, None, None, announce=print)
    rows.append(["untrained", "0", "mean", "0", "0", *mean_cells(untrained)])
    pixels = [f"{value:.3f}" for value in pixel_accuracy(train, val)]
    rows.append([f"{PIXELS} x {PIXELS} pixels", "", "", "", "", *pixels, "", ""])
    return rows


def mean_cells(values: list[list[float]]) -> list[str]:
    return [f"{statistics.mean(column):.3f}" for column in zip(*values, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with train/ and val/, one sub-folder for each class")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES)
    parser.add_argument("--epochs", type=int, default=10, help="of opt")
    parser.add_argument("--image", type=int, default=48, help="side in pixels, a multiple of 16")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--lr", default="2e-3")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--momentum", default="0.9", help="of the target at the start")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    if not Path(options.folder).is_dir():
        parser.error(f"{options.folder}: no such folder")
    body = table(HEADER, run_all(options))
    if options.record:
        title = "Emoji: MoCo-v3, a ViT of width 96 and depth 6, on the CPU"
        record(title, body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
