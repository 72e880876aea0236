"""The table of timm's models against timm."""

from __future__ import annotations

import pytest
import timm
from make_vit_table import build, row

from fastcl_cli.vit_table import model_names, vit_shape

SMALL = [
    n for n in model_names() if not any(s in n for s in ("giant", "gigantic", "huge", "so400"))
]


@pytest.mark.parametrize("name", [n for n in SMALL if n in timm.list_models()])
def test_rows_are_those_of_timm(name: str) -> None:
    shape = vit_shape(name, {})
    model = build(name)
    assert row(model) == [
        shape.patch,
        shape.embed_dim,
        shape.depth,
        shape.num_heads,
        shape.mlp_ratio,
        shape.prefix_tokens,
    ]
    assert int(shape.embed_dim * shape.mlp_ratio) == model.blocks[0].mlp.fc1.out_features


def test_most_of_the_table_is_compared() -> None:
    assert len(SMALL) > 45


@pytest.mark.parametrize(
    "options",
    [
        {"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 4},
        {"embed_dim": 96, "mlp_ratio": 2.5},
        {"num_heads": 12},
    ],
)
def test_options_mean_what_timm_means(options: dict[str, int | float]) -> None:
    shape = vit_shape("vit_small_patch16_224", options)
    model = build(shape.name, img_size=224, **dict(shape.options))
    assert row(model) == [
        shape.patch,
        shape.embed_dim,
        shape.depth,
        shape.num_heads,
        model.blocks[0].mlp.fc1.out_features / shape.embed_dim,
        shape.prefix_tokens,
    ]
    assert int(shape.embed_dim * shape.mlp_ratio) == model.blocks[0].mlp.fc1.out_features


def test_unknown_names_are_refused() -> None:
    with pytest.raises(KeyError):
        vit_shape("resnet50", {})
