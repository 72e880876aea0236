"""The commands on trained features: probe, export."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastcl_cli.cli.options import Json


class Task(str, Enum):
    """What `probe` does with the features, or with the network."""

    knn = "knn"
    linear = "linear"
    finetune = "finetune"


class Weights(str, Enum):
    """A network of a run."""

    target = "target"
    online = "online"


class Precision(str, Enum):
    """Of matrix products."""

    auto = "auto"
    float32 = "float32"
    bf16 = "bf16"


class Format(str, Enum):
    """What `export` writes."""

    timm = "timm"
    hf = "hf"
    onnx = "onnx"


def probe(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Backbone or checkpoint.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Folder or name of a set. [default: the run's own data]"),
    ] = None,
    train: Annotated[Path | None, typer.Option("--train", help="Labelled beton to fit on.")] = None,
    val: Annotated[
        Path | None,
        typer.Option("--val", help="Labelled images to judge on; beside --train a beton."),
    ] = None,
    task: Annotated[
        list[Task] | None, typer.Option("--task", help="What to do; repeatable. [default: knn]")
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option("--weights", help="Which network of a run's checkpoint. [default: target]"),
    ] = None,
    crop_ratio: Annotated[
        float | None,
        typer.Option(
            "--crop-ratio",
            min=0.1,
            max=1,
            help="Share of the short side shown. [default: 0.875, 1 below 128 px]",
        ),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Judge its initial weights beside it.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option("--dump-features", metavar="DIR", help="Write features and labels there."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="linear, finetune. [default: 0]")
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", min=1, help="knn: neighbours; repeatable. [default: 20 10 100 200]"),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", min=0.01, help="knn: of votes; repeatable. [default: 0.07]"),
    ] = None,
    blocks: Annotated[
        list[int] | None,
        typer.Option("--blocks", min=1, help="linear: last blocks read; repeatable. [default: 1]"),
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="linear: also read the mean of the patch tokens.")
    ] = False,
    augment: Annotated[
        bool, typer.Option("--augment", help="linear: random crops and flips, not centre crops.")
    ] = False,
    linear_lr: Annotated[
        list[float] | None,
        typer.Option(
            "--linear-lr",
            min=1e-9,
            help="linear: rate per 256 images; repeatable. [default: 15, from 1e-4 to 5]",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="linear, finetune. [default: 100]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="linear, finetune. [default: 256]")
    ] = None,
    crop_min: Annotated[
        float | None,
        typer.Option(
            "--crop-min", min=0.01, max=1, help="Least area of a random crop. [default: 0.08]"
        ),
    ] = None,
    flip: Annotated[
        float | None, typer.Option("--flip", min=0, max=1, help="Probability. [default: 0.5]")
    ] = None,
    finetune_lr: Annotated[
        float | None,
        typer.Option(
            "--finetune-lr", min=1e-9, help="finetune: rate per 256 images. [default: 5e-4]"
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            "--layer-decay", min=0.01, max=1, help="finetune: rate per block. [default: 0.75]"
        ),
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option("--drop-path", min=0, max=0.9, help="finetune. [default: 0.1]"),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option("--label-smoothing", min=0, max=0.9, help="finetune. [default: 0]"),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="finetune. [default: auto]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how good a checkpoint's features are on labelled images: k-NN, linear, fine-tuned."""
    from fastcl_cli.ui import probe as view

    given = {
        "tasks": [one.value for one in task or ()],
        "weights": weights and weights.value,
        "crop_ratio": crop_ratio,
        "untrained": untrained,
        "seed": seed,
        "dump": dump,
        "k": k,
        "temperature": temperature,
        "blocks": blocks,
        "pool": pool,
        "augment": augment,
        "linear_lr": linear_lr,
        "epochs": epochs,
        "batch": batch,
        "crop_min": crop_min,
        "flip": flip,
        "finetune_lr": finetune_lr,
        "layer_decay": layer_decay,
        "drop_path": drop_path,
        "label_smoothing": label_smoothing,
        "precision": precision and precision.value,
    }
    view.run(checkpoint, data, train, val, given, as_json)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Backbone or checkpoint.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="File, or for hf a folder, to write."),
    ],
    format: Annotated[
        Format | None,
        typer.Option("--format", help="[default: by PATH's end: .safetensors, .onnx, else hf]"),
    ] = None,
    image: Annotated[
        int | None,
        typer.Option("--image", min=1, help="Side in pixels. [default: as trained]"),
    ] = None,
    patch: Annotated[
        int | None,
        typer.Option("--patch", min=1, help="Side in pixels. [default: as trained]"),
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option("--weights", help="Which network of a run's checkpoint. [default: target]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that is in PATH.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write a backbone for others: a timm file, a Hugging Face folder or an ONNX file.

    For another image or patch side the position embeddings and the patch projection are resized.
    What was written is loaded, and its features are compared with the checkpoint's.
    """
    from fastcl_cli.ui import export as view

    view.run(
        checkpoint,
        out,
        format.value if format else None,
        image=image,
        patch=patch,
        weights=weights.value if weights else None,
        overwrite=overwrite,
        as_json=as_json,
    )
