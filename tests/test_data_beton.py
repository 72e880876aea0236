"""Bad betons end in an error before FFCV sees them; FFCV's own files are read as they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_photos import drop_checksums, write_beton

from fastcl_cli.data.beton import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE,
    Shard,
    open_beton,
)
from fastcl_cli.data.sidecar import sidecar_path, write_sidecar
from fastcl_cli.errors import DataError

ROW = np.dtype([("", IMAGE), ("", "<i8")], align=True)
IMAGES = 12


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beton(tmp_path_factory.mktemp("beton") / "good.beton", IMAGES)


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    path = tmp_path / "data.beton"
    path.write_bytes(good.read_bytes())
    return path


def header(data: bytes) -> np.ndarray:
    return np.frombuffer(data, HEADER, 1)[0]


def edit(path: Path, change: Callable[[np.ndarray, np.ndarray, np.ndarray], None]) -> None:
    """Change header, metadata and allocation table of a file in place, once it has no checksums,
    as FFCV's own files have none."""
    data = bytearray(path.read_bytes())
    head = np.frombuffer(data, HEADER, 1)
    table_at = int(head[0]["alloc_table_ptr"])
    drop_checksums(data)
    rows = np.frombuffer(data, ROW, IMAGES, HEADER.itemsize + 2 * FIELD.itemsize)
    table = np.frombuffer(data, ALLOCATION, IMAGES, table_at)
    change(head[0:1], rows, table)
    path.write_bytes(bytes(data))


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        open_beton(path)
    error = caught.value
    assert str(path) in error.message and "\n" not in error.message and error.exit_code == 2
    return error


def test_what_a_beton_says(good: Path) -> None:
    beton = open_beton(good)
    assert beton.images == IMAGES and beton.shards == (Shard(good, 0, beton.identity),)
    assert beton.labels is not None and beton.labels.tolist() == [i % 5 for i in range(IMAGES)]
    assert beton.heights.dtype == beton.widths.dtype == np.int32
    assert (beton.heights >= 100).all() and beton.classes is None
    assert beton.identity == open_beton(good).identity


def test_identity_follows_the_content(good: Path, tmp_path: Path) -> None:
    again = write_beton(tmp_path / "again.beton", IMAGES)
    other = write_beton(tmp_path / "other.beton", IMAGES, seed=1)
    assert open_beton(good).identity == open_beton(again).identity
    assert open_beton(good).identity != open_beton(other).identity


def test_missing(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.beton")
    assert "no such file" in error.message and "fastcl pack" in error.help


def test_a_folder(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path).message


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.beton"
    path.touch()
    assert "is empty" in refused(path).message


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + b"x" * 100, b"hi", b"\0" * 5000])
def test_not_a_beton(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.beton"
    path.write_bytes(content)
    error = refused(path)
    assert "is not a beton" in error.message
    assert "overwrite" not in error.help  # it may be a checkpoint


def test_another_version(copy: Path) -> None:
    edit(copy, lambda head, rows, table: head.__setitem__("version", 3))
    assert "is not a beton of version 2" in refused(copy).message


def test_writer_killed(copy: Path) -> None:
    edit(copy, lambda head, rows, table: head.__setitem__("alloc_table_ptr", 0))
    error = refused(copy)
    assert "never finished" in error.message and "fastcl pack" in error.help


def test_no_images(copy: Path) -> None:
    edit(copy, lambda head, rows, table: head.__setitem__("num_samples", 0))
    assert "holds no images" in refused(copy).message


@pytest.mark.parametrize("share", [0.9, 0.5, 0.05, 0.0001, "last", "entry", "fields"])
def test_cut_short(copy: Path, share: float | str) -> None:
    data = copy.read_bytes()
    lengths = {"last": len(data) - 1, "entry": len(data) - 24, "fields": HEADER.itemsize + 500}
    length = lengths[share] if isinstance(share, str) else max(1, int(len(data) * share))
    copy.write_bytes(data[:length])
    message = refused(copy).message
    assert "is cut short" in message or (length < 24 and "less than a header" in message)


def test_longer_than_it_says(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes() + b"\0" * 24)
    assert "does not have its header's size" in refused(copy).message


@pytest.mark.parametrize("pointer", [1, 2**40, 2**64 - 5])
def test_pointer_that_leads_astray(copy: Path, pointer: int) -> None:
    def change(head: np.ndarray, rows: np.ndarray, table: np.ndarray) -> None:
        rows["f0"]["data_ptr"][7] = pointer

    edit(copy, change)
    assert "image 7 (one of 1) has no entry in the allocation table" in refused(copy).message

    def both(head: np.ndarray, rows: np.ndarray, table: np.ndarray) -> None:
        table["ptr"][7] = pointer

    edit(copy, both)
    assert "image 7 (one of 1) points outside the file" in refused(copy).message


@pytest.mark.parametrize("size", [2**20, 2**63, 2**64 - 1])
def test_record_longer_than_the_file(copy: Path, size: int) -> None:
    edit(copy, lambda head, rows, table: table["size"].__setitem__(11, size))
    assert "image 11 (one of 1) points outside the file" in refused(copy).message


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("height", 0, "has no pixels"),
        ("width", 0, "has no pixels"),
        ("mode", 9, "is stored in an unknown way"),
        ("mode", 1, "does not have the bytes"),
    ],
)
def test_impossible_records(copy: Path, column: str, value: int, message: str) -> None:
    edit(copy, lambda head, rows, table: rows["f0"][column].__setitem__(2, value))
    assert f"image 2 (one of 1) {message}" in refused(copy).message


