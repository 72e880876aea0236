"""`fastcl probe` as a whole: its rows, what it dumps, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from data_photos import write_beton
from safetensors import safe_open
from safetensors.torch import load_file
from test_checkpoint import HEADER, trained
from tiny import DEPTH, IMAGE, WIDTH, spec

from fastcl_cli.checkpoint import load_backbone, save_backbone, save_run, timm_line
from fastcl_cli.cli.main import main
from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.errors import CheckpointError, DataError, UsageError
from fastcl_cli.evaluate.features import Reading
from fastcl_cli.evaluate.images import Images, same_classes
from fastcl_cli.evaluate.probe import probe
from fastcl_cli.evaluate.settings import ProbeSettings, settings_of
from fastcl_cli.methods.build import build_backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Beton, Beton]:
    """Photographs in five classes: 60 to fit on, 40 to judge on."""
    folder = tmp_path_factory.mktemp("probe-data")
    return (
        open_beton(write_beton(folder / "train.beton", 60)),
        open_beton(write_beton(folder / "val.beton", 40, seed=1)),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint: its online network is one update ahead of its target."""
    path = tmp_path_factory.mktemp("probe") / "step-00000007.safetensors"
    save_run(path, *trained(), spec(), HEADER)
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "backbone.safetensors"
    save_backbone(path, trained()[0].backbone, spec(), 7)
    return path


def views(data: Beton) -> torch.Tensor:
    images = Images(data, IMAGE, 1.0, torch.device("cpu"), 1)
    return torch.cat([view for view, _ in images.centre()])


