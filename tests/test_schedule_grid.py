"""Grids of compression against the cells written out, and what is no grid."""

from __future__ import annotations

from itertools import product

import pytest

from fastcl_cli.errors import UsageError
from fastcl_cli.schedule import Loaded, compile_text, load
from fastcl_cli.schedule.grid import parse_grid, to_measure
from fastcl_cli.schedule.resolve import full_views

BASE = "method dino; batch 256; warmup 3 epochs; length 10 epochs; # why\n"
PERCENT = BASE + "0%-60%: drop 0.5 patch 32; 60%-100%: full batch 128;"


@pytest.mark.parametrize("text", [PERCENT, "epochs 0-1: full;", "steps 0-9: patch 32 on target;"])
def test_a_cell_is_the_phase_it_stands_for(text: str) -> None:
    loaded = compile_text(text)
    grid = parse_grid("drop 50% 0 0.75 patch 28 16 32", loaded)
    assert (grid.drops, grid.patches) == (("0", "0.5", "0.75"), ("16", "28", "32"))
    settings = "method dino; batch 256;" if text == PERCENT else ""
    for cell, (patch, drop) in zip(grid.cells, product((16, 28, 32), (0, 0.5, 0.75)), strict=True):
        phase = f"{settings} epochs 0-9: drop {drop} patch {patch};"
        expected = compile_text(phase).plan.segments[0]
        assert (cell.views, cell.batch) == (expected.views, expected.batch)
        assert cell.sample_cost == pytest.approx(expected.sample_cost)


def test_overrides_hold_for_the_grid_too() -> None:
    overrides = ["image=448", "batch=64", "warmup=10 epochs"]
    grid = parse_grid("drop 0 0.5 patch 56", load("moco_opt", overrides))
    assert grid.cells[0].batch == 64 and grid.cells[0].views[0].online.grid == 8


@pytest.mark.parametrize(
    ("text", "said", "help"),
    [
        ("", "lacks", "drop R"),
        ("drop 0.5", "lacks", "drop R"),
        ("16 drop 0 patch 16", "`16` stands", "drop R"),
        ("drop 0 0.5 0 patch 16", "twice", "remove"),
        ("drop 0 1 patch 16", "cannot", "below 1"),
        ("drop 0 patch 16 24", "patch 24 does not divide 224", "use 16, 28, 32"),
        ("drop 0 patch 16 8", "patch 8 is smaller than the model's own, 16", "use"),
        ("drop 0 patch 16", "", ""),
    ],
)
def test_what_is_no_grid_is_refused(text: str, said: str, help: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_grid(text, load("moco_opt"))
    assert caught.value.message.startswith("--grid") and said in caught.value.message
    assert help in caught.value.help and len(caught.value.message) < 200


def distinct(loaded: Loaded, grid: str | None = None) -> list[tuple[int, int, float]]:
    """(tokens of a global view, batch, sample cost) of what is measured."""
    cells = parse_grid(grid, loaded) if grid else None
    found = to_measure(loaded, cells)
    return [(s.views[0].online.kept, s.batch, s.sample_cost) for s in found]


def test_each_way_of_taking_a_step_is_measured_once() -> None:
    text = (
        "epochs 0-1: drop 0.5 patch 32; epochs 1-2: full; epochs 2-3: drop 50% patch 32;"
        "epochs 3-4: drop 0.5 patch 32 batch 512; epochs 4-5: drop 0 patch 16;"
    )
    loaded = compile_text(text)
    cheap = loaded.plan.segments[0].sample_cost
    small = loaded.plan.segments[3].sample_cost
    assert distinct(loaded) == [
        (25, 4096, cheap),
        (196, 4096, 1.0),
        (25, 512, small),
        (196, 512, 1.0),
    ]
    assert distinct(loaded, "drop 0 0.5 patch 32")[1:] == [(25, 4096, cheap), (196, 4096, 1.0)]
    assert distinct(loaded, "drop 0 0.5 patch 16 32")[0] == (196, 4096, 1.0)
    assert len(distinct(loaded, "drop 0 0.5 patch 16 32")) == 4


@pytest.mark.parametrize("method", ["moco", "simclr", "dino"])
def test_what_is_added_is_no_compression(method: str) -> None:
    loaded = compile_text(f"method {method}; epochs 0-1: drop 0.5;")
    segment = to_measure(loaded, None)[-1]
    assert segment.views == full_views(loaded.config)
    assert (segment.target is None) == (method == "simclr")
    assert (segment.online.drop, segment.online.patch) == (0, 16)
