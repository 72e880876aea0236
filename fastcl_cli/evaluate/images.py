"""The images of a labelled data set, as a network is judged on them and as one is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.config import Augmentation, Jitter
from fastcl_cli.data.augment import draw_views
from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.order import epoch_order
from fastcl_cli.data.views import eval_view, make_view
from fastcl_cli.errors import DataError
from fastcl_cli.rng import derive_seed

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def default_crop_ratio(image: int) -> float:
    """Share of the short side that the evaluation crop shows: the usual 224 of 256, but all of it
    for small images, whose subjects fill the frame."""
    return 0.875 if image >= 128 else 1.0


def crop_and_flip(crop_min: float, flip: float) -> Augmentation:
    """RandomResizedCrop and a horizontal flip, nothing else: what classifiers are trained on."""
    none = (0.0, 0.0, 0.0)
    crop = (crop_min, 1.0)
    return Augmentation(crop, crop, "bicubic", flip, Jitter(0, 0, 0, 0, 0), 0.0, none, none)


class Images:
    """Views of a data set's images, ``image`` pixels wide, decoded by one loader for all uses.

    Args:
        crop_ratio: share of the short side that the centre crop shows.
        device: where views are made.
        threads: that decode.
    """

    def __init__(
        self, data: Beton, image: int, crop_ratio: float, device: torch.device, threads: int
    ) -> None:
        self.data = data
        self.image = image
        self.crop_ratio = crop_ratio
        self.device = device
        # Twice the view: the crop is resampled once more, and should not see the squash.
        stored = int(max(data.heights.max(), data.widths.max()))
        self._loader = DecodedLoader(data, min(stored, 2 * image), threads)

    @property
    def labels(self) -> Tensor:
        """int64 (N,).

        Raises:
            DataError: the data set has none.
        """
        return torch.from_numpy(_labels(self.data))

    def centre(
        self, batch: int = 256, rows: NDArray[np.int64] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Centre crops of the images ``rows``, or of all in their order.

        Yields:
            (B, 3, image, image), normalised, and int64 (B,), which images they are of.
        """
        rows = np.arange(self.data.images) if rows is None else rows
        with self._loader.stream(rows, batch) as stream:
            for decoded in stream:
                part = decoded.indices.numpy()
                view = eval_view(
                    decoded.images.to(self.device), self.data.heights[part],
                    self.data.widths[part], self.image, self.crop_ratio,
                )  # fmt: skip
                yield view, decoded.indices

    def augmented(
        self, augmentation: Augmentation, batch: int, epochs: int, seed: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Random views for ``epochs`` times `steps_per_epoch` steps, of ``batch`` images each.

        Yields:
            as `centre`.
        """
        step = 0
        for epoch in range(epochs):
            order = training_order(self.data.images, batch, seed, epoch)
            with self._loader.stream(order, batch) as stream:
                for decoded in stream:
                    part = decoded.indices.numpy()
                    draws = torch.Generator().manual_seed(derive_seed(seed, "probe views", step))
                    draw = draw_views(
                        augmentation, "first", self.data.heights[part], self.data.widths[part],
                        draws,
                    )  # fmt: skip
                    images = decoded.images.to(self.device)
                    view = make_view(images, draw, self.image, None, augmentation.resize)
                    yield view, decoded.indices
                    step += 1


def steps_per_epoch(images: int, batch: int) -> int:
    """Whole batches in an epoch; a set smaller than one batch is one step."""
    return max(1, images // batch)


def training_order(images: int, batch: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The images of an epoch's `steps_per_epoch` steps: each once, other ones left over each time.

    Returns:
        int64 (steps · batch,), or all of a set smaller than one batch.
    """
    order = epoch_order(images, derive_seed(seed, "probe order", 0), epoch)
    return order[: steps_per_epoch(images, batch) * batch]


def same_classes(train: Beton, val: Beton) -> tuple[Beton, Beton, NDArray[np.int64]]:
    """Both sets with their labels renumbered 0 to C - 1, and int64 (C,), the labels they had.

    Raises:
        DataError: a set has no labels, there is one class only, the names of the classes differ,
            or ``val`` has a class that ``train`` lacks.
    """
    known, asked = _labels(train), _labels(val)
    if train.classes and val.classes and train.classes != val.classes:
        other = sorted(set(train.classes) ^ set(val.classes)) or ["their order"]
        raise DataError(
            f"{val.path}: its classes are not those of {train.path.name}: they differ in "
            f"{', '.join(other[:5])}",
            "pack both from one folder with train/ and val/",
        )
    classes = np.unique(known)
    if len(classes) < 2:
        raise DataError(
            f"{train.path}: all of its images are of one class", "at least two classes are needed"
        )
    unknown = np.setdiff1d(asked, classes)
    if len(unknown):
        name = val.classes[unknown[0]] if val.classes else int(unknown[0])
        raise DataError(
            f"{val.path}: class {name} (one of {len(unknown)}) has no image in {train.path.name}",
            "add training images of it, or leave it out",
        )
    return (
        replace(train, labels=np.searchsorted(classes, known)),
        replace(val, labels=np.searchsorted(classes, asked)),
        classes,
    )


def _labels(data: Beton) -> NDArray[np.int64]:
    if data.labels is None:
        raise DataError(
            f"{data.path} has no labels, and features are judged by labels",
            "use a folder with one sub-folder per class",
        )
    return data.labels
