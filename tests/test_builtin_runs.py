"""Every built-in schedule, shortened to fit a budget and really trained: the plan, the estimate and
what the encoders got agree on tokens, batch and cost.

Phases, method and compression are the schedule's own; the model is thin and the images few.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastcl_cli.clocks import AnalyticClock
from fastcl_cli.data.pack import pack
from fastcl_cli.devices import DEVICES
from fastcl_cli.estimate import estimate, fit
from fastcl_cli.methods.base import Input, Loss
from fastcl_cli.plan import Segment
from fastcl_cli.schedule import Loaded, Request, compile_text, load
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.train import session
from fastcl_cli.train.bench import SyntheticLoader
from fastcl_cli.train.session import RunRequest, Session
from fastcl_cli.train.step import Trainer
from fastcl_cli.units import parse_budget

STEPS, BATCH = 20, 6
CLOCK = AnalyticClock(DEVICES["a100"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many images as a batch: an epoch is one step."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(BATCH):
        Image.new("RGB", (40, 30), (40 * number, 99, 200)).save(folder / f"{number}.png")
    pack(str(folder), folder / "train.beton")
    return folder / "train.beton"


def small(name: str, data: Path) -> Loaded:
    """The built-in schedule for the few images, with a thin model, at most `STEPS` steps long."""
    patch = load(name).config.model.patch
    size = f"(embed_dim=16, depth=1, num_heads=2, patch_size={patch})"
    dino = load(name).config.method == "dino"
    overrides = (
        f"model=vit_tiny_patch16_224 {size}",
        f"head=16 8{' 32' if dino else ''}",
        f"batch={BATCH}",
        f'data="{data}"',
        "precision=float32",
    )
    whole = compile_text(load(name).text, name, Request(overrides))
    units = estimate(whole, parse_budget("1units"), CLOCK, named=True).units
    share = STEPS / whole.plan.epochs
    text = fit(whole, parse_budget(f"{units * share:.9g}units"), CLOCK)
    return compile_text(text, name, Request(overrides))


def sizes(inputs: list[Input]) -> list[tuple[int, int]]:
    """Side in pixels and patch tokens of each view."""
    patch = 16
    return [
        (x.pixels.shape[-1], x.kept.shape[1] if x.kept is not None else 0) for x in inputs
    ]
