"""Files that were damaged, or made to do harm, or that change under a run: each is refused, or
means what it meant."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_data_beton import edit
from test_faults import flip
from test_schedule_fuzz import examine, mutate

from fastcl_cli.checkpoint import check_whole
from fastcl_cli.data.beton import open_beton, read_records
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.errors import CheckpointError, ConfigError, DataError
from fastcl_cli.estimate.profile_file import read_profile
from fastcl_cli.evaluate.sets import data_of_run


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> hostile.Good:
    return hostile.make_good(tmp_path_factory.mktemp("good"))


def test_mutated_files_are_refused_or_mean_the_same(good: hostile.Good, tmp_path: Path) -> None:
    assert hostile.checkpoints(tmp_path, good, 40, 0)["refused"] > 30
    assert hostile.betons(tmp_path, good, 40, 0)["refused"] > 20
    seen = hostile.run_files(tmp_path, good, 200, 0)
    assert seen["refused"] > 20 and seen["accepted"] > 20
    draw = random.Random(7)
    for _ in range(500):
        examine(mutate(draw))


def test_without_a_digest_a_flipped_bit_goes_unseen(good: hostile.Good, tmp_path: Path) -> None:
    """The negative control of what stands above, and files of older versions do load."""
    old = tmp_path / "old.safetensors"
    with safe_open(good.backbone, "pt") as file:
        header = json.loads(file.metadata()["fastcl"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del header["digest"]
    save_file(tensors, old, {"fastcl": json.dumps(header)})
    check_whole(old)
    flip(old, old.stat().st_size - 3)
    check_whole(old)
    new = tmp_path / "new.safetensors"
    new.write_bytes(good.backbone.read_bytes())
    flip(new, new.stat().st_size - 3)
    with pytest.raises(CheckpointError, match="its bytes are not those that were written"):
        check_whole(new)


def test_claims_of_any_size_cost_nothing(good: hostile.Good, tmp_path: Path) -> None:
    claims = tmp_path / "claims.safetensors"
    claims.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        check_whole(claims)
    save_file({"x": torch.zeros(1)}, claims, {"fastcl": hostile.DEEP.decode()})
    with pytest.raises(CheckpointError):
        check_whole(claims)
    for name in ("config.json", "profile.json", "a.beton.json"):
        (tmp_path / name).write_bytes(hostile.DEEP)
    assert data_of_run(tmp_path / "backbone.safetensors") == (None, None)
    with pytest.raises(ConfigError, match="not JSON"):
        read_profile(tmp_path / "profile.json")
    beton = tmp_path / "a.beton"
    beton.write_bytes(good.beton.read_bytes())
    with pytest.raises(DataError, match="nested too deeply"):
        open_beton(beton)


def test_an_image_of_four_billion_pixels(tmp_path: Path) -> None:
    from data_photos import write_beton
    from test_data_beton import IMAGES

    path = write_beton(tmp_path / "x.beton", IMAGES)

    def change(head: Any, rows: Any, table: Any) -> None:
        rows["f0"]["height"][3] = rows["f0"]["width"][3] = 65535

    edit(path, change)
    with pytest.raises(DataError, match=r"image 3 .*has more than 100,000,000 pixels"):
        open_beton(path)


def test_data_that_changes_under_a_run(good: hostile.Good, tmp_path: Path) -> None:
    path = tmp_path / "data.beton"
    path.write_bytes(good.beton.read_bytes())
    beton = open_beton(path)
    loader = DecodedLoader(beton, 32, 1)
    path.touch()
    with loader.stream(np.arange(4), 4) as batches:  # touched, and the same
        next(batches)
    records = read_records(beton.shards[0])
    flip(path, int(records.images["data_ptr"][2]) + int(records.sizes[2]) // 2)
    with (
        pytest.raises(DataError, match=r"data\.beton: image 2 is damaged: .* not what was packed"),
        loader.stream(np.arange(4), 4) as batches,
    ):
        next(batches)
    os.truncate(path, path.stat().st_size - 5000)
    with (
        pytest.raises(DataError, match=r"data\.beton: has .* bytes and had"),
        loader.stream(np.arange(4), 4),
    ):
        pass
    path.unlink()  # who has mapped it still has it
    with loader.stream(np.arange(2), 2) as batches:
        next(batches)


def test_a_file_cut_short_between_two_looks_ends_with_a_word(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from fastcl_cli.data.mapped import map_files
path = Path(sys.argv[1])
path.write_bytes(bytes(100_000))
whole, _ = map_files([path])
os.truncate(path, 0)
print(whole.sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: a file of the data cannot be read any more" in done.stderr
