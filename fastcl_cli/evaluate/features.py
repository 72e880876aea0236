"""Features of a data set under a frozen backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcl_cli.evaluate.images import Images, Progress
from fastcl_cli.files import replacing
from fastcl_cli.model.vit import Encoder
from fastcl_cli.tensor_file import write_tensors


@dataclass(frozen=True, slots=True)
class Features:
    """``values`` float32 (N, columns) and ``labels`` int64 (N,), in the data set's order, on the
    CPU."""

    values: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """Which tokens of a network are its features: the [CLS] of the last ``blocks`` blocks, and
    with ``mean`` the mean of the last block's patch tokens; all after the final norm.

    Columns are in this order: [CLS] of the earliest block, ..., of the last block, mean.
    """

    blocks: int = 1
    mean: bool = False

    @torch.no_grad()
    def __call__(self, network: Encoder, view: Tensor) -> Tensor:
        """Features of ``view``: float32 (B, columns)."""
        tokens = network.last_tokens(view, self.blocks)
        parts = [network.vit.forward_head(block, pre_logits=True) for block in tokens]
        if self.mean:
            parts.append(tokens[-1][:, network.vit.num_prefix_tokens :].mean(dim=1))
        return torch.cat(parts, dim=1).float()

    def columns(self, width: int, blocks: int, mean: bool) -> slice:
        """Where these features hold those of a smaller reading of a network of that width.

        A mean without the last block, or blocks with and without a gap, never occur: the columns
        are adjacent.
        """
        assert blocks <= self.blocks and (self.mean or not mean)
        return slice((self.blocks - blocks) * width, (self.blocks + mean) * width)


CLS = Reading()
"""timm's own features."""


@torch.no_grad()
def extract(
    networks: Sequence[Encoder],
    images: Images,
    reading: Reading = CLS,
    batch: int = 256,
    progress: Progress | None = None,
    rows: NDArray[np.int64] | None = None,
) -> list[Features]:
    """Features of centre crops under each network, decoding the images once.

    The networks are moved to the images' device and put into evaluation mode; they see all tokens.

    Args:
        batch: images at a time; bounds the memory beside the result.
        rows: int64 (N,), which images; None for all of them.

    Raises:
        DataError: the data set has no labels, or a record is damaged.
    """
    labels = images.labels if rows is None else images.labels[torch.from_numpy(rows)]
    networks = [network.to(images.device).eval() for network in networks]
    parts: list[list[Tensor]] = [[] for _ in networks]
    done = 0
    for view, indices in images.centre(batch, rows):
        for network, part in zip(networks, parts, strict=True):
            part.append(reading(network, view).cpu())
        done += len(indices)
        if progress is not None:
            progress(f"features of {images.data.path.name}", done, len(labels))
    return [Features(torch.cat(part), labels) for part in parts]


def dump(path: Path, features: Features, about: Mapping[str, Any]) -> None:
    """Write ``features`` float32 (N, D) and ``labels`` int64 (N,) as safetensors, in one piece.

    Args:
        about: goes into the header's ``fastcl`` entry as JSON.

    Raises:
        OSError: the file could not be written.
    """
    with replacing(path) as part:
        write_tensors(
            part,
            {"features": features.values.contiguous(), "labels": features.labels},
            {"fastcl": json.dumps(dict(about), sort_keys=True)},
        )
