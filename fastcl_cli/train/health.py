"""Signs that a run is collapsing or unstable, and what to do about each.

All is measured at log lines, on what the step computed anyway. A sign of collapse must hold for
several lines, of a run that is no longer young, before a warning; each warning is given once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcl_cli.config import Method

PATIENCE = 5
"""Log lines in a row that must show a sign."""
YOUNG = 0.1
"""Share of the run, at least the warm-up, in which no sign counts: all images look alike to a fresh
network, and a healthy run may start at the collapsed loss."""
LEAST_STD, LEAST_RANK = 0.05, 2.0
"""A third and two fifths of the least that the healthy quickstarts show (0.15 and 4.8)."""
LEAST_BATCH = 32
"""Images below which a rank says more of the batch than of the network."""
NEAR_COLLAPSE = 0.005
"""How near to its collapsed value a loss or an entropy counts as being there, relatively."""
LEAST_PROTOTYPES = 2.0
SPIKE = 10.0
"""A gradient norm over the median of the last lines'; the healthy quickstarts stay below 2."""


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Standard deviation of L2-normalised features over the batch, times sqrt(D), averaged over
    dimensions: about 1 where they point everywhere, 0 where all images look the same.

    Args:
        features: (B, D).
    """
    return float(_unit(features).std(dim=0, correction=0).mean()) * math.sqrt(features.shape[1])


@torch.no_grad()
def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of the features (RankMe: Garrido et
    al., arXiv 2210.02885, eq. 1): between 1 and min(B, D).

    Args:
        features: (B, D).
    """
    values = torch.linalg.svdvals(_unit(features))
    return math.exp(float(torch.special.entr(values / values.sum().clamp(min=1e-12)).sum()))


def _unit(features: Tensor) -> Tensor:
    """Rows of length 1, float32; scaled first, so that large ones do not overflow."""
    x = features.float()
    return F.normalize(x / x.abs().amax(dim=1, keepdim=True).clamp(min=1e-12), dim=1)


def prototypes_used(mean: Tensor) -> float:
    """exp of the entropy of a batch's mean distribution (K,): how many prototypes it is spread
    over, 1 where all images are given to the same one."""
    return math.exp(float(torch.special.entr(mean.float()).sum()))


@dataclass(frozen=True, slots=True)
class Sign:
    """Whether a log line shows one kind of collapse, in words, and what to do about it."""

    name: str
    shown: bool
    text: str
    remedy: str


_MOCO = "keep `freeze_patch on`"
"""MoCo-v3's own remedy: a patch projection that trains is where its instability begins."""


def _remedies(method: Method, common: str, **own: str) -> str:
    """What to do with any method, then what only the run's own offers."""
    return "; ".join((common, own[method])) if method in own else common


def signs(line: Mapping[str, Any], method: Method, collapse_loss: float) -> Iterator[Sign]:
    """Every sign of collapse that a log line could show, with remedies that ``method`` has.

    Args:
        collapse_loss: the loss of outputs that do not depend on the image; for DINO that is ln K,
            which is also the greatest entropy that its teacher can have.
    """
    loss, std, rank = line["loss"], line["feature_std"], line["effective_rank"]
    yield Sign(
        "loss",
        abs(loss / collapse_loss - 1) <= NEAR_COLLAPSE,
        f"the loss stands at {loss:.3f}, that of outputs that ignore the image",
        _remedies(
            method,
            "lower `lr`, lengthen `warmup`",
            moco=_MOCO,
            dino="with a small model, try `head_norm on`",
        ),
    )
    yield Sign(
        "std",
        std < LEAST_STD,
        f"all images get nearly the same features (std {std:.3f} of 1)",
        _remedies(
            method,
            "lower `lr`, lengthen `warmup`, or use a larger `batch`",
            dino="check that `center_momentum` is below 1 and lower `teacher_temperature`",
        ),
    )
    yield Sign(
        "rank",
        rank < LEAST_RANK and line["batch"] >= LEAST_BATCH,
        f"the features lie along a line (effective rank {rank:.2f})",
        "lower `lr` and `weight_decay`, or use a larger `batch`",
    )
    if line["teacher_entropy"] is None:
        return
    entropy, used = line["teacher_entropy"], line["prototypes_used"]
    yield Sign(
        "one prototype",
        used < LEAST_PROTOTYPES,
        f"the teacher gives all images to the same prototypes ({used:.2f} in use)",
        "centre its output (`center_momentum` below 1), or raise `teacher_temperature`",
    )
    yield Sign(
        "uniform",
        entropy >= (1 - NEAR_COLLAPSE) * collapse_loss,
        f"the teacher gives every image to all prototypes alike (entropy {entropy:.3f} of "
        f"{collapse_loss:.3f})",
        "sharpen its output: lower `teacher_temperature`, or raise it from a lower value "
        "(`A -> B in N epochs`)",
    )


class Watch:
    """Looks at each log line and says what a person should know.

    Args:
        method: the run's, for what can be done about a sign.
        epochs: length of the whole run.
        warmup: epochs in which the learning rate rises.
    """

    def __init__(self, method: Method, epochs: float, warmup: float) -> None:
        self._method: Method = method
        self._grown = max(warmup, YOUNG * epochs)
        self._streaks: dict[str, int] = {}
        self._said: set[str] = set()
        self._norms: deque[float] = deque(maxlen=50)

    def look(self, line: Mapping[str, Any], collapse_loss: float) -> list[str]:
        """Warnings that a log line gives cause for, each with its remedy.

        Args:
            collapse_loss: as for `signs`.
        """
        warnings = []
        for sign in signs(line, self._method, collapse_loss):
            counts = sign.shown and line["epoch"] > self._grown
            self._streaks[sign.name] = self._streaks.get(sign.name, 0) + 1 if counts else 0
            if self._streaks[sign.name] >= PATIENCE and sign.name not in self._said:
                self._said.add(sign.name)
                warnings.append(f"warning: step {line['step']}: {sign.text}; {sign.remedy}")
        norm = line["gradient_norm"]
        usual = median(self._norms) if len(self._norms) >= 10 else math.inf
        self._norms.append(norm)
        if norm > SPIKE * usual and "spike" not in self._said:
            self._said.add("spike")
            remedies = _remedies(
                self._method, "lower `lr`, set `clip`, use `precision float32`", moco=_MOCO
            )
            warnings.append(
                f"warning: step {line['step']}: the gradient's norm jumped to {norm:.3g}, "
                f"{norm / usual:.0f} times the usual; if that repeats, {remedies}"
            )
        return warnings
