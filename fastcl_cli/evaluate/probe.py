"""`fastcl probe`: a checkpoint's backbone judged on a labelled data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.checkpoint import load_backbone
from fastcl_cli.data.beton import Beton
from fastcl_cli.errors import UsageError
from fastcl_cli.evaluate.bench import LR_PER_BATCH, Bench, Row
from fastcl_cli.evaluate.finetune import BETAS, WARMUP, WEIGHT_DECAY, Recipe, finetune
from fastcl_cli.evaluate.images import Progress
from fastcl_cli.evaluate.knn import Vote, knn_accuracy
from fastcl_cli.evaluate.linear_rows import linear_rows
from fastcl_cli.evaluate.settings import DEFAULT_KS, ProbeSettings, Task
from fastcl_cli.methods.build import build_backbone
from fastcl_cli.train.device import choose_device


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What `fastcl probe` answers; ``untrained`` holds the same rows for the same network with its
    initial weights, where that was asked for."""

    checkpoint: str
    results: tuple[Row, ...]
    untrained: tuple[Row, ...] | None
    n_train: int
    n_val: int

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": 1, "fastcl": __version__, **asdict(self)}


def probe(
    checkpoint: Path,
    train: Beton,
    val: Beton,
    settings: ProbeSettings | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Do the tasks of ``settings`` with a backbone: train on one set, judge on another.

    Features are float32 of the uncompressed image.

    Raises:
        UsageError: a setting does not fit the model or the data.
        CheckpointError, DataError, NumericalError: as `load_backbone`, `same_classes`, `extract`,
            `linear_rows` and `finetune` have them.
    """
    settings = settings or ProbeSettings()
    encoder, spec = load_backbone(checkpoint, settings.weights)
    networks = [encoder, build_backbone(spec)] if settings.untrained else [encoder]
    ks = _neighbours(settings.k, train.images)
    if settings.dump is not None:
        _make_folder(settings.dump)
    bench = Bench(networks, spec, train, val, settings, progress)
    if settings.dump is not None:
        bench.dump(settings.dump, checkpoint)
    done: dict[Task, list[list[Row]]] = {}
    # Fine-tuning last: its precision may be another than the features'.
    for task in sorted(settings.tasks, key=lambda name: name == "finetune"):
        if task == "knn":
            done[task] = _knn_rows(bench, ks)
        else:
            done[task] = linear_rows(bench) if task == "linear" else _finetune_rows(bench)
    rows = [
        tuple(row for task in settings.tasks for row in done[task][number])
        for number in range(len(networks))
    ]
    return ProbeResult(
        str(checkpoint),
        rows[0],
        rows[1] if settings.untrained else None,
        train.images,
        val.images,
    )


def _knn_rows(bench: Bench, ks: tuple[int, ...]) -> list[list[Row]]:
    def row(vote: Vote) -> Row:
        protocol = {
            "k": vote.k,
            "temperature": vote.temperature,
            "similarity": "cosine",
            **bench.common,
            "precision": "float32",
        }
        return Row.of("knn", vote.accuracy, protocol)

    return [
        [
            row(vote)
            for vote in knn_accuracy(
                bench.last(known),
                bench.last(asked),
                ks,
                bench.settings.temperature,
                bench.compute.device,
                progress=bench.progress,
            )
        ]
        for known, asked in zip(bench.of_train, bench.of_val, strict=True)
    ]


def _finetune_rows(bench: Bench) -> list[list[Row]]:
    settings = bench.settings
    compute = choose_device(settings.precision)
    recipe = Recipe(
        epochs=settings.epochs,
        batch=bench.batch,
        lr=settings.finetune_lr * bench.batch / LR_PER_BATCH,
        layer_decay=settings.layer_decay,
        drop_path=settings.drop_path,
        label_smoothing=settings.label_smoothing,
        crop_min=settings.crop_min,
        flip=settings.flip,
        seed=settings.seed,
    )
    protocol = {
        "views": bench.augmentation(),
        "judged": "once, after the last epoch",
        "lr": settings.finetune_lr,
        "lr_per_batch": LR_PER_BATCH,
        "layer_decay": settings.layer_decay,
        "drop_path": settings.drop_path,
        "label_smoothing": settings.label_smoothing,
        "optimizer": "AdamW",
        "betas": BETAS,
        "weight_decay": WEIGHT_DECAY,
        "decay": "cosine to 0",
        "warmup": f"{WARMUP:.0%} of the steps, linear",
        **bench.length(),
        **bench.common,
        "precision": compute.precision,
    }
    return [
        [
            Row.of(
                "finetune",
                finetune(network, bench.train, bench.val, recipe, compute, bench.progress),
                protocol,
            )
        ]
        for network in bench.networks
    ]


def _neighbours(asked: tuple[int, ...] | None, images: int) -> tuple[int, ...]:
    """The k's asked for, or those of `DEFAULT_KS` that the training set has."""
    if asked is None:
        return tuple(k for k in DEFAULT_KS if k <= images) or (images,)
    if max(asked) > images:
        raise UsageError(f"--k {max(asked)}: the training set has {images} images")
    return asked


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
