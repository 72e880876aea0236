"""Fine-tuning: its optimizer groups, its randomness, and that it learns what a probe cannot."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_photos import write_beton
from tiny import IMAGE, spec
from torch import Tensor

from fastcl_cli.checkpoint import save_backbone
from fastcl_cli.config import VitShape
from fastcl_cli.data.beton import Beton, open_beton
from fastcl_cli.errors import NumericalError
from fastcl_cli.evaluate import finetune as module
from fastcl_cli.evaluate.finetune import Classifier, Recipe, layer_groups
from fastcl_cli.evaluate.images import Images, training_order
from fastcl_cli.evaluate.probe import probe
from fastcl_cli.evaluate.sets import open_probe_data
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.train.device import Device

OPTIONS = (("embed_dim", 32), ("depth", 2), ("num_heads", 2), ("patch_size", 8))
SMALL = VitShape("vit_tiny_patch16_224", OPTIONS, 8, 32, 2, 2, 4.0, 1)


@pytest.fixture(scope="module")
def digits() -> tuple[Beton, Beton]:
    return open_probe_data("digits", None, None, lambda text: None)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untrained") / "backbone.safetensors"
    backbone = BackboneSpec("simclr", SMALL, 32, "learned", 0)
    save_backbone(path, build_backbone(backbone), backbone, 0)
    return path


def test_layer_wise_rates() -> None:
    """Two blocks and a decay of 1/2: an eighth below the blocks, a quarter, a half, and 1."""
    model = Classifier(build_backbone(spec(method="dino")), 3, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)].removeprefix("encoder.vit."): (group["scale"], group["weight_decay"])
        for group in layer_groups(model, 0.5)
        for parameter in group["params"]
    }
    expected = {
        "cls_token": (0.125, 0.0),
        "pos_embed": (0.125, 0.0),
        "patch_embed.proj.weight": (0.125, 0.05),
        "patch_embed.proj.bias": (0.125, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.05),
        "head.bias": (1.0, 0.0),
    }
    for block, scale in ((0, 0.25), (1, 0.5)):
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            expected[f"blocks.{block}.{part}.weight"] = (scale, 0.05)
            expected[f"blocks.{block}.{part}.bias"] = (scale, 0.0)
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            expected[f"blocks.{block}.{part}"] = (scale, 0.0)
    assert found == expected


def test_fixed_position_codes_are_not_trained() -> None:
    model = Classifier(build_backbone(spec(method="moco")), 3, seed=0)
    trained = {id(p) for group in layer_groups(model, 0.5) for p in group["params"]}
    left_out = {n for n, p in model.named_parameters() if id(p) not in trained}
    assert left_out == {"encoder.vit.pos_embed"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Twelve photographs of three classes, as if all were square."""
    data = open_beton(write_beton(tmp_path_factory.mktemp("square") / "data.beton", 12))
    assert data.labels is not None
    square = replace(data, heights=data.widths, labels=data.labels % 3)
    return Images(square, IMAGE, 1.0, torch.device("cpu"), 1)


RECIPE = Recipe(
    epochs=2, batch=12, lr=1e-3, layer_decay=0.5, drop_path=0.0, label_smoothing=0.0, crop_min=1.0,
    flip=0.0, seed=0,
)  # fmt: skip


def tuned(images: Images, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The weights that `finetune` ends with, by their names in the classifier."""
    models: list[Classifier] = []
    monkeypatch.setattr(module, "_judge", lambda model, *rest: models.append(model))
    compute = Device(torch.device("cpu"), "float32", 1)
    module.finetune(build_backbone(spec(method="dino")), images, images, recipe, compute)
    return models[0].state_dict()


def test_an_update_in_closed_form(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two steps warms up from 0. Both see the same views of all images, so AdamW's
    averages are the gradient and its square: the second moves each vector by its layer's rate."""
    start = Classifier(build_backbone(spec(method="dino")), 3, seed=0).state_dict()
    end = tuned(images, RECIPE, monkeypatch)
    warm = 0.05 * 2
    rate = 1e-3 * (1 + math.cos(math.pi * (1 - warm) / (2 - warm))) / 2
    for name, scale in {
        "encoder.vit.patch_embed.proj.bias": 0.125,
        "encoder.vit.blocks.0.norm1.bias": 0.25,
        "encoder.vit.blocks.1.mlp.fc2.bias": 0.5,
        "encoder.vit.norm.bias": 1.0,
        "head.bias": 1.0,
    }.items():
        moved = (end[name] - start[name]).abs().max()
        assert float(moved) == pytest.approx(rate * scale, rel=2e-3), name


@pytest.mark.parametrize(
    "change",
    [{"drop_path": 0.5}, {"label_smoothing": 0.2}, {"flip": 0.5}, {"crop_min": 0.2}, {"seed": 1}],
)
def test_each_part_of_the_recipe_counts(
    images: Images, change: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, lr=1e-2)
    plain = tuned(images, recipe, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(
        plain.values(), tuned(images, recipe, monkeypatch).values(), strict=True
    ))  # fmt: skip
    other = tuned(images, replace(recipe, **change), monkeypatch)  # type: ignore[arg-type]
    name = "encoder.vit.blocks.1.mlp.fc2.weight"
    assert (plain[name] - other[name]).abs().max() > 1e-4


def test_an_epoch_sees_no_image_twice() -> None:
    orders = [training_order(70, 16, seed=0, epoch=epoch) for epoch in range(3)]
    assert [len(order) for order in orders] == [64, 64, 64]
    assert all(len(np.unique(order)) == 64 for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert sorted(training_order(7, 16, seed=0, epoch=0)) == list(range(7))


def test_fine_tuning_beats_the_linear_probe(digits: tuple[Beton, Beton], untrained: Path) -> None:
    """From random weights on 1,000 digits: the probe can only read what is there."""
    linear = probe(untrained, *digits, ProbeSettings(tasks=("linear",)))
    tuned = probe(
        untrained,
        *digits,
        ProbeSettings(
            tasks=("finetune",), epochs=20, batch=32, finetune_lr=2e-2, crop_min=1.0, flip=0.0,
            layer_decay=1.0, drop_path=0.0, precision="float32",
        ),
    )  # fmt: skip
    assert tuned.results[0].top1 > linear.results[0].top1 + 0.05
    assert tuned.results[0].protocol["steps"] == 20 * 31


def test_seeded_with_every_draw_in_play(digits: tuple[Beton, Beton], untrained: Path) -> None:
    """Random crops, flips and skipped paths: the same seed, the same figures to the last bit."""

    def run(seed: int) -> tuple[float, float, float]:
        settings = ProbeSettings(
            tasks=("finetune",), epochs=1, batch=64, drop_path=0.3, label_smoothing=0.1, seed=seed,
            finetune_lr=1e-2, precision="float32",
        )  # fmt: skip
        torch.rand(3)  # Moves torch's own generator, on which nothing may depend.
        (row,) = probe(untrained, *digits, settings).results
        return row.top1, row.top5, row.mean_class

    assert run(0) == run(0) != run(1)


def test_a_loss_that_explodes_is_refused(digits: tuple[Beton, Beton], untrained: Path) -> None:
    settings = ProbeSettings(
        tasks=("finetune",), epochs=2, batch=100, finetune_lr=1e30, precision="float32"
    )
    with pytest.raises(NumericalError, match=r"fine-tuning, step \d+: loss"):
        probe(untrained, *digits, settings)
