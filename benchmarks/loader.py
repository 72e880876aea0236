"""Loading: images a second on one core, against FFCV with a pipeline for each view and torchvision.

FOLDER is a folder of JPEG photographs (subfolders are classes). It is packed twice, with long sides
of at most 256 and 500 pixels, and written as JPEG files of the same sizes and quality for
torchvision. Contenders, each in a process of its own on the same core, in turn (those that wait are
stopped, with all that they have started: some make batches ahead for seconds):

    delivered    ours, one decoded image of 256 x 256 for each record: what goes to a device
    views        ours, with all views of the recipe made on the CPU
    ffcv         FFCV's random resized crop and flip, one pipeline for each view, no colours
    torchvision  the recipe's transforms in a DataLoader with one worker

    python benchmarks/loader.py FOLDER [--repetitions 5] [--seconds 4] [--record]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import record, table
from PIL import Image

from fastcl_cli.config import RunConfig
from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.data.order import epoch_order
from fastcl_cli.data.pack import Settings, pack
from fastcl_cli.schedule import load
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.train.device import choose_device

RECIPES = {"2 views": "moco_full", "2 + 8 views": "dino_full"}
SIDES = (256, 500)
QUALITY = 90
AHEAD = 6
"""Batches that a loader may have made while it was not asked, and one more."""
CONTENDERS = ["delivered", "views", "ffcv", "torchvision"]
HEADER = [
    "JPEG long side", "views", "delivered", "views made", "FFCV per view", "torchvision",
    "delivered / FFCV", "delivered / torchvision", "made / FFCV", "made / torchvision",
]  # fmt: skip


def endless(images: int, batch: int) -> np.ndarray[Any, Any]:
    """An order for more images than are ever taken, in whole batches."""
    rounds = -(-2_000_000 // images)
    order = np.concatenate([epoch_order(images, 0, epoch) for epoch in range(rounds)])
    return order[: len(order) // batch * batch]


def delivered(beton: Beton, config: RunConfig, batch: int) -> Iterator[object]:
    from fastcl_cli.data.loader import DecodedLoader

    loader = DecodedLoader(beton, 256, 1)
    with loader.stream(endless(beton.images, batch), batch) as stream:
        for decoded in stream:
            yield decoded.images


def views(beton: Beton, config: RunConfig, batch: int) -> Iterator[object]:
    from fastcl_cli.data.loader import DecodedLoader
    from fastcl_cli.train.inputs import Batch, InputMaker

    choose_device("float32").begin()  # as a run does
    make = InputMaker(config, beton, 0, torch.device("cpu"))
    loader = DecodedLoader(beton, 256, 1)
    order = endless(beton.images, batch).reshape(-1, batch)
    with loader.stream(order.ravel(), batch) as stream:
        for step, (indices, decoded) in enumerate(zip(order, stream, strict=True)):
            part = Batch(decoded.images, indices, slice(0, batch))
            yield make(step, full_views(config), part)


def sides_of(config: RunConfig) -> list[int]:
    """Of each single view, in pixels."""
    return [view.side for view in full_views(config) for _ in range(view.count)]


def ffcv(beton: Beton, config: RunConfig, batch: int) -> Iterator[object]:
    from fastcl_cli.data.ffcv_library import load_ffcv

    load_ffcv()
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    def view(side: int) -> PipelineSpec:
        return PipelineSpec(
            "image",
            RandomResizedCropRGBImageDecoder((side, side)),
            [RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
        )

    pipelines: dict[str, Any] = {"image": None, "label": None}
    pipelines |= {f"view{i}": view(side) for i, side in enumerate(sides_of(config))}
    loader = Loader(
        str(beton.path),
        batch_size=batch,
        num_workers=1,
        order=OrderOption.RANDOM,
        pipelines=pipelines,
        os_cache=True,
        seed=0,
    )
    while True:
        yield from loader


class Views:
    """torchvision's transforms of a recipe: one result for each view."""

    def __init__(self, config: RunConfig) -> None:
        from torchvision import transforms as T

        self.views = []
        recipe = config.augmentation
        for number, side in enumerate(sides_of(config)):
            kind = number if number < 2 else 2
            crop = recipe.local_crop if kind == 2 else recipe.crop
            jitter = recipe.jitter
            strengths = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
            steps = [
                T.RandomResizedCrop(side, crop, interpolation=T.InterpolationMode(recipe.resize)),
                T.RandomHorizontalFlip(recipe.flip),
                T.RandomApply([T.ColorJitter(*strengths)], jitter.probability),
                T.RandomGrayscale(recipe.grayscale),
                T.RandomApply([T.GaussianBlur(23, (0.1, 2.0))], recipe.blur[kind]),
                T.RandomSolarize(128, recipe.solarize[kind]),
                T.ToTensor(),
                T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
            self.views.append(T.Compose(steps))

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [view(image) for view in self.views]


def torchvision(folder: Path, config: RunConfig, batch: int) -> Iterator[object]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(folder), Views(config))
    loader = DataLoader(data, batch, shuffle=True, num_workers=1, drop_last=True)
    while True:
        yield from loader


