"""The order in which an epoch visits the images: a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PURPOSE = 1
"""Keeps these draws apart from any other that is keyed by the same seed and a small number."""


def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A uniformly random permutation of ``range(images)``.

    The generator is keyed by (seed, purpose, epoch) and not by their sum, so that run 1 in epoch 2
    does not repeat run 2 in epoch 1.

    Returns:
        int64 (images,).
    """
    key = np.random.SeedSequence(seed, spawn_key=(_PURPOSE, epoch))
    return np.random.default_rng(key).permutation(images).astype(np.int64)