def test_negative_label(copy: Path) -> None:
    edit(copy, lambda head, rows, table: rows["f1"].__setitem__(4, -1))
    assert "image 4 has the label -1" in refused(copy).message


def test_a_field_of_unknown_type(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[HEADER.itemsize] = 255
    copy.write_bytes(bytes(data))
    assert "field 'image' is of type 255" in refused(copy).message


def test_no_image_field(tmp_path: Path) -> None:
    head, field, rows = np.zeros(1, HEADER), np.zeros(1, FIELD), np.zeros(3, "<i8")
    field["type_id"], field["name"][0, :3] = 1, np.frombuffer(b"age", np.uint8)
    head[0] = (2, 1, 1 << 23, 3, HEADER.itemsize + field.nbytes + rows.nbytes)
    path = tmp_path / "ages.beton"
    path.write_bytes(head.tobytes() + field.tobytes() + rows.tobytes())
    assert "needs one image field, or one named 'image'; it has age" in refused(path).message


def test_random_damage_never_escapes(good: Path, tmp_path: Path) -> None:
    """Whatever byte of header, fields or metadata changes: opened, or refused in words."""
    data = good.read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "damaged.beton"
    end = HEADER.itemsize + 2 * FIELD.itemsize + IMAGES * ROW.itemsize
    for _ in range(200):
        damaged = bytearray(data)
        damaged[int(random.integers(0, HEADER.itemsize if _ % 2 else end))] = int(
            random.integers(0, 256)
        )
        path.write_bytes(bytes(damaged))
        try:
            open_beton(path)
        except DataError as error:
            assert str(path) in error.message


def sidecar(path: Path, **changes: object) -> Path:
    content = {"schema_version": 1, "identity": open_beton(path).identity, "classes": list("abcde")}
    file = sidecar_path(path)
    file.write_text(json.dumps(content | changes), encoding="utf-8")
    return file


def test_sidecar_gives_the_classes(copy: Path) -> None:
    sidecar(copy)
    assert open_beton(copy).classes == tuple("abcde")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"identity": "0" * 32}, "belongs to another file"),
        ({"classes": ["a"]}, "names 1 classes, the file's labels go up to 4"),
        ({"classes": [1, 2, 3, 4, 5]}, "not a list of names"),
        ({"schema_version": 3}, "not a sidecar of version 1 or 2"),
        ({"schema_version": 2}, "is damaged"),
    ],
)
def test_sidecar_that_does_not_fit(copy: Path, changes: dict[str, object], message: str) -> None:
    sidecar(copy, **changes)
    assert message in refused(copy).message


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]"])
def test_broken_sidecar(copy: Path, content: bytes) -> None:
    sidecar_path(copy).write_bytes(content)
    assert "sidecar" in refused(copy).message or "cannot be read" in refused(copy).message


def test_a_byte_of_a_sidecar_that_changed_is_noticed(copy: Path) -> None:
    """Wherever it is; what is laid out in another way is the same sidecar, and one of an older
    version, which has no digest, is read: there a changed name goes unseen."""
    beton = open_beton(copy)
    write_sidecar(copy, {"identity": beton.identity, "classes": list("abcde"), "source": "here"})
    file = sidecar_path(copy)
    written = file.read_bytes()
    draw = random.Random(0)
    for place in range(len(written)):
        damaged = bytearray(written)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        assert str(file) in refused(copy).message
    content = json.loads(written)
    file.write_text(json.dumps(content))
    assert open_beton(copy).classes == tuple("abcde")
    del content["digest"]
    file.write_text(json.dumps(content))
    assert "is damaged" in refused(copy).message
    file.write_text(json.dumps(content | {"schema_version": 1, "classes": list("abcdx")}))
    assert open_beton(copy).classes == tuple("abcdx")


def test_a_sidecar_of_any_depth(copy: Path) -> None:
    """Reading and writing JSON give up at depths of their own."""
    start = {"schema_version": 2, "identity": open_beton(copy).identity, "digest": ""}
    for depth in range(800, 1000):
        text = json.dumps(start | {"classes": "@"})
        sidecar_path(copy).write_text(text.replace('"@"', "[" * depth + "]" * depth))
        assert str(sidecar_path(copy)) in refused(copy).message


def test_a_million_images_are_checked_in_whole_arrays(tmp_path: Path) -> None:
    """The check has no loop over images: a million rows of tiny raw records open."""
    count = 1_000_000
    path = tmp_path / "many.beton"
    head = np.zeros(1, HEADER)
    rows = np.zeros(count, np.dtype([("", IMAGE)], align=True))
    field = np.zeros(1, FIELD)
    field["type_id"] = 2
    field["name"][0, :5] = np.frombuffer(b"image", np.uint8)
    start = HEADER.itemsize + field.nbytes + rows.nbytes
    table = np.zeros(count, ALLOCATION)
    table["ptr"], table["size"] = start + 3 * np.arange(count), 3
    rows["f0"]["mode"], rows["f0"]["height"], rows["f0"]["width"] = 1, 1, 1
    rows["f0"]["data_ptr"] = table["ptr"]
    head[0] = (2, 1, 1 << 23, count, start + 3 * count)
    np.random.default_rng(0).shuffle(table)
    path.write_bytes(
        b"".join(part.tobytes() for part in (head, field, rows, np.zeros(3 * count, "u1"), table))
    )
    assert open_beton(path).images == count
