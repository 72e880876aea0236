"""Fine-tuning: its optimizer groups, its randomness, and that it learns what a probe cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import spec

from fastcl_cli.checkpoint import save_backbone
from fastcl_cli.config import VitShape
from fastcl_cli.data.beton import Beton
from fastcl_cli.errors import NumericalError
from fastcl_cli.evaluate.finetune import Classifier, layer_groups
from fastcl_cli.evaluate.images import training_order
from fastcl_cli.evaluate.probe import open_probe_data, probe
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.methods.build import BackboneSpec, build_backbone

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
