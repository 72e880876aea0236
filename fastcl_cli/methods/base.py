"""What the trainer knows of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastcl_cli.model.vit import Encoder


@dataclass(frozen=True, slots=True)
class Input:
    """One view as one encoder sees it.

    ``pixels`` is the normalised low-resolution view, float32 (B, 3, g·p, g·p); ``kept`` the patch
    tokens to encode, int64 (B, K), or None for all of them; ``paths`` the factors of the residual
    branches, float32 (depth, 2, B), or None for 1.
    """

    pixels: Tensor
    kept: Tensor | None = None
    paths: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Side in pixels and number of tokens kept (0 for all): equal shapes can share a batch."""
        return self.pixels.shape[-1], 0 if self.kept is None else self.kept.shape[1]

    def split(self, parts: int) -> list[Input]:
        """At most so many inputs of nearly equal numbers of images, in order."""
        pixels = self.pixels.chunk(parts)
        nothing = [None] * len(pixels)
        kept = nothing if self.kept is None else self.kept.chunk(parts)
        paths = nothing if self.paths is None else self.paths.chunk(parts, dim=2)
        return [Input(*each) for each in zip(pixels, kept, paths, strict=True)]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A batch of distributions over K prototypes: the mean of their entropies in nats, a scalar,
    and their mean, (K,)."""

    entropy: Tensor
    mean: Tensor


@dataclass(frozen=True, slots=True)
class Loss:
    """What a batch gives: this process's loss, a scalar in float32 or wider, whose mean over
    processes is the loss of the global batch; and what the method's own state should move towards
    if the batch is trained on (`Method.absorb`), the same in all processes.

    To judge the run's health by, without gradient and of this process: ``features``, the
    backbone's of the first view, (B, D), and ``teacher``, where the target is one.
    """

    value: Tensor
    features: Tensor
    statistics: Tensor | None = None
    teacher: Teacher | None = None


class Method(nn.Module, ABC):
    """An online network, the momentum copy that is its target (if any), and a loss.

    Attributes:
        online: everything that gets gradients; ``online.backbone`` is the `Encoder`.
        target: the momentum copy of what the target needs, or None.
        parts: in how many parts, one after the other, images go through the backbones (`encode`).
        momentum_lead: the target is averaged after the update of step s with the momentum of step
            s + ``momentum_lead``; see the methods for why.
    """

    online: nn.ModuleDict
    target: nn.ModuleDict | None
    parts: int = 1
    momentum_lead: int = 0

    @abstractmethod
    def loss(
        self, online: Sequence[Input], target: Sequence[Input], epochs: float | Tensor
    ) -> Loss:
        """The training loss of one batch; changes nothing.

        Args:
            online: every view as the online encoder sees it, global views first.
            target: the views that the target encoder sees, in the same order; empty without one.
            epochs: progress of the run, for what a recipe counts in epochs; a float64 scalar on
                the device where the processor does not follow what happens there.
        """

    def absorb(self, statistics: Tensor) -> None:
        """Take in a trained batch's `Loss.statistics`."""

    def frozen(self, epochs: float) -> list[nn.Parameter]:
        """Parameters that are not updated yet at this point of the run."""
        return []

    @abstractmethod
    def collapse_loss(self, batch: int) -> float:
        """The loss of outputs that do not depend on the image, for a global batch of ``batch``."""

    @abstractmethod
    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay acts on a parameter of ``online``."""

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that get gradients, by their name in ``online``."""
        return {n: p for n, p in self.online.named_parameters() if p.requires_grad}

    @property
    def backbone(self) -> Encoder:
        """The encoder that a user takes away: the target's, or the online one without a target."""
        owner = self.online if self.target is None else self.target
        backbone = owner["backbone"]
        assert isinstance(backbone, Encoder)
        return backbone


def encode(network: nn.Module, views: Sequence[Input], parts: int = 1) -> list[Tensor]:
    """Features of each view, running views of equal shape through the network as one batch.

    Valid for backbones only: their layer norms treat each image alone, whereas a head's batch norm
    would mix the statistics of the views.

    In several ``parts`` the batch goes through one after the other, and none keeps its activations:
    the backward pass computes a part's again when it comes to it. Heads and loss see all features
    at once all the same, so negatives, batch norms and centre are those of the whole batch, and
    so is the gradient.

    Returns:
        one (B, D) tensor for each view, in order.
    """
    assert isinstance(network, Encoder)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.shape, []).append(index)
    wholes = []
    for members in groups.values():
        pixels = torch.cat([views[i].pixels for i in members])
        kept = [kept for i in members if (kept := views[i].kept) is not None]
        paths = [paths for i in members if (paths := views[i].paths) is not None]
        wholes.append(
            (pixels, torch.cat(kept) if kept else None, torch.cat(paths, dim=2) if paths else None)
        )
    if parts == 1:
        outputs = network.encode(wholes)
    else:
        split = [Input(*whole).split(parts) for whole in wholes]
        outputs = [torch.cat([_encode_again(network, part) for part in whole]) for whole in split]
    features: list[Tensor] = [torch.empty(0)] * len(views)
    for members, output in zip(groups.values(), outputs, strict=True):
        for index, part in zip(members, output.chunk(len(members)), strict=True):
            features[index] = part
    return features


def _encode_again(network: Encoder, part: Input) -> Tensor:
    arguments = (part.pixels, part.kept, part.paths)
    # Nothing in a forward pass is drawn, so the second one is the first.
    output: Tensor = (
        checkpoint(network, *arguments, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else network(*arguments)
    )
    return output
