"""Several betons as one data set: the same images, order and pixels as in one file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_photos import write_beton

from fastcl_cli.data.beton import Beton, open_beton, read_records
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.mapped import map_files
from fastcl_cli.data.shards import open_shards
from fastcl_cli.data.sidecar import sidecar_path
from fastcl_cli.data.source import open_judging, open_split
from fastcl_cli.data.writer import BetonWriter, page_size
from fastcl_cli.errors import DataError
from fastcl_cli.schedule import compile_text
from fastcl_cli.schedule.load import Request

COUNTS = (7, 1, 12)
IMAGES = sum(COUNTS)


def split(whole: Path, folder: Path) -> None:
    """Write a file's images into several, in order."""
    beton = open_beton(whole)
    records, data = read_records(beton.shards[0]), whole.read_bytes()
    assert beton.labels is not None
    first = 0
    for number, count in enumerate(COUNTS):
        path = folder / f"part-{number}.beton"
        with BetonWriter(path, count, True, page_size(384)) as writer:
            for index in range(first, first + count):
                row = records.images[index]
                size = int(records.sizes[index])
                jpeg = data[int(row["data_ptr"]) : int(row["data_ptr"]) + size]
                shape = int(row["height"]), int(row["width"])
                writer.add(jpeg, *shape, int(beton.labels[index]))
            writer.finish()
        first += count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    split(write_beton(folder / "whole.beton", IMAGES), folder)
    return folder


@pytest.fixture(scope="module")
def parts(folder: Path) -> Beton:
    return open_shards(str(folder / "part-*.beton"))


def test_what_is_known_of_the_images_is_that_of_one_file(folder: Path, parts: Beton) -> None:
    whole = open_beton(folder / "whole.beton")
    assert parts.images == IMAGES and [shard.first for shard in parts.shards] == [0, 7, 8]
    assert parts.labels is not None and whole.labels is not None
    for one, other in (
        (parts.heights, whole.heights),
        (parts.widths, whole.widths),
        (parts.labels, whole.labels),
    ):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def test_any_order_gives_the_pixels_of_one_file(folder: Path, parts: Beton) -> None:
    order = np.random.default_rng(0).integers(0, IMAGES, 50)
    taken = []
    for beton in (open_beton(folder / "whole.beton"), parts):
        with DecodedLoader(beton, 48, 2).stream(order, 16) as batches:
            taken.append(torch.cat([batch.images.clone() for batch in batches]))
    assert torch.equal(*taken)
    assert len({image.numpy().tobytes() for image in taken[0]}) == len(set(order.tolist()))


def test_the_order_of_names_is_part_of_what_they_are(folder: Path, parts: Beton) -> None:
    again = open_shards(str(folder / "part-*.beton"))
    fewer = open_shards(str(folder / "part-[01].beton"))
    assert again.identity == parts.identity != fewer.identity
    one = open_shards(str(folder / "part-2*"))
    assert one.identity == open_beton(folder / "part-2.beton").identity


def test_a_run_and_a_plan_take_a_pattern(folder: Path) -> None:
    pattern = str(folder / "part-*.beton")
    assert open_split(pattern, "train", announce=print).images == IMAGES
    assert open_judging(pattern, None, announce=print).images == IMAGES
    with pytest.raises(DataError, match="validation needs another"):
        open_split(pattern, "val", announce=print)
    text = f'method simclr; data "{pattern}"; batch 5; epochs 0-3: full;'
    plan = compile_text(text, "test.fcs", Request()).plan
    assert (plan.images, plan.steps) == (IMAGES, 12)


def test_a_damaged_image_is_named_by_its_own_file(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        name = f"part-{number}.beton"
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    path = tmp_path / "part-2.beton"
    records = read_records(open_beton(path).shards[0])
    at = int(records.images[4]["data_ptr"])
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    loader = DecodedLoader(open_shards(str(tmp_path / "*.beton")), 32, 2)
    with (
        pytest.raises(DataError, match=r"part-2\.beton: image 4 is damaged"),
        loader.stream(np.arange(IMAGES), 6) as batches,
    ):
        list(batches)


def test_a_file_that_changes_after_it_was_opened_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.beton"
    path.write_bytes((folder / "part-0.beton").read_bytes())
    beton = open_beton(path)
    path.write_bytes((folder / "part-2.beton").read_bytes())
    with pytest.raises(DataError, match="is another file than it was before"):
        DecodedLoader(beton, 32, 1)


def test_other_classes_and_names_that_match_nothing(folder: Path, tmp_path: Path) -> None:
    for number, classes in enumerate((list("abcde"), list("abcdf"))):
        path = tmp_path / f"{number}.beton"
        path.write_bytes((folder / f"part-{number}.beton").read_bytes())
        content = {
            "schema_version": 1, "identity": open_beton(path).identity, "classes": classes,
        }  # fmt: skip
        sidecar_path(path).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"1\.beton: its classes are not those of .*0\.beton"):
        open_shards(str(tmp_path / "*.beton"))
    with pytest.raises(DataError, match="no file has such a name"):
        open_split(str(tmp_path / "none-*.beton"), "train", announce=print)
    with pytest.raises(DataError, match="no pattern of file names"):
        open_shards(str(tmp_path / "**x" / "*.beton"))


def test_files_lie_one_after_the_other_in_memory(tmp_path: Path) -> None:
    contents = [bytes([number + 1]) * size for number, size in enumerate((1, 4096, 10_000))]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}")
        paths[-1].write_bytes(content)
    whole, starts = map_files(paths)
    assert whole.dtype == np.uint8 and not whole.flags.writeable
    assert starts == [0, 4096, 8192] and len(whole) == 8192 + 12288
    for start, content in zip(starts, contents, strict=True):
        assert whole[start : start + len(content)].tobytes() == content
    assert not whole[1:4096].any() and not whole[8192 + 10_000 :].any()