def serve(contender: str, arguments: tuple[Any, ...], batch: int, end: Connection) -> None:
    """Take batches for so many seconds whenever asked; answer with images a second."""
    os.setsid()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    stream = globals()[contender](*arguments, batch)
    next(stream)  # compiles
    end.send(0.0)
    while True:
        seconds = end.recv()
        for _ in range(AHEAD):
            next(stream)
        since, images = time.perf_counter(), 0
        while (taken := time.perf_counter() - since) < seconds:
            next(stream)
            images += batch
        end.send(images / taken)


def measure(
    beton: Beton, folder: Path, config: RunConfig, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Images a second of each contender in every round."""
    context = multiprocessing.get_context("spawn")
    contenders: dict[str, tuple[int, Connection]] = {}
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    try:
        for name in CONTENDERS:
            here, there = context.Pipe()
            arguments = (folder if name == "torchvision" else beton, config)
            process = context.Process(target=serve, args=(name, arguments, options.batch, there))
            process.start()
            assert process.pid is not None
            contenders[name] = process.pid, here
            here.recv()
            os.killpg(process.pid, signal.SIGSTOP)
        for _ in range(options.repetitions):
            for name, (group, end) in contenders.items():
                os.killpg(group, signal.SIGCONT)
                end.send(options.seconds)
                rates[name].append(end.recv())
                os.killpg(group, signal.SIGSTOP)
    finally:
        for group, _ in contenders.values():
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    return rates


def photographs(source: Path, out: Path, side: int) -> None:
    """The same images as JPEG files no larger than ``side``, for torchvision."""
    for path in sorted(source.rglob("*.jpg")):
        image = Image.open(path).convert("RGB")
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target, quality=QUALITY)


def row(side: int, name: str, rates: dict[str, list[float]]) -> list[str]:
    def ratio(one: str, other: str) -> str:
        pairs = zip(rates[one], rates[other], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.2f}"

    return [
        str(side),
        name,
        *(f"{statistics.median(rates[contender]):,.0f}" for contender in CONTENDERS),
        ratio("delivered", "ffcv"),
        ratio("delivered", "torchvision"),
        ratio("views", "ffcv"),
        ratio("views", "torchvision"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a timing, about")
    parser.add_argument("--record", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for side in SIDES:
            folder = Path(scratch) / str(side)
            photographs(options.folder, folder, side)
            path = folder.with_suffix(".beton")
            pack(str(folder), path, settings=Settings(max_side=side, quality=QUALITY))
            beton = open_beton(path)
            for name, recipe in RECIPES.items():
                config = load(recipe).config
                rows.append(row(side, name, measure(beton, folder, config, options)))
                print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    body = table(HEADER, rows) + (
        f"\n\nImages a second on one core, medians of {options.repetitions} rounds; ratios are "
        "medians of each round's. FFCV per view makes crops and flips alone, no colours."
    )
    if options.record:
        record("Loading JPEGs on one core", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    main()
