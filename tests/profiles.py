"""A profile made by hand, of round figures."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from fastcl_cli.config import RunConfig
from fastcl_cli.cost import forward_flops
from fastcl_cli.estimate.profile import (
    Fixed,
    Loader,
    Measured,
    Profile,
    Recipe,
    Setting,
    Spread,
    Workload,
)
from fastcl_cli.plan import Compression, View

NO_OVERHEAD = Fixed(0, 0, 0)
NOTHING = Compression(Fraction(0), 16)


def measured(
    config: RunConfig, views: tuple[View, ...], batch: int, step_ms: float, wait_ms: float = 0.0
) -> Measured:
    flops = batch * forward_flops(config, views, batch).training
    spread = Spread(step_ms, step_ms - 1, step_ms + 2)
    online = Compression(Fraction(1, 2), views[0].online.patch)
    target = None if views[0].target is None else NOTHING
    setting = Setting(views, batch, online, target)
    return Measured(setting, spread, wait_ms, 30.0, 123_000_000, flops)


def profile(
    config: RunConfig,
    settings: Sequence[Measured],
    *,
    ceiling: float | None = None,
    fixed: Fixed = NO_OVERHEAD,
    device: str = "NVIDIA A100-SXM4-80GB",
    processes: int = 1,
    date: str = "2026-01-02T03:04:05+00:00",
) -> Profile:
    return Profile(
        device=device,
        precision="bf16",
        processes=processes,
        versions={"fastcl": "0.1", "torch": "2.9"},
        date=date,
        repetitions=5,
        data="train.beton",
        images=1000,
        memory_kind="allocated on the device",
        workload=Workload.of(config),
        recipe=Recipe.of(config),
        measured=tuple(settings),
        loader=None if ceiling is None else Loader(Spread(ceiling, ceiling, ceiling), 256),
        fixed=fixed,
    )
