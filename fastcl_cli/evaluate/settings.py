"""What `fastcl probe` may be asked for, with its defaults. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fastcl_cli.errors import UsageError

Task: TypeAlias = Literal["knn", "linear", "finetune"]

DEFAULT_KS = (20, 10, 100, 200)
LINEAR_RATES = tuple(float(f"{a}e{b}") for b in range(-4, 1) for a in (1, 2, 5))
"""Base learning rates that the linear probe sweeps: {1, 2, 5} times a power of ten, as DINOv2's
grid has it, but up to 5, for its own end (0.1) lies below MoCo-v3's rate of 3 for ViTs."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Everything that decides a probe's figures, besides checkpoint and data.

    Attributes:
        tasks: what to do, in this order.
        weights: which network of a run's checkpoint; None for the one the method is judged by.
        crop_ratio: share of the short side that centre crops show; None for the default.
        untrained: also judge the same network with its initial weights.
        seed: of every random draw.
        dump: folder that the features are written to, or None.
        k: neighbours that vote; None for those of `DEFAULT_KS` that the training set has.
        temperature: of the votes.
        blocks: the linear probe reads the [CLS] of the last so many blocks; one row for each.
        pool: it also reads the mean of the last block's patch tokens.
        linear_lr: its base learning rates, for a batch of 256.
        augment: it reads random crops and flips, streamed, instead of cached centre crops.
        epochs, batch: of the linear probe and of fine-tuning.
        crop_min, flip: least share of the area that a random crop shows; probability of a flip.
        finetune_lr: peak base learning rate, for a batch of 256.
        layer_decay: its factor from each block to the one before.
        drop_path: probability of skipping the last block, linear in depth.
        label_smoothing: share of the target spread over all classes.
        precision: of fine-tuning; features are always float32.
    """

    tasks: tuple[Task, ...] = ("knn",)
    weights: Literal["target", "online"] | None = None
    crop_ratio: float | None = None
    untrained: bool = False
    seed: int = 0
    dump: Path | None = None
    k: tuple[int, ...] | None = None
    temperature: tuple[float, ...] = (0.07,)
    blocks: tuple[int, ...] = (1,)
    pool: bool = False
    linear_lr: tuple[float, ...] = LINEAR_RATES
    augment: bool = False
    epochs: int = 100
    batch: int = 256
    crop_min: float = 0.08
    flip: float = 0.5
    finetune_lr: float = 5e-4
    layer_decay: float = 0.75
    drop_path: float = 0.1
    label_smoothing: float = 0.0
    precision: Literal["auto", "float32", "bf16"] = "auto"


_FOR: dict[str, tuple[Task, ...]] = {
    "k": ("knn",),
    "temperature": ("knn",),
    "blocks": ("linear",),
    "pool": ("linear",),
    "linear_lr": ("linear",),
    "augment": ("linear",),
    "seed": ("linear", "finetune"),
    "epochs": ("linear", "finetune"),
    "batch": ("linear", "finetune"),
    "crop_min": ("linear", "finetune"),
    "flip": ("linear", "finetune"),
    "finetune_lr": ("finetune",),
    "layer_decay": ("finetune",),
    "drop_path": ("finetune",),
    "label_smoothing": ("finetune",),
    "precision": ("finetune",),
}
"""The tasks that a setting is for; one that is not here is for all."""


def settings_of(given: Mapping[str, Any]) -> ProbeSettings:
    """Settings from those that were given; None, False and empty lists stand for the default.

    Raises:
        UsageError: a setting would have no effect on the tasks asked for, or is not finite.
    """
    chosen: dict[str, Any] = {
        name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None and value is not False and value != []
    }
    settings = ProbeSettings(**chosen)
    for name, value in chosen.items():
        wanted = _FOR.get(name, settings.tasks)
        option = f"--{name.replace('_', '-')}"
        if not set(wanted) & set(settings.tasks):
            tasks = " or ".join(f"--task {task}" for task in wanted)
            raise UsageError(
                f"{option} has no effect on {', '.join(settings.tasks)}", f"add {tasks}"
            )
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
            raise UsageError(f"{option} {value}: a finite number is needed")
        if name in ("crop_min", "flip") and not ("finetune" in settings.tasks or settings.augment):
            raise UsageError(
                f"{option} has no effect on centre crops", "add --augment or --task finetune"
            )
    return settings
