"""DINO: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers"
(arXiv 2104.14294).

Kept from the published recipe: multi-crop with a teacher that sees the global views only, a head of
three GELU layers, L2 normalisation and weight-normed prototypes, centring by a moving average taken
after the loss, a teacher temperature that moves once an epoch, gradients clipped tensor by tensor,
prototypes without gradient at first, weight decay on every matrix (position embeddings and [CLS]
included) and on no vector, the teacher averaged after the update with that step's momentum; and its
option of batch norm in the head, off unless asked for.

Departure: the prototypes' cross entropy is computed block by block with its gradient
(`PrototypeLoss`), which changes the memory and not the maths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcl_cli.config import TeacherTemperature
from fastcl_cli.fused import fused
from fastcl_cli.methods.base import Input, Loss, Method, Teacher, encode
from fastcl_cli.model.ema import frozen_copy
from fastcl_cli.model.norm import GlobalBatchNorm
from fastcl_cli.model.vit import Encoder
from fastcl_cli.processes import distributed

_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits at once, where a view has no more: 128 MB in float32, and 256 MB in 16 bits."""


class PrototypeLoss(torch.autograd.Function):
    """Cross entropy between the teacher's and the student's distributions over prototypes.

    L = 1 / pairs · sum_{i in globals} sum_{j != i} mean_b H(t_ib, softmax(z_jb Wᵀ / T)), with
    pairs = 2·(views - 1): Algorithm 1 of the paper with multi-crop. H is linear in t, so view j
    needs only q_j, the sum of the teacher's distributions of the other views; with m_j of them,
    the gradient by j's scaled logits is (m_j · softmax - q_j) / (pairs · B).

    That gradient is made where the logits are, so one block of logits is alive at a time instead of
    one for each view and another for each softmax. A block has the views of one kind, as many as
    fit: the prototypes and their gradient are gone through once for each block.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, weight: Tensor, teacher: Tensor, temperature: float
    ) -> Tensor:
        """
        Args:
            student: (V, B, D), unit vectors, global views first.
            weight: (K, D), prototypes.
            teacher: (2, B, K), probabilities in float32 or wider, without gradient.
        """
        views, images = student.shape[:2]
        scale = 1 / (2 * (views - 1) * images)
        dtype, wide = _product_dtype(student), weight.dtype
        student_gradient = torch.empty_like(student)
        student, weight = student.to(dtype), weight.to(dtype)
        total = teacher.sum(dim=0, keepdim=True)
        loss = teacher.new_zeros(())
        weight_gradient = None
        at_once = max(1, _LOGITS[student.device.type] // (images * len(weight)))
        for first in (*range(0, 2, at_once), *range(2, views, at_once)):
            # A global view has the teacher's distribution of the other one, a local view both.
            end = min(first + at_once, 2 if first < 2 else views)
            targets, count = total, 2
            if first < 2:
                both = end - first == 2
                targets, count = teacher.flip(0) if both else teacher[1 - first : 2 - first], 1
            z = student[first:end].flatten(0, 1)
            logits = (z @ weight.T).view(end - first, images, -1)
            part, gradient = _cross_entropy(logits, targets, count, temperature, scale)
            loss += scale * part
            gradient = gradient.flatten(0, 1)
            student_gradient[first:end] = (gradient @ weight).view(end - first, images, -1)
            if weight_gradient is not None:
                weight_gradient += gradient.T @ z
            elif ctx.needs_input_grad[1]:
                weight_gradient = (gradient.T @ z).to(wide)
            del logits, gradient  # before the next block is made
        ctx.save_for_backward(student_gradient, weight_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        student_gradient, weight_gradient = ctx.saved_tensors
        of_weight = None if weight_gradient is None else upstream[0] * weight_gradient
        return upstream[0] * student_gradient, of_weight, None, None


def _product_dtype(factor: Tensor) -> torch.dtype:
    """That a product with ``factor`` is computed in here."""
    kind = factor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else factor.dtype


@fused
def _cross_entropy(
    logits: Tensor, targets: Tensor, count: int, temperature: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Sum over rows of count · logsumexp(z) - <q, z>, z = logits / temperature, in the dtype of the
    ``targets`` q, (V or 1, B, K), of sum ``count`` each; and ``scale`` times its gradient by the
    logits, count · softmax(z) - q over the temperature, in the dtype of these, (V, B, K)."""
    z = logits.to(targets.dtype) / temperature
    normaliser = z.logsumexp(dim=2, keepdim=True)
    loss = count * normaliser.sum() - (targets * z).sum()
    gradient = z.sub_(normaliser).exp_().mul_(count).sub_(targets).mul_(scale / temperature)
    return loss, gradient.to(logits.dtype)


