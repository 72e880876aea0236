"""What every task of a probe shares: networks, images, features, and words for the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcl_cli.checkpoint import default_weights
from fastcl_cli.data.beton import Beton
from fastcl_cli.errors import UsageError
from fastcl_cli.evaluate.features import Features, Reading, dump, extract
from fastcl_cli.evaluate.images import (
    Images,
    Progress,
    default_crop_ratio,
    same_classes,
    steps_per_epoch,
)
from fastcl_cli.evaluate.metrics import Accuracy
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.methods.build import BackboneSpec
from fastcl_cli.model.vit import Encoder
from fastcl_cli.rng import derive_seed
from fastcl_cli.train.device import choose_device

LR_PER_BATCH = 256
"""The batch that base learning rates are for."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure and all that is needed to reproduce it."""

    task: str
    top1: float
    top5: float
    mean_class: float
    protocol: dict[str, Any]

    @classmethod
    def of(cls, task: str, accuracy: Accuracy, protocol: dict[str, Any]) -> Row:
        return cls(task, accuracy.top1, accuracy.top5, accuracy.mean_class, protocol)


class Bench:
    """Networks of one structure, and the two sets they are judged on.

    Attributes:
        networks: the one judged, and perhaps others beside it.
        train, val: images with labels 0 to ``classes`` - 1.
        reading: the features that all tasks need together.
        of_train, of_val: those features under each network; empty where no task needs them.
        common: the part of the protocol that all rows share.
    """

    def __init__(
        self,
        networks: list[Encoder],
        spec: BackboneSpec,
        train: Beton,
        val: Beton,
        settings: ProbeSettings,
        progress: Progress | None,
    ) -> None:
        self.networks = networks
        self.settings = settings
        self.progress = progress
        self.compute = choose_device("float32")
        train, val, self._labels = same_classes(train, val)
        self.classes = len(self._labels)
        self.reading = _reading(settings, networks[0].depth)
        ratio = settings.crop_ratio
        ratio = default_crop_ratio(spec.image) if ratio is None else ratio
        self.train, self.val = (
            Images(data, spec.image, ratio, self.compute.device, self.compute.threads)
            for data in (train, val)
        )
        self.common: dict[str, Any] = {
            "weights": settings.weights or default_weights(spec),
            "tokens": "all",
            "image": spec.image,
            "crop_ratio": ratio,
            "resize": "bicubic",
        }
        self.of_train: list[Features] = []
        self.of_val: list[Features] = []
        if settings.dump is not None or {"knn", "linear"} & set(settings.tasks):
            self.of_train = extract(networks, self.train, self.reading, progress=progress)
            self.of_val = extract(networks, self.val, self.reading, progress=progress)

    def last(self, features: Features) -> Features:
        """timm's own features among those of ``reading``."""
        part = self.columns(1, False)
        return Features(features.values[:, part], features.labels)

    def columns(self, blocks: int, mean: bool) -> slice:
        """Where ``reading`` holds the features of a smaller one."""
        return self.reading.columns(self.networks[0].width, blocks, mean)

    @property
    def batch(self) -> int:
        """Images in a training step."""
        return min(self.settings.batch, self.train.data.images)

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.settings.epochs * steps_per_epoch(self.train.data.images, self.batch)

    def length(self) -> dict[str, int]:
        """The protocol of training's length and draws."""
        return {
            "epochs": self.settings.epochs,
            "batch": self.batch,
            "steps": self.steps,
            "seed": self.settings.seed,
        }

    def augmentation(self) -> str:
        """The protocol of random views."""
        s = self.settings
        return f"RandomResizedCrop({s.crop_min:g}, 1), flip {s.flip:g}"

    def generator(self, purpose: str) -> torch.Generator:
        """A new CPU generator for draws that are made once."""
        return torch.Generator().manual_seed(derive_seed(self.settings.seed, purpose, 0))

    def dump(self, folder: Path, checkpoint: Path) -> None:
        """Write timm's features, and the labels as the data has them, of the network judged.

        Raises:
            UsageError: a file could not be written.
        """
        known = torch.from_numpy(self._labels)
        for name, features, images in (
            ("train", self.of_train[0], self.train),
            ("val", self.of_val[0], self.val),
        ):
            about = {
                "checkpoint": checkpoint.name,
                "data": images.data.path.name,
                "classes": images.data.classes,
                **self.common,
                "precision": "float32",
            }
            path = folder / f"{name}.safetensors"
            try:
                dump(path, Features(self.last(features).values, known[features.labels]), about)
            except OSError as error:
                raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _reading(settings: ProbeSettings, depth: int) -> Reading:
    if "linear" not in settings.tasks:
        return Reading()
    blocks = max(settings.blocks)
    if blocks > depth:
        raise UsageError(f"--blocks {blocks}: the model has {depth} blocks")
    return Reading(blocks, settings.pool)
