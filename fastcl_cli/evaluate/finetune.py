"""Fine-tuning: the whole network and a linear classifier on its [CLS].

AdamW with layer-wise rates (as BEiT has them, Bao et al., arXiv 2106.08254, after Clark et al.,
arXiv 2003.10555), cosine to 0 after a linear warm-up, stochastic depth, RandomResizedCrop and
flips. No mixup, no cutmix, no colour changes, no average of the weights.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from fastcl_cli.config import Decay
from fastcl_cli.errors import NumericalError
from fastcl_cli.evaluate.images import Images, Progress, crop_and_flip, steps_per_epoch
from fastcl_cli.evaluate.metrics import Accuracy, Tally
from fastcl_cli.model.paths import draw_paths
from fastcl_cli.model.vit import Encoder
from fastcl_cli.rng import derive_seed
from fastcl_cli.train.device import Device
from fastcl_cli.train.optim import gradient_norm
from fastcl_cli.train.schedules import warm_then_decay

WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.999)
WARMUP = 0.05
"""Share of all steps."""
_INITIAL = 0.01
_NEVER_DECAYED = ("pos_embed", "cls_token", "reg_token")
_COSINE = Decay("cosine", 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What fine-tuning leaves open; the attributes are those of `ProbeSettings`, but ``lr``, the
    peak rate of the last layer as it stands."""

    epochs: int
    batch: int
    lr: float
    layer_decay: float
    drop_path: float
    label_smoothing: float
    crop_min: float
    flip: float
    seed: int


class Classifier(nn.Module):
    """A copy of an encoder with a linear classifier: weights N(0, 0.01²), biases 0."""

    def __init__(self, encoder: Encoder, classes: int, seed: int) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.head: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, encoder.width, classes
        )
        generator = torch.Generator().manual_seed(derive_seed(seed, "probe classifier", 0))
        with torch.no_grad():
            self.head.weight.normal_(0, _INITIAL, generator=generator)
            self.head.bias.zero_()

    def forward(self, view: Tensor, paths: Tensor | None = None) -> Tensor:
        """Logits (B, classes)."""
        logits: Tensor = self.head(self.encoder(view, paths=paths))
        return logits


def finetune(
    encoder: Encoder,
    train: Images,
    val: Images,
    recipe: Recipe,
    compute: Device,
    progress: Progress | None = None,
) -> Accuracy:
    """Train a copy of ``encoder`` on ``train``, and judge it once, at the end, on ``val``.

    Raises:
        DataError: a record is damaged.
        NumericalError: a loss or a gradient is not finite.
    """
    classes = int(train.labels.max()) + 1
    model = Classifier(encoder, classes, recipe.seed).to(compute.device).train()
    groups = layer_groups(model, recipe.layer_decay)
    optimizer = AdamW(groups, lr=0.0, betas=BETAS, fused=True)
    steps = recipe.epochs * steps_per_epoch(train.data.images, recipe.batch)
    augmentation = crop_and_flip(recipe.crop_min, recipe.flip)
    batches = train.augmented(augmentation, recipe.batch, recipe.epochs, recipe.seed)
    for step, (view, rows) in enumerate(batches):
        rate = warm_then_decay(step, steps, WARMUP * steps, recipe.lr, _COSINE)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        labels = train.labels[rows].to(compute.device)
        with compute.autocast():
            logits = model(view, _paths(recipe, encoder.depth, step, len(rows), compute.device))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        _refuse_unless_finite(step, float(loss.detach()), float(gradient_norm(model.parameters())))
        optimizer.step()
        if progress is not None:
            progress("fine-tuning", step + 1, steps)
    return _judge(model, val, classes, compute)


def layer_groups(model: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: each layer's parameters, those that decay and the others apart.

    The rate's ``scale`` is layer_decay^(depth + 1 - layer): layer 0 is what stands before the
    blocks, layer i is the i-th block, layer depth + 1 the final norm and the classifier. Vectors,
    position embedding and class token do not decay.
    """
    depth = model.encoder.depth
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("encoder.vit.")
        layer = _layer(name, depth)
        decays = parameter.ndim > 1 and name not in _NEVER_DECAYED
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "scale": layer_decay ** (depth + 1 - layer),
                "weight_decay": WEIGHT_DECAY if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _layer(name: str, depth: int) -> int:
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "fc_norm.", "head.")) else 0


def _paths(
    recipe: Recipe, depth: int, step: int, images: int, device: torch.device
) -> Tensor | None:
    if recipe.drop_path == 0:
        return None
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, "probe paths", step))
    return draw_paths(images, depth, recipe.drop_path, generator).to(device)


def _refuse_unless_finite(step: int, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NumericalError(
            f"fine-tuning, step {step}: loss {loss}, gradient norm {norm}",
            "lower --finetune-lr, or use --precision float32",
        )


@torch.no_grad()
def _judge(model: Classifier, val: Images, classes: int, compute: Device) -> Accuracy:
    model.eval()
    tally = Tally(classes)
    for view, rows in val.centre():
        with compute.autocast():
            logits = model(view)
        tally.add_scores(logits.float(), val.labels[rows])
    return tally.accuracy()