@fused
def _distributions(
    logits: Tensor, center: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The teacher's distributions over K prototypes of (2, B, K) logits, in float32 or wider; the
    sums of their entropies in nats, (2,); their sums over images, (2, K); and the logits' mean,
    (K,)."""
    wide = logits.to(center.dtype)
    teacher = ((wide - center) / temperature).softmax(dim=2)
    # View by view: one more (B, K) block at a time.
    entropies = torch.stack([torch.special.entr(view).sum() for view in teacher])
    return teacher, entropies, teacher.sum(dim=1), wide.mean(dim=(0, 1))


def temperature_at(schedule: TeacherTemperature, epochs: float | Tensor) -> float | Tensor:
    """``schedule.at`` the whole epoch that is under way, on the device of ``epochs``."""
    if not isinstance(epochs, Tensor):
        return schedule.at(int(epochs))
    whole, last = epochs.floor(), schedule.epochs - 1
    rising = schedule.start + (schedule.end - schedule.start) * whole / last if last > 0 else whole
    return torch.where(whole >= last, schedule.end, rising)


class DinoHead(nn.Module):
    """D-hidden-hidden-bottleneck with GELU, L2-normalised, and weight-normed prototypes.

    Args:
        norm: batch norm before each GELU; then a batch's rows are no longer independent.
        norm_last_layer: keep each prototype's length at 1; else it is learned.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        norm: bool,
        norm_last_layer: bool,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inner in (width, hidden):
            layers.append(nn.Linear(inner, hidden))
            if norm:
                layers.append(GlobalBatchNorm(hidden))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.direction = nn.Parameter(torch.randn(prototypes, bottleneck))
        self.length = nn.Parameter(torch.ones(prototypes, 1), requires_grad=not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) features to (B, bottleneck) unit vectors, in float32 or wider."""
        x = self.mlp(features)
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)

    @property
    def prototypes(self) -> Tensor:
        """(K, bottleneck)."""
        return self.length * F.normalize(self.direction, dim=1)


def project(head: DinoHead, features: Sequence[Tensor]) -> Tensor:
    """The head on V views of (B, D) at once, (V, B, bottleneck): as in the published code, a batch
    norm's statistics are those of all views that a network sees."""
    z: Tensor = head(torch.cat(list(features)))
    return z.view(len(features), -1, z.shape[1])


class DINO(Method):
    """A student that predicts, from every view, its teacher's distribution for the global ones."""

    def __init__(
        self,
        backbone: Encoder,
        head: tuple[int, ...],
        head_norm: bool,
        temperature: float,
        teacher_temperature: TeacherTemperature,
        center_momentum: float,
        freeze_last_layer: float,
        norm_last_layer: bool,
    ) -> None:
        super().__init__()
        hidden, bottleneck, prototypes = head
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.center_momentum = center_momentum
        self.freeze_last_layer = freeze_last_layer
        projector = DinoHead(
            backbone.width, hidden, bottleneck, prototypes, head_norm, norm_last_layer
        )
        self.online = nn.ModuleDict({"backbone": backbone, "head": projector})
        self.target = frozen_copy(self.online)
        self.center: Tensor
        self.register_buffer("center", torch.zeros(prototypes))

    def loss(
        self, online: Sequence[Input], target: Sequence[Input], epochs: float | Tensor
    ) -> Loss:
        student_head, teacher_head = self._heads
        features = encode(self.online["backbone"], online, self.parts)
        student = project(student_head, features)
        with torch.no_grad():
            assert self.target is not None
            z = project(teacher_head, encode(self.target["backbone"], target, self.parts))
            logits = z @ teacher_head.prototypes.T
            temperature = temperature_at(self.teacher_temperature, epochs)
            teacher, entropies, sums, mean = _distributions(logits, self.center, temperature)
            mean = distributed.average(mean)
            seen = Teacher(entropies.sum() / len(z[0]) / 2, sums.sum(dim=0) / len(z[0]) / 2)
        value = PrototypeLoss.apply(student, student_head.prototypes, teacher, self.temperature)
        return Loss(value, features[0].detach(), mean, seen)

    def collapse_loss(self, batch: int) -> float:
        return math.log(len(self.center))

    def absorb(self, statistics: Tensor) -> None:
        """Move the centre towards the mean teacher output of a batch (eq. 4 of the paper)."""
        self.center.lerp_(statistics, 1 - self.center_momentum)

    def frozen(self, epochs: float) -> list[nn.Parameter]:
        head, _ = self._heads
        return [head.direction, head.length] if epochs < self.freeze_last_layer else []

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2

    @property
    def _heads(self) -> tuple[DinoHead, DinoHead]:
        assert self.target is not None
        student, teacher = self.online["head"], self.target["head"]
        assert isinstance(student, DinoHead) and isinstance(teacher, DinoHead)
        return student, teacher
