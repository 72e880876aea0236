"""A run's configuration: typed, complete and strict.

`RunConfig` is what a schedule's settings become when every default of the method has been filled
in. It is plain integers, floats and strings (no torch), so that checking and estimating a schedule
needs no deep-learning library, and it is written as it stands to a run's ``config.json``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

Method = Literal["moco", "simclr", "dino"]
METHODS: tuple[Method, ...] = ("moco", "simclr", "dino")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue, on a scale from 0 to 1: what images are normalised by."""
IMAGENET_IMAGES = 1_281_167
"""Images of ImageNet-1k's training set: assumed where neither data nor a setting says how many."""


@dataclass(frozen=True, slots=True)
class VitShape:
    """What must be known of a timm ``VisionTransformer`` to count its tokens and its cost.

    ``options`` holds the overrides that the schedule wrote in brackets, by timm's argument names;
    ``timm.create_model(name, num_classes=0, img_size=image, **options)`` builds the model.
    """

    name: str
    options: tuple[tuple[str, int | float], ...]
    patch: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    prefix_tokens: int

    def timm_arguments(self, image: int) -> dict[str, int | float]:
        """What ``timm.create_model`` must be told beside the name, for images of side ``image``."""
        return {"num_classes": 0, "img_size": image, **dict(self.options)}

    def timm_line(self, image: int, path: Path) -> str:
        """The Python line that loads a backbone file for images of side ``image`` into timm."""
        arguments = self.timm_arguments(image)
        listed = "".join(f"{name}={value!r}, " for name, value in arguments.items())
        return f"timm.create_model({self.name!r}, {listed}checkpoint_path={str(path)!r})"


@dataclass(frozen=True, slots=True)
class Locals:
    """DINO's small views: how many per image, and their side in pixels."""

    count: int
    side: int


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of training with its unit, e.g. ``10 epochs``."""

    value: Fraction
    unit: Literal["epochs", "steps", "percent"]


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Peak learning rate: ``value`` for a batch of ``per`` images, linear in the batch.

    ``per`` is None where the rate is meant as written, whatever the batch.
    """

    value: float
    per: int | None

    def peak(self, batch: int) -> float:
        return self.value if self.per is None else self.value * batch / self.per


@dataclass(frozen=True, slots=True)
class Decay:
    """How the learning rate falls after warm-up: from its peak to ``to``.

    ``poly`` falls as (1 - progress)**power; ``power`` is 1 for the other kinds, which ignore it.
    """

    kind: Literal["cosine", "poly", "constant"]
    power: float
    to: float


@dataclass(frozen=True, slots=True)
class Ramp:
    """A value that moves from ``start`` to ``end`` along half a cosine over the run."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class TeacherTemperature:
    """DINO's teacher temperature: ``start`` to ``end``, linear over ``epochs``, then constant."""

    start: float
    end: float
    epochs: float

    def at(self, epoch: int) -> float:
        """The temperature of a whole epoch: ``start`` in the first one, ``end`` from the last of
        ``epochs`` on."""
        if epoch >= self.epochs - 1:
            return self.end
        return self.start + (self.end - self.start) * epoch / (self.epochs - 1)


@dataclass(frozen=True, slots=True)
class Jitter:
    """Strengths of brightness, contrast, saturation (>= 0) and hue (turns, 0 to 0.5), and the
    probability that an image's view gets them."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    probability: float


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The recipe of random changes that makes the views.

    ``crop`` and ``local_crop`` are the least and greatest share of the image's area that a global
    or local view shows. ``blur`` and ``solarize`` hold a probability for the first global view,
    the second one, and the local ones.
    """

    crop: tuple[float, float]
    local_crop: tuple[float, float]
    resize: Literal["bilinear", "bicubic"]
    flip: float
    jitter: Jitter
    grayscale: float
    blur: tuple[float, float, float]
    solarize: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Choices:
    """What `auto` phases choose from: every ``drop`` with every ``patch``, each in rising order."""

    drop: tuple[Fraction, ...]
    patch: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that a run is, besides its plan and its seed."""

    method: Method
    model: VitShape
    image: int
    locals: Locals | None
    data: str | None
    val: str | None
    images: int
    images_source: Literal["data", "setting", "option", "imagenet-1k"]
    batch: int
    accumulate: int
    lr: LearningRate
    decay: Decay
    warmup: Duration
    betas: tuple[float, float]
    weight_decay: Ramp
    clip: float | None
    momentum: Ramp | None
    temperature: float
    teacher_temperature: TeacherTemperature | None
    head: tuple[int, ...]
    head_norm: bool
    position: Literal["sincos", "learned"]
    freeze_patch: bool
    freeze_last_layer: float
    norm_last_layer: bool
    center_momentum: float
    drop_path: float
    augmentation: Augmentation
    precision: Literal["auto", "float32", "bf16"]
    decode: int | None
    choices: Choices | None
    gradient_error: int | Literal["auto"] | None
    knn: Duration | None

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values (fractions as ``"a/b"`` strings)."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(item) for item in value]
            return str(value) if isinstance(value, Fraction) else value

        result: dict[str, Any] = plain(asdict(self))
        return result
