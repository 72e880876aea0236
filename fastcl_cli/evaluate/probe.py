"""`fastcl probe`: a checkpoint's features judged on a labelled data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.checkpoint import load_backbone
from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.data.pack import Split
from fastcl_cli.data.source import open_split
from fastcl_cli.errors import UsageError
from fastcl_cli.evaluate.features import Features, default_crop_ratio, extract
from fastcl_cli.evaluate.knn import knn_accuracy
from fastcl_cli.extras import available_cores
from fastcl_cli.methods.build import build_backbone
from fastcl_cli.train.device import choose_device

DEFAULT_KS = (20, 10, 100, 200)
TEMPERATURE = 0.07
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class Row:
    """One accuracy and all that is needed to understand it."""

    task: str
    top1: float
    top5: float
    protocol: dict[str, Any]


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


def open_probe_data(
    data: str | None,
    train: Path | None,
    val: Path | None,
    announce: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Beton, Beton]:
    """The bank and the queries: both parts of one data set, or two betons.

    Raises:
        UsageError: neither ``data`` alone nor both betons were given.
        DataError: a part is missing, damaged or unlabelled.
    """
    if data is not None and train is None and val is None:
        parts = [
            open_split(data, split, announce=announce, workers=available_cores(), progress=progress)
            for split in SPLITS
        ]
        return parts[0], parts[1]
    if data is None and train is not None and val is not None:
        return open_beton(train), open_beton(val)
    raise UsageError(
        "probe needs labelled data",
        "give --data with a built-in name or a folder with train/ and val/, "
        "or both --train and --val with a beton each",
    )


def probe(
    checkpoint: Path,
    bank: Beton,
    queries: Beton,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    crop_ratio: float | None = None,
    untrained: bool = False,
) -> ProbeResult:
    """k-NN accuracy of a checkpoint's backbone on ``queries``, with ``bank`` as neighbours.

    Features are float32 of the uncompressed image; a run checkpoint's are its target's.

    Raises:
        CheckpointError, DataError: see `load_backbone` and `extract`.
    """
    encoder, spec = load_backbone(checkpoint)
    networks = [encoder, build_backbone(spec)] if untrained else [encoder]
    ratio = default_crop_ratio(spec.image) if crop_ratio is None else crop_ratio
    compute = choose_device("float32")

    def features(data: Beton) -> list[Features]:
        return extract(networks, data, spec.image, ratio, compute.device, compute.threads)

    protocol = {
        "temperature": TEMPERATURE,
        "similarity": "cosine",
        "tokens": "all",
        "image": spec.image,
        "crop_ratio": ratio,
        "resize": "bicubic",
        "precision": "float32",
    }
    rows = [
        tuple(
            Row("knn", accuracy.top1, accuracy.top5, {"k": accuracy.k, **protocol})
            for accuracy in knn_accuracy(known, asked, ks, TEMPERATURE)
        )
        for known, asked in zip(features(bank), features(queries), strict=True)
    ]
    return ProbeResult(
        str(checkpoint), rows[0], rows[1] if untrained else None, bank.images, queries.images
    )