def test_dumped_features_are_those_of_timm(
    data: tuple[Beton, Beton], backbone: Path, tmp_path: Path
) -> None:
    """Also where the linear probe needs more features than timm's at the same time."""
    network = eval(timm_line(backbone, spec()), {"timm": timm}).eval()
    settings = ProbeSettings(("knn", "linear"), dump=tmp_path, blocks=(2,), pool=True, epochs=1)
    probe(backbone, *data, settings)
    for name, part in zip(("train", "val"), data, strict=True):
        content = load_file(tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            expected = network(views(part))
        assert (content["features"] - expected).abs().max() <= 1e-5
        assert content["features"].shape == (part.images, WIDTH) and expected.std() > 0.1
        assert content["labels"].tolist() == list(part.labels)  # type: ignore[call-overload]
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            about = json.loads(file.metadata()["fastcl"])
        assert (about["weights"], about["image"]) == ("target", IMAGE)


def test_readings_are_those_of_timm(data: tuple[Beton, Beton], backbone: Path) -> None:
    network = eval(timm_line(backbone, spec()), {"timm": timm}).eval()
    encoder, _ = load_backbone(backbone)
    view = views(data[1])
    with torch.no_grad():
        outputs = network.get_intermediate_layers(view, 2, return_prefix_tokens=True, norm=True)
    (_, first), (patches, second) = outputs
    expected = torch.cat([first[:, 0], second[:, 0], patches.mean(dim=1)], dim=1)
    reading = Reading(DEPTH, mean=True)
    found = reading(encoder.eval(), view)
    assert (found - expected).abs().max() <= 1e-5
    for blocks, mean in ((1, False), (1, True), (2, False), (2, True)):
        part = found[:, reading.columns(WIDTH, blocks, mean)]
        assert torch.equal(part, Reading(blocks, mean)(encoder, view))


def test_the_weights_asked_for_are_judged(
    data: tuple[Beton, Beton], saved: Path, tmp_path: Path
) -> None:
    method = trained()[0]
    for weights, network in ((None, method.target), ("online", method.online)):
        result = probe(saved, *data, ProbeSettings(weights=weights, dump=tmp_path / str(weights)))  # type: ignore[arg-type]
        with torch.no_grad():
            expected = network["backbone"].eval()(views(data[1]))  # type: ignore[index, operator, union-attr]
        found = load_file(tmp_path / str(weights) / "val.safetensors")["features"]
        assert (found - expected).abs().max() <= 1e-5
        assert result.results[0].protocol["weights"] == (weights or "target")


def test_weights_that_a_file_does_not_hold(saved: Path, backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds one network, the target; the online weights"):
        load_backbone(backbone, "online")
    path = tmp_path / "simclr.safetensors"
    save_backbone(path, build_backbone(spec(method="simclr")), spec(method="simclr"), 1)
    load_backbone(path, "online")
    with pytest.raises(CheckpointError, match="SimCLR trains one network"):
        load_backbone(path, "target")


def test_rows_hold_all_that_is_needed(data: tuple[Beton, Beton], backbone: Path) -> None:
    settings = ProbeSettings(
        tasks=("linear", "knn", "finetune"), untrained=True, blocks=(1, 2), epochs=2, batch=20,
        k=(10, 5), temperature=(0.07, 0.1), precision="float32",
    )  # fmt: skip
    result = probe(backbone, *data, settings).to_json()
    assert (result["schema_version"], result["n_train"], result["n_val"]) == (1, 60, 40)
    rows = result["results"]
    assert [row["task"] for row in rows] == ["linear"] * 2 + ["knn"] * 4 + ["finetune"]
    assert [row["protocol"].get("k") for row in rows[2:6]] == [10, 10, 5, 5]
    assert [row["protocol"]["blocks"] for row in rows[:2]] == [1, 2]
    for row in rows:
        assert 0 <= row["top1"] <= row["top5"] <= 1 and 0 <= row["mean_class"] <= 1
        assert {"weights", "tokens", "image", "crop_ratio", "precision"} <= row["protocol"].keys()
    linear = rows[0]["protocol"]
    chosen = next(entry for entry in linear["sweep"] if entry["lr"] == linear["lr"])
    assert chosen["top1"] == rows[0]["top1"]
    assert chosen["held_out_top1"] == max(entry["held_out_top1"] for entry in linear["sweep"])
    assert (linear["epochs"], linear["batch"], linear["steps"]) == (2, 20, 6)
    assert [row["task"] for row in result["untrained"]] == [row["task"] for row in rows]
    assert probe(backbone, *data, settings).to_json() == result


def test_streamed_views_differ_from_cached_ones(data: tuple[Beton, Beton], backbone: Path) -> None:
    settings = ProbeSettings(tasks=("linear",), epochs=4, batch=30, linear_lr=(0.1, 1.0))
    cached = probe(backbone, *data, settings).results[0]
    streamed = probe(backbone, *data, replace(settings, augment=True)).results[0]
    assert (cached.protocol["views"], streamed.protocol["views"]) == (
        "centre, cached",
        "RandomResizedCrop(0.08, 1), flip 0.5, streamed",
    )
    assert cached.protocol["sweep"] != streamed.protocol["sweep"]
    # Crops of everything without flips are the centre crops of squares, to rounding.
    square = [replace(part, heights=part.widths) for part in data]
    whole = replace(settings, augment=True, crop_min=1.0, flip=0.0)
    one, other = (probe(backbone, *square, s).results[0] for s in (settings, whole))
    assert one.protocol["sweep"] == other.protocol["sweep"]


def test_one_rate_needs_no_choice(data: tuple[Beton, Beton], backbone: Path) -> None:
    settings = ProbeSettings(tasks=("linear",), epochs=1, linear_lr=(0.1,))
    protocol = probe(backbone, *data, settings).results[0].protocol
    assert protocol["lr"] == 0.1 and not {"sweep", "chosen_by", "lr_on_edge"} & protocol.keys()


def test_neighbours_beyond_the_training_set(data: tuple[Beton, Beton], backbone: Path) -> None:
    rows = probe(backbone, *data, ProbeSettings()).results
    assert [row.protocol["k"] for row in rows] == [20, 10], "of the default, those there are"
    with pytest.raises(UsageError, match="--k 61: the training set has 60 images"):
        probe(backbone, *data, ProbeSettings(k=(5, 61)))
    with pytest.raises(UsageError, match="--blocks 3: the model has 2 blocks"):
        probe(backbone, *data, ProbeSettings(tasks=("linear",), blocks=(1, 3)))


def relabelled(data: Beton, change) -> Beton:  # type: ignore[no-untyped-def]
    assert data.labels is not None
    return replace(data, labels=change(data.labels))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (lambda d: replace(d, labels=None), lambda d: d, r"train\.beton has no labels"),
        (lambda d: d, lambda d: replace(d, labels=None), r"val\.beton has no labels"),
        (lambda d: relabelled(d, np.zeros_like), lambda d: relabelled(d, np.zeros_like), "of one"),
        (
            lambda d: d,
            lambda d: relabelled(d, lambda x: x + 2),
            r"val\.beton: class 5 \(one of 2\) has no image in train\.beton",
        ),
        (
            lambda d: replace(d, classes=tuple("abcde")),
            lambda d: replace(d, classes=tuple("abcdf")),
            "they differ in e, f",
        ),
        (
            lambda d: replace(d, classes=tuple("abcde")),
            lambda d: replace(d, classes=tuple("abced")),
            "they differ in their order",
        ),
    ],
)
def test_labels_that_cannot_be_judged(data: tuple[Beton, Beton], train, val, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        same_classes(train(data[0]), val(data[1]))


def test_any_label_numbers_will_do(
    data: tuple[Beton, Beton], backbone: Path, tmp_path: Path
) -> None:
    """Numbers as large as they like; what is dumped is what the data has."""
    large = [relabelled(part, lambda labels: labels * 10**15 + 7) for part in data]
    settings = ProbeSettings(tasks=("knn", "linear"), epochs=1)
    figures = [
        [(row.top1, row.mean_class) for row in probe(backbone, *pair, settings).results]
        for pair in (data, large)
    ]
    assert figures[0] == figures[1]
    probe(backbone, *large, ProbeSettings(dump=tmp_path))
    assert load_file(tmp_path / "val.safetensors")["labels"].max() == 4 * 10**15 + 7


def test_one_image_of_each_class_leaves_none_to_choose_by(
    data: tuple[Beton, Beton], backbone: Path
) -> None:
    train = relabelled(data[0], lambda labels: np.arange(len(labels)))
    settings = ProbeSettings(tasks=("linear",), epochs=1)
    with pytest.raises(DataError, match="every class has one image"):
        probe(backbone, train, data[1], settings)
    probe(backbone, train, data[1], replace(settings, linear_lr=(0.1,)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"blocks": [4]}, "--blocks has no effect on knn"),
        ({"tasks": ["linear"], "k": [5]}, "--k has no effect on linear"),
        ({"tasks": ["linear", "knn"], "layer_decay": 0.5}, "--layer-decay has no effect on"),
        ({"tasks": ["linear"], "flip": 0.0}, "--flip has no effect on centre crops"),
        ({"temperature": [0.1, math.nan]}, "--temperature .*: a finite number is needed"),
        ({"seed": 1}, "--seed has no effect on knn"),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        settings_of(given)


def test_settings_given_and_left_out() -> None:
    none = {"tasks": [], "k": None, "untrained": False}
    assert settings_of(none) == ProbeSettings()
    given = {"tasks": ["linear", "linear"], "augment": True, "flip": 0.0, "blocks": [4, 1]}
    assert settings_of(given) == ProbeSettings(("linear",), augment=True, flip=0.0, blocks=(4, 1))


def test_on_the_command_line(
    data: tuple[Beton, Beton], backbone: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every option of every task reaches its place."""
    words = f"probe {backbone} --train {data[0].path} --val {data[1].path} --json --untrained "
    words += "--task linear --task finetune --task knn --k 3 --temperature 0.2 --blocks 2 --pool "
    words += "--augment --linear-lr 0.1 --linear-lr 0.2 --epochs 2 --batch 15 --crop-min 0.3 "
    words += "--flip 0 --finetune-lr 1e-3 --layer-decay 0.6 --drop-path 0.2 --label-smoothing 0.1 "
    words += "--precision float32 --seed 4 --crop-ratio 0.9 --weights target"
    monkeypatch.setattr("sys.argv", ["fastcl", *words.split()])
    with pytest.raises(SystemExit) as caught:
        main()
    stdout, stderr = capsys.readouterr()
    assert (caught.value.code or 0, stderr) == (0, "")
    result = json.loads(stdout)
    linear, tuned, knn = (row["protocol"] for row in result["results"])
    assert len(result["untrained"]) == 3
    assert (knn["k"], knn["temperature"], knn["crop_ratio"]) == (3, 0.2, 0.9)
    assert (linear["blocks"], linear["seed"], linear["steps"]) == (2, 4, 8)
    assert linear["features"] == "[CLS] and mean of patch tokens"
    assert [entry["lr"] for entry in linear["sweep"]] == [0.1, 0.2]
    assert linear["views"].startswith(tuned["views"]) and "(0.3, 1), flip 0" in tuned["views"]
    names = ("lr", "layer_decay", "drop_path", "label_smoothing", "precision", "steps")
    assert [tuned[name] for name in names] == [1e-3, 0.6, 0.2, 0.1, "float32", 8]


def test_dump_into_a_file_is_refused(
    data: tuple[Beton, Beton], backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UsageError, match="taken: cannot be made"):
        probe(backbone, *data, ProbeSettings(dump=tmp_path / "taken"))
