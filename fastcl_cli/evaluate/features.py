"""Features of a data set under a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcl_cli.data.beton import Beton
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.views import eval_view
from fastcl_cli.errors import DataError
from fastcl_cli.model.vit import Encoder


@dataclass(frozen=True, slots=True)
class Features:
    """``values`` float32 (N, D) and ``labels`` int64 (N,), in the data set's order, on the CPU."""

    values: Tensor
    labels: Tensor


def default_crop_ratio(image: int) -> float:
    """Share of the short side that the evaluation crop shows: the usual 224 of 256, but all of it
    for small images, whose subjects fill the frame."""
    return 0.875 if image >= 128 else 1.0


@torch.inference_mode()
def extract(
    networks: Sequence[Encoder],
    data: Beton,
    image: int,
    crop_ratio: float,
    device: torch.device,
    threads: int,
    batch: int = 256,
) -> list[Features]:
    """Features of every image under each network, decoding the images once.

    The networks are moved to ``device`` and put into evaluation mode; they see all tokens.

    Args:
        image: side of the evaluation view in pixels.
        crop_ratio: share of the short side that the centre crop shows.
        batch: images at a time; bounds the memory.

    Raises:
        DataError: the data set has no labels, or a record is damaged.
    """
    if data.labels is None:
        raise DataError(
            f"{data.path} has no labels, and features are judged by labels",
            "use a folder with one sub-folder per class",
        )
    networks = [network.to(device).eval() for network in networks]
    # Twice the view: the crop is resampled once more, and should not see the squash.
    stored = int(max(data.heights.max(), data.widths.max()))
    loader = DecodedLoader(data, min(stored, 2 * image), threads)
    parts: list[list[Tensor]] = [[] for _ in networks]
    with loader.stream(np.arange(data.images), batch) as stream:
        for decoded in stream:
            rows = decoded.indices.numpy()
            view = eval_view(
                decoded.images.to(device), data.heights[rows], data.widths[rows], image, crop_ratio
            )
            for network, part in zip(networks, parts, strict=True):
                part.append(network(view).float().cpu())
    labels = torch.from_numpy(data.labels)
    return [Features(torch.cat(part), labels) for part in parts]
