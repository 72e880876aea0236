"""Trainers of the quickstarts, and batches for their steps."""

from __future__ import annotations

import numpy as np
import torch

from fastcl_cli.methods.build import build_method
from fastcl_cli.schedule import Loaded, Request, compile_text, load
from fastcl_cli.train.device import Device
from fastcl_cli.train.inputs import Batch, InputMaker
from fastcl_cli.train.optim import build_optimizer
from fastcl_cli.train.schedules import Schedules
from fastcl_cli.train.step import Trainer
from fastcl_cli.train.synthetic import SyntheticImages

QUICKSTARTS = ["quickstart", "quickstart_simclr", "quickstart_dino"]


def device(kind: str, precision: str) -> Device:
    return Device(torch.device(kind), precision, 2)  # type: ignore[arg-type]


def trainer(loaded: Loaded, where: Device) -> Trainer:
    method = build_method(loaded.config, 0).to(where.device)
    return Trainer(
        method,
        build_optimizer(method, loaded.config.betas),
        Schedules(loaded.config, loaded.plan, method.momentum_lead),
        InputMaker(loaded.config, SyntheticImages(), 0, where.device),
        where,
        loaded.config.clip,
    )


def batch(images: int, side: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, side, side, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Batch(pixels, np.arange(images), slice(0, images))


def quick(name: str) -> Loaded:
    base = load(name)
    return compile_text(base.text, base.name, Request(overrides=("batch=16",), images=(64, "data")))
