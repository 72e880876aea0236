"""The closed table of settings: name, form, default of each method, meaning.

This is the one place where an option is described. The checks read it, ``RunConfig`` is filled from
its defaults, and README's table is made of it by `settings_markdown`. Defaults are written in the
language itself and read by the same readers as a file's values.

Sources of the defaults: MoCo-v3 (arXiv 2104.02057 and its published configuration), DINO (arXiv
2104.14294 and its published code), SimCLR on ViT as in SLIP (arXiv 2112.12750).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastcl_cli.config import METHODS, Method
from fastcl_cli.schedule import values as read
from fastcl_cli.schedule.reader import Values

NONE = "none"


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """One setting.

    ``defaults`` has the text that a method behaves as if it stood in the file, or `NONE` where
    nothing stands for it; methods that are absent from it do not take the setting.
    """

    name: str
    syntax: str
    read: Callable[[Values], Any]
    defaults: Mapping[Method, str]
    meaning: str

    @property
    def methods(self) -> list[Method]:
        return [method for method in METHODS if method in self.defaults]


def _all(text: str) -> dict[Method, str]:
    return {"moco": text, "simclr": text, "dino": text}


def _each(moco: str, simclr: str, dino: str) -> dict[Method, str]:
    return {"moco": moco, "simclr": simclr, "dino": dino}


def _dino(text: str) -> dict[Method, str]:
    return {"dino": text}


_SPECS = (
    SettingSpec("method", "moco|simclr|dino", read.read_method, _all("moco"), "what to train with"),
    SettingSpec(
        "model",
        "NAME [(embed_dim=N, depth=N, num_heads=N, patch_size=N, mlp_ratio=X)]",
        read.read_model,
        _all("vit_small_patch16_224"),
        "a timm VisionTransformer with a class token, and sizes that override its own",
    ),
    SettingSpec(
        "image", "N", read.whole(8, 4096), _all("224"), "side of the global views in pixels"
    ),
    SettingSpec(
        "locals",
        "COUNT SIDE",
        read.read_locals,
        _dino("8 96"),
        "DINO's small views: how many for each image, and their side in pixels",
    ),
    SettingSpec(
        "data",
        '"PATH"|digits',
        read.read_data,
        _all(NONE),
        'betons ("train-*.beton" is all of them), an image folder or (as in "CIFAR10") a set by '
        "name; or the built-in digits",
    ),
    SettingSpec(
        "val",
        '"PATH"|digits',
        read.read_data,
        _all(NONE),
        "labelled images that `knn` judges on, a beton or a folder; "
        "by default those that `data` holds out",
    ),
    SettingSpec(
        "images",
        "N",
        read.whole(1, 10**9),
        _all(NONE),
        "number of training images, where the data does not say; else ImageNet-1k's 1,281,167",
    ),
    SettingSpec(
        "length",
        "N epochs",
        read.read_length,
        _all(NONE),
        "length of a schedule whose ranges are in per cent",
    ),
    SettingSpec(
        "batch",
        "N",
        read.whole(1, 10**6),
        _each("4096", "4096", "1024"),
        "images of a step over all devices; a phase may have its own",
    ),
    SettingSpec(
        "accumulate",
        "N",
        read.whole(1, 10**6),
        _all("1"),
        "parts in which a device's images go through the backbone, to need less memory: the same "
        "gradient of the whole batch for one more forward pass",
    ),
    SettingSpec(
        "lr",
        "X [per N]",
        read.read_lr,
        _each("1.5e-4 per 256", "2e-4 per 256", "5e-4 per 256"),
        "peak learning rate; with `per N`, for a batch of N and linear in the batch",
    ),
    SettingSpec(
        "decay",
        "cosine|poly K [to X] | constant",
        read.read_decay,
        _each("cosine", "cosine to 1e-5", "cosine to 1e-6"),
        "fall of the learning rate after the warm-up, to X as it stands (default 0)",
    ),
    SettingSpec(
        "warmup",
        "N epochs|N steps|N%",
        read.read_duration,
        _each("40 epochs", "1 epochs", "10 epochs"),
        "linear rise of the learning rate from 0",
    ),
    SettingSpec(
        "betas",
        "A B",
        read.read_betas,
        _each("0.9 0.999", "0.9 0.98", "0.9 0.999"),
        "AdamW's averages of gradient and squared gradient",
    ),
    SettingSpec(
        "weight_decay",
        "A [-> B]",
        read.ramp("10"),
        _each("0.1", "0.1", "0.04 -> 0.4"),
        "AdamW's weight decay, from A to B along half a cosine",
    ),
    SettingSpec(
        "clip",
        "X|none",
        read.read_clip,
        _each("none", "none", "3"),
        "largest norm of a parameter tensor's gradient",
    ),
    SettingSpec(
        "momentum",
        "A [-> B]",
        read.ramp("1"),
        {"moco": "0.99 -> 1", "dino": "0.996 -> 1"},
        "of the target encoder's moving average, from A to B along half a cosine",
    ),
    SettingSpec(
        "temperature",
        "T",
        read.real("0", "10", above=True),
        _each("0.2", "0.1", "0.1"),
        "of the loss's softmax (DINO: the student's)",
    ),
    SettingSpec(
        "teacher_temperature",
        "A [-> B in N epochs]",
        read.read_teacher_temperature,
        _dino("0.04"),
        "of the teacher's softmax; with `-> B`, linear to B over N epochs, then constant",
    ),
    SettingSpec(
        "head",
        "HIDDEN OUT [PROTOTYPES]",
        read.read_head,
        _each("4096 256", "4096 256", "2048 256 65536"),
        "widths of the projection head; DINO: hidden, bottleneck, prototypes",
    ),
    SettingSpec(
        "head_norm",
        "on|off",
        read.read_on_off,
        _dino("off"),
        "batch norm on the hidden layers of the head",
    ),
    SettingSpec(
        "position",
        "sincos|learned",
        read.words("sincos", "learned"),
        _each("sincos", "learned", "learned"),
        "position embeddings: fixed sine-cosine or learned",
    ),
    SettingSpec(
        "freeze_patch",
        "on|off",
        read.read_on_off,
        _each("on", "off", "off"),
        "leave the patch projection as it was initialised",
    ),
    SettingSpec(
        "freeze_last_layer",
        "N epochs",
        read.read_epochs,
        _dino("1 epochs"),
        "no update of the prototypes for so long",
    ),
    SettingSpec(
        "norm_last_layer",
        "on|off",
        read.read_on_off,
        _dino("on"),
        "keep the prototypes at unit length",
    ),
    SettingSpec(
        "center_momentum",
        "X",
        read.real("0", "1"),
        _dino("0.9"),
        "of the moving average of the teacher's output",
    ),
    SettingSpec(
        "drop_path",
        "X",
        read.real("0", "0.9"),
        _each("0", "0", "0.1"),
        "probability of skipping the last block of the online encoder, linear in depth",
    ),
    SettingSpec(
        "crop",
        "A B",
        read.read_share,
        _each("0.08 1", "0.08 1", "0.4 1"),
        "share of the image's area that a global view shows",
    ),
    SettingSpec(
        "local_crop",
        "A B",
        read.read_share,
        _dino("0.05 0.4"),
        "share of the image's area that a local view shows",
    ),
    SettingSpec(
        "resize",
        "bilinear|bicubic",
        read.words("bilinear", "bicubic"),
        _each("bilinear", "bilinear", "bicubic"),
        "interpolation of the crops, antialiased",
    ),
    SettingSpec("flip", "P", read.real("0", "1"), _all("0.5"), "probability of a horizontal flip"),
    SettingSpec(
        "jitter",
        "B C S H P",
        read.read_jitter,
        _each("0.4 0.4 0.2 0.1 0.8", "0.4 0.4 0.4 0.1 0.8", "0.4 0.4 0.2 0.1 0.8"),
        "brightness, contrast, saturation and hue, and their probability",
    ),
    SettingSpec("grayscale", "P", read.real("0", "1"), _all("0.2"), "probability of a grey view"),
    SettingSpec(
        "blur",
        "P P [P]",
        read.read_per_view,
        _each("1 0.1", "0.5 0.5", "1 0.1 0.5"),
        "probability of blur: first global view, second, DINO's local ones",
    ),
    SettingSpec(
        "solarize",
        "P P [P]",
        read.read_per_view,
        _each("0 0.2", "0 0", "0 0.2 0"),
        "probability of solarizing: first global view, second, DINO's local ones",
    ),
    SettingSpec(
        "precision",
        "auto|float32|bf16",
        read.words("auto", "float32", "bf16"),
        _all("auto"),
        "auto is bf16 where a GPU computes it or a CPU is faster with it",
    ),
    SettingSpec(
        "decode",
        "N|none",
        read.read_decode,
        _all(NONE),
        "side in pixels of the square that images are decoded to; none: from image and data",
    ),
    SettingSpec(
        "choices",
        "drop R [R …] patch P [P …]",
        read.read_choices,
        _all(NONE),
        "what `auto` phases choose from: every share to drop with every patch side",
    ),
    SettingSpec(
        "gradient_error",
        "auto|N steps|none",
        read.read_gradient_error,
        _all("auto"),
        "interval at which the current compression's gradient error is estimated; auto takes about "
        "1% of the operations",
    ),
    SettingSpec(
        "knn",
        "N epochs|N steps|N%|none",
        read.read_interval,
        _all("10%"),
        "how often the features are judged during the run, by k-NN on `val`",
    ),
)

SETTINGS: dict[str, SettingSpec] = {spec.name: spec for spec in _SPECS}
SETTING_NAMES = frozenset(SETTINGS)


def settings_markdown() -> str:
    """The table of settings for README, as Markdown."""
    rows = [
        "| setting | form | MoCo | SimCLR | DINO | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for spec in _SPECS:
        cells = [f"`{spec.name}`", f"`{spec.syntax}`".replace("|", "\\|")]
        cells += [spec.defaults.get(method, "—") for method in METHODS]
        rows.append("| " + " | ".join([*cells, spec.meaning]) + " |")
    return "\n".join(rows) + "\n"
