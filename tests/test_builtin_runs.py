"""Every built-in schedule, shortened to fit a budget and really trained: the plan, the estimate and
what the encoders got agree on tokens, batch and cost.

Phases, method and compression are the schedule's own; the model is thin and the images few.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import pytest
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fastcl_cli.config import RunConfig
from fastcl_cli.cost import forward_flops
from fastcl_cli.data.pack import pack
from fastcl_cli.estimate.clocks import AnalyticClock
from fastcl_cli.estimate.devices import DEVICES
from fastcl_cli.estimate.estimate import estimate, fit
from fastcl_cli.methods.base import Input, Loss
from fastcl_cli.plan import Segment
from fastcl_cli.schedule import Loaded, compile_text, load
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.train import session
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session
from fastcl_cli.train.step import _LossModule
from fastcl_cli.train.synthetic import SyntheticLoader
from fastcl_cli.units import parse_budget

STEPS, BATCH = 20, 4
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
    """A built-in schedule for the few images, with a thin model, at most `STEPS` steps long."""
    config = load(name).config
    settings = {
        "model": "vit_tiny_patch16_224 "
        f"(embed_dim=16, depth=1, num_heads=2, patch_size={config.model.patch})",
        "head": "16 8 32" if config.method == "dino" else "16 8",
        "batch": f"{BATCH}",
        "data": f'"{data}"',
        # Learned ones are resampled by a product that depends on no image and is not counted.
        "position": "sincos",
        "precision": "float32",
    }
    kept = [line for line in load(name).text.splitlines() if line.split(" ")[0] not in settings]
    own = "".join(f"{key} {value};\n" for key, value in settings.items())
    whole = compile_text(own + "\n".join(kept), name)
    units = estimate(whole, parse_budget("1units"), CLOCK, named=True).units
    budget = parse_budget(f"{units * STEPS / whole.plan.epochs:.9g}units")
    return compile_text(fit(whole, budget, CLOCK), name)


Shapes: TypeAlias = list[tuple[int, int]]
"""Side in pixels and patch tokens kept (0 for all) of every view."""


@dataclass
class Seen:
    """What the encoders got in each step, (online, target), and the operations of a forward pass
    with such inputs."""

    steps: list[tuple[Shapes, Shapes]] = field(default_factory=list)
    flops: dict[str, int] = field(default_factory=dict)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    real = _LossModule.forward

    def forward(
        self: _LossModule, online: Sequence[Input], target: Sequence[Input], epochs: float
    ) -> Loss:
        shapes = [view.shape for view in online], [view.shape for view in target]
        seen.steps.append(shapes)
        if str(shapes) in seen.flops:
            return real(self, online, target, epochs)
        # As matrix products: the CPU's fused attention is none that the counter knows.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loss = real(self, online, target, epochs)
        seen.flops[str(shapes)] = counter.get_total_flops()
        return loss

    monkeypatch.setattr(_LossModule, "forward", forward)
    # Nothing here is about pixels.
    monkeypatch.setattr(session, "DecodedLoader", lambda data, side, workers: SyntheticLoader(side))
    return seen


def expected(segment: Segment, patch: int) -> tuple[Shapes, Shapes]:
    """What the plan says that the encoders get."""
    shapes: tuple[Shapes, Shapes] = [], []
    for view in segment.views:
        for tokens, found in zip((view.online, view.target), shapes, strict=True):
            if tokens is not None:
                kept = 0 if tokens.kept == tokens.grid**2 else tokens.kept
                found += [(tokens.grid * patch, kept)] * view.count
    return shapes


def operations(config: RunConfig, segment: Segment) -> int:
    """Of a forward pass, by the cost model. DINO's loss computes the two products of the backward
    pass of the prototypes on its way."""
    count = forward_flops(config, segment.views, segment.batch)
    early = 0
    if config.method == "dino":
        _, bottleneck, prototypes = config.head
        early = 2 * (2 * bottleneck * prototypes) * sum(view.count for view in segment.views)
    return segment.batch * (count.online + count.target + early)


@pytest.mark.parametrize("name", sorted(builtin_schedules()))
def test_plan_estimate_and_run_agree(name: str, data: Path, seen: Seen, tmp_path: Path) -> None:
    item = small(name, data)
    plan, config = item.plan, item.config
    assert len(plan.segments) == len(load(name).plan.segments)
    compressions = [(s.online, s.target, s.views[0]) for s in load(name).plan.segments]
    assert [(s.online, s.target, s.views[0]) for s in plan.segments] == compressions
    assert STEPS - 2 <= plan.steps <= STEPS
    result = estimate(item, parse_budget("1gpuh"), CLOCK, named=True)
    rows = [time.to_json() for time in result.segments for _ in range(time.steps)]

    Session(
        RunRequest(item, tmp_path / "run", log_every=1, save_every=100), lambda event: None
    ).train()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == len(lines) == len(seen.steps) == plan.steps
    for step, (row, line) in enumerate(zip(rows, lines, strict=True)):
        segment = plan.at(step)
        for key in ("online", "target", "batch", "sample_cost"):
            assert row[key] == line[key] == segment.to_json()[key]
        assert seen.steps[step] == expected(segment, config.model.patch)
        assert seen.flops[str(seen.steps[step])] == operations(config, segment)
    assert result.speedup == pytest.approx(plan.speedup)
    assert lines[-1]["speedup"] == pytest.approx(result.speedup)
