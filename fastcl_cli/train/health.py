"""Signs that a run is collapsing or unstable, and what to do about each.

All is measured at log lines, on what the step computed anyway. A sign must hold for several lines
before a warning, and each warning is given once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PATIENCE = 5
"""Log lines in a row that must show a sign."""
LEAST_STD = 0.05
NEAR_COLLAPSE = 0.005
SPIKE = 10.0


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Standard deviation of L2-normalised features over the batch, times sqrt(D), averaged over
    dimensions: about 1 where they point everywhere, 0 where all images look the same.

    Args:
        features: (B, D).
    """
    unit = F.normalize(features.float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean()) * math.sqrt(features.shape[1])


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the features (RankMe: Garrido et
    al., arXiv 2210.02885, eq. 1): between 1 and min(B, D).

    Args:
        features: (B, D).
    """
    values = torch.linalg.svdvals(F.normalize(features.float(), dim=1))
    share = values / values.sum()
    return float(torch.exp(-torch.special.xlogy(share, share).sum()))


class Watch:
    """Looks at each log line and says what a person should know."""

    def __init__(self) -> None:
        self._streaks: dict[str, int] = {}
        self._said: set[str] = set()
        self._lowest = math.inf  # loss so far, relative to the collapsed one
        self._norms: deque[float] = deque(maxlen=50)

    def look(self, line: Mapping[str, Any], collapse_loss: float) -> list[str]:
        """Warnings that a log line gives cause for, each with its remedy.

        Args:
            collapse_loss: the loss of outputs that do not depend on the image.
        """
        loss, norm, std = line["loss"], line["gradient_norm"], line["feature_std"]
        relative = loss / collapse_loss
        self._lowest = min(self._lowest, relative)
        usual = median(self._norms) if len(self._norms) >= 10 else math.inf
        self._norms.append(norm)
        near = abs(relative - 1) <= NEAR_COLLAPSE
        # A young run starts at the collapsed loss; one that comes back to it has collapsed.
        came_back = near and self._lowest < 1 - 4 * NEAR_COLLAPSE
        signs = {
            f"all images get nearly the same features (std {std:.3f} of 1)": (
                "std",
                std < LEAST_STD,
                "lower `lr`, lengthen `warmup`, or use a larger `batch`; DINO: check that "
                "`center_momentum` is below 1 and lower `teacher_temperature`",
            ),
            f"the loss has come back to {loss:.3f}, that of outputs that ignore the image": (
                "loss",
                came_back,
                "lower `lr`, lengthen `warmup`; MoCo: keep `freeze_patch on`; DINO: with a small "
                "model, try `head_norm on`",
            ),
        }
        warnings = []
        for text, (name, shown, remedy) in signs.items():
            self._streaks[name] = self._streaks.get(name, 0) + 1 if shown else 0
            if self._streaks[name] == PATIENCE and name not in self._said:
                self._said.add(name)
                warnings.append(f"warning: step {line['step']}: {text}; {remedy}")
        if norm > SPIKE * usual and "spike" not in self._said:
            self._said.add("spike")
            warnings.append(
                f"warning: step {line['step']}: the gradient's norm jumped to {norm:.3g}, "
                f"{norm / usual:.0f} times the usual; if that repeats, lower `lr`, set `clip`, "
                "or use `precision float32`"
            )
        return warnings
