"""Packing: odd images, broken images, failures that leave nothing behind, the cache."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_photos import photos
from PIL import Image

from fastcl_cli.data import encode
from fastcl_cli.data import pack as packing
from fastcl_cli.data.beton import ALLOCATION, HEADER, open_beton
from fastcl_cli.data.builtin import digits
from fastcl_cli.data.encode import Settings
from fastcl_cli.data.images import BadImageError, list_folder, load_rgb
from fastcl_cli.data.pack import pack, part_path
from fastcl_cli.data.sidecar import sidecar_path
from fastcl_cli.data.source import need_there, open_split
from fastcl_cli.data.writer import BetonWriter, page_size
from fastcl_cli.errors import DataError, UsageError


def photo(index: int = 0, width: int = 60, height: int = 40) -> Image.Image:
    return photos()[index % 4].resize((width, height), Image.Resampling.BOX)


def make_folder(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            photo(index, 30 + index, 40).save(root / name / f"{index}.png")
    return root


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


# Every kind of image becomes plain RGB


def loaded(path: Path) -> np.ndarray:
    image = load_rgb(path, 384)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    image = np.zeros((4, 6, 4), np.uint8)
    image[..., 0], image[:, :3, 3], image[:, 3, 3] = 200, 255, 128
    Image.fromarray(image).save(tmp_path / "a.png")
    pixels = loaded(tmp_path / "a.png")
    assert (pixels[:, :3] == (200, 0, 0)).all() and (pixels[:, 4:] == 255).all()
    assert np.abs(pixels[:, 3] - (227, 127, 127)).max() <= 1


def test_grey_with_alpha(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA").save(tmp_path / "a.png")
    assert loaded(tmp_path / "a.png").tolist() == [[[10] * 3, [255] * 3]]


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert loaded(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(BadImageError, match="mode 'F'"):
        load_rgb(tmp_path / "a.tiff", 384)


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert loaded(tmp_path / "a.png").tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    path = tmp_path / f"a.{ending}"
    image = photo().convert(mode)
    image.save(path, quality=95) if ending == "jpg" else image.save(path)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(loaded(path) - expected).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    array = np.asarray(image).astype(int)
    turned = {
        1: array, 2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1],
        5: array.T, 6: array.T[:, ::-1], 7: array.T[::-1, ::-1], 8: array.T[::-1],
    }  # fmt: skip
    assert np.array_equal(loaded(tmp_path / "a.png")[:, :, 0], turned[orientation])


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_the_first_frame_counts(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    assert np.abs(loaded(path)[4, 4] - (255, 0, 0)).max() < 8


@pytest.mark.parametrize(
    "size, expected", [((1000, 500), (384, 192)), ((500, 1000), (192, 384)),
                       ((384, 10), (384, 10)), ((20000, 3), (384, 1)), ((5, 7), (5, 7))],
)  # fmt: skip
def test_the_long_side_is_bounded(tmp_path: Path, size, expected) -> None:
    Image.new("RGB", size, "green").save(tmp_path / "a.png")
    image = load_rgb(tmp_path / "a.png", 384)
    assert image.size == expected and np.ptp(np.asarray(image), axis=(0, 1)).max() == 0


def bad_images(folder: Path) -> dict[str, str]:
    """One file of each kind that cannot be used, with part of the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    photo(0, 300, 200).save(buffer, "JPEG")
    files = {
        "cut.jpg": (buffer.getvalue()[: len(buffer.getvalue()) // 2], "is damaged"),
        "empty.png": (b"", "is empty (0 bytes)"),
        "text.jpg": (b"this is no picture", "not an image"),
        "bomb.png": (png_header(60000, 60000), "pixels"),
        "large.png": (png_header(11000, 11000), "11000 x 11000 pixels"),
        "body.png": (png_header(50, 50), "is damaged"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


def test_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"cat": 3, "dog": 2})
    reasons = bad_images(source / "cat")
    (source / "cat" / "notes.txt").write_text("not counted as an image")
    (source / "cat" / ".hidden.png").write_bytes(b"")
    out = tmp_path / "out.beton"
    (report,) = pack(source, out)
    assert report.images == 5 and len(report.skipped) == len(reasons)
    for item in report.skipped:
        assert reasons[item.path.removeprefix("cat/")] in item.reason
    beton = open_beton(out)
    assert beton.images == 5 and beton.classes == ("cat", "dog")
    assert beton.labels is not None and beton.labels.tolist() == [0, 0, 0, 1, 1]
    assert beton.widths.tolist() == [30, 31, 32, 30, 31] and (beton.heights == 40).all()
    content = json.loads(sidecar_path(out).read_text())
    assert [item["path"] for item in content["skipped"]] == [item.path for item in report.skipped]
    assert len(content["digests"]) == 5 and content["settings"] == {"max_side": 384, "quality": 90}


def test_what_is_stored_is_the_image(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 2, "b": 1})
    pack(source, tmp_path / "out.beton", settings=Settings(quality=95))
    data = (tmp_path / "out.beton").read_bytes()
    table_at = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    for row, name in zip(
        np.frombuffer(data, ALLOCATION, 3, table_at), ["a/0", "a/1", "b/0"], strict=True
    ):
        jpeg = data[int(row["ptr"]) : int(row["ptr"]) + int(row["size"])]
        stored = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
        assert np.abs(stored - loaded(source / f"{name}.png")).mean() < 6


def test_no_record_crosses_a_page(tmp_path: Path) -> None:
    """FFCV's own cache reads whole pages, aligned in the file, and looks for a record in one."""
    page, random = 1 << 12, np.random.default_rng(0)
    path = tmp_path / "x.beton"
    with BetonWriter(path, 100, False, page) as writer:
        for size in random.integers(1, page + 1, 90):
            writer.add(bytes(int(size)), 5, 5)
        writer.finish()
    assert open_beton(path).images == 90
    data = path.read_bytes()
    table_at = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    table = np.frombuffer(data, ALLOCATION, 90, table_at)
    assert (table["ptr"] // page == (table["ptr"] + table["size"] - 1) // page).all()
    assert (table["ptr"][1:] >= table["ptr"][:-1] + table["size"][:-1]).all()
    assert page_size(384) == 1 << 23 and page_size(4096) == 1 << 26


def test_strict_names_the_image_and_leaves_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 2})
    (source / "a" / "bad.png").write_bytes(b"")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=r"a/bad\.png: is empty"):
        pack(source, out / "x.beton", settings=Settings(strict=True))
    assert left(out) == set()


def test_all_bad_is_an_error(tmp_path: Path) -> None:
    bad_images(tmp_path / "set")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="none of its 6 images can be read"):
        pack(tmp_path / "set", out / "x.beton")
    assert left(out) == set()


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 2, "b": 2})
    out = tmp_path / "x.beton"
    pack(source, out)
    before = out.read_bytes(), sidecar_path(out).read_bytes()
    (source / "a" / "bad.png").write_bytes(b"")
    with pytest.raises(DataError):
        pack(source, out, overwrite=True, settings=Settings(strict=True))
    assert (out.read_bytes(), sidecar_path(out).read_bytes()) == before
    assert left(tmp_path) == {"set", "x.beton", "x.beton.json"}


def test_processes_change_no_byte(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 40, "b": 20})
    (source / "a" / "7.png").write_bytes(b"")
    done: list[tuple[int, int]] = []
    pack(source, tmp_path / "one.beton")
    two = Settings(workers=2)
    pack(source, tmp_path / "two.beton", settings=two, progress=lambda *step: done.append(step))
    assert (tmp_path / "one.beton").read_bytes() == (tmp_path / "two.beton").read_bytes()
    assert done == [(step + 1, 60) for step in range(60)]


def test_a_worker_that_dies_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """FFCV's writer would wait for ever. The start of a worker is made to kill it."""
    source = make_folder(tmp_path / "set", {"a": 40})
    monkeypatch.setattr(encode, "_start_worker", os.abort)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="a process that reads images died"):
        pack(source, out / "x.beton", settings=Settings(workers=2))
    assert left(out) == set()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 40})
    out = tmp_path / "out"
    out.mkdir()
    script = f"""
import signal, time
from fastcl_cli.data.encode import Settings
from fastcl_cli.data.pack import pack
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    def slowly(done, total):
        print(done, flush=True)
        time.sleep(0.1)
    pack({str(source)!r}, {str(out / "x.beton")!r}, settings=Settings(workers=2), progress=slowly)
"""
    file = tmp_path / "run.py"
    file.write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline()
    assert any(name.endswith(".part") for name in left(out))
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert errors.count("Traceback") == 1  # the parent's alone
    assert left(out) == set()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("a worker outlived its parent")


def test_no_room(tmp_path: Path, monkeypatch) -> None:
    source = make_folder(tmp_path / "set", {"a": 3})
    said: list[str] = []
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"0\.0 MB free, about .* needed"):
        pack(source, tmp_path / "x.beton", announce=said.append)
    assert "packing 3 images" in said[0] and "MB" in said[0]
    assert left(tmp_path) == {"set"}


def test_disk_full_while_writing(tmp_path: Path, monkeypatch) -> None:
    source = make_folder(tmp_path / "set", {"a": 3})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.BetonWriter, "finish", full)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        pack(source, tmp_path / "x.beton")
    assert left(tmp_path) == {"set"}


def test_wrong_calls(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 1})
    out = tmp_path / "x.beton"
    for arguments, message in (
        ({"quality": 0}, "quality 0: allowed is 1 to 100"),
        ({"max_side": 5}, "longest side 5: allowed is 8 to 16384"),
        ({"workers": 0}, "0 workers"),
    ):
        with pytest.raises(UsageError, match=message):
            Settings(**arguments)
    with pytest.raises(UsageError, match="has no train and val folders"):
        pack(source, out, split="val")
    with pytest.raises(UsageError, match="is not one of torchvision's sets"):
        pack(source, out, root=tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        pack(tmp_path / "none", out)
    with pytest.raises(DataError, match="no such folder"):
        pack(source, tmp_path / "none" / "x.beton")


# Folders


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        list_folder(tmp_path)


def test_images_beside_class_folders(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 1})
    photo().save(source / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png.* beside class folders"):
        list_folder(source)


def test_links_that_lead_in_a_circle(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "set", {"a": 2})
    (source / "a" / "loop").symlink_to(source, target_is_directory=True)
    assert list_folder(source).files == ("a/0.png", "a/1.png")


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    make_folder(tmp_path, {"flat": 2})
    pack(tmp_path / "flat", tmp_path / "x.beton")
    beton = open_beton(tmp_path / "x.beton")
    assert beton.labels is None and beton.classes is None


# Both parts of a source


def make_tree(root: Path) -> Path:
    make_folder(root / "train", {"ant": 2, "bee": 3, "cat": 1})
    make_folder(root / "val", {"cat": 1, "bee": 2})
    return root


def test_a_tree_makes_two_files_with_one_numbering(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "set"), tmp_path / "out"
    out.mkdir()
    said: list[str] = []
    done: list[tuple[int, int]] = []
    reports = pack(
        source, out / "x.beton", announce=said.append, progress=lambda *step: done.append(step)
    )
    assert [report.path.name for report in reports] == ["x-train.beton", "x-val.beton"]
    assert done == [(step + 1, 9) for step in range(9)] and len(said) == 2
    train, val = (open_beton(report.path) for report in reports)
    assert train.labels is not None and train.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert val.labels is not None and val.labels.tolist() == [1, 1, 2]  # its own would be 0, 0, 1
    assert train.classes == val.classes == ("ant", "bee", "cat")
    assert left(out) == {
        f"x-{part}.beton{end}" for part in ("train", "val") for end in ("", ".json")
    }
    sources = [json.loads(sidecar_path(one.path).read_text())["source"] for one in (train, val)]
    assert sources == [f"{source}/train", f"{source}/val"]


def test_one_part_of_a_tree_goes_to_the_name_given(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "set"), tmp_path / "x.beton"
    pack(source, tmp_path / "both.beton")
    for part in ("train", "val"):
        (report,) = pack(source, out, split=part, overwrite=True)
        assert report.path == out and report.classes == ("ant", "bee", "cat")
        assert out.read_bytes() == (tmp_path / f"both-{part}.beton").read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.beton", "x-val.beton"), ("x", "x-val"), ("x.v1", "x.v1-val"), (".beton", "-val.beton")],
)
def test_names_of_parts(name: str, expected: str) -> None:
    assert part_path(Path("a.beton", name), "val") == Path("a.beton", expected)


def test_a_tree_is_packed_whole_or_not_at_all(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "set"), tmp_path / "out"
    out.mkdir()
    (source / "val" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/0\.png: is empty"):
        pack(source, out / "x.beton", settings=Settings(strict=True))
    assert left(out) == set()
    pack(source, out / "x.beton")
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 4
    photo(3).save(source / "train" / "ant" / "new.png")
    with pytest.raises(DataError):
        pack(source, out / "x.beton", overwrite=True, settings=Settings(strict=True))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_part_that_cannot_get_its_name(tmp_path: Path) -> None:
    source, out = make_tree(tmp_path / "set"), tmp_path / "out"
    (out / "x-val.beton").mkdir(parents=True)
    with pytest.raises(DataError, match=r"x-val\.beton: is a folder"):
        pack(source, out / "x.beton")
    assert left(out) == {"x-val.beton"}


def test_room_is_needed_for_both_parts(tmp_path: Path, monkeypatch) -> None:
    """About 1.0 and 0.8 MB: there is room for either."""
    usage = type("Usage", (), {"free": (16 << 20) + 1_300_000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"free, about 1\.\d MB needed"):
        pack("digits", tmp_path / "x.beton")
    assert left(tmp_path) == set()
    for part in ("train", "val"):
        pack("digits", tmp_path / "x.beton", split=part, overwrite=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "val" / "cat").rename(root / "val" / "wasp"), "class 'wasp' is not"),
        (lambda root: (root / "val").rename(root / "test"), "has train and test folders, but no"),
        (lambda root: [
            path.rename(root / "val" / f"{path.parent.name}{path.name}")
            for path in list((root / "val").glob("*/*.png"))
        ], r"val: has no class folders, but train has"),
    ],
)  # fmt: skip
def test_trees_that_do_not_fit(tmp_path: Path, change, message: str) -> None:
    source = make_tree(tmp_path / "set")
    change(source)
    for split in (None, "val"):
        with pytest.raises(DataError, match=message):
            pack(source, tmp_path / "x.beton", split=split)
    assert left(tmp_path) == {"set"}


def test_a_tree_with_train_alone(tmp_path: Path) -> None:
    make_folder(tmp_path / "set" / "train", {"ant": 1, "bee": 1})
    (report,) = pack(tmp_path / "set", tmp_path / "x.beton")
    assert report.path == tmp_path / "x.beton" and report.classes == ("ant", "bee")
    with pytest.raises(UsageError, match="has no val part"):
        pack(tmp_path / "set", tmp_path / "x.beton", split="val")


def test_both_parts_of_the_digits(tmp_path: Path) -> None:
    reports = pack("digits", tmp_path / "x.beton")
    assert [report.images for report in reports] == [1000, 797]
    pack("digits", tmp_path / "one.beton", split="val")
    assert (tmp_path / "one.beton").read_bytes() == (tmp_path / "x-val.beton").read_bytes()


# Data sets by name


@pytest.fixture
def said() -> list[str]:
    return []


def test_train_and_val_are_kept_apart(tmp_path: Path, said: list[str]) -> None:
    cache = tmp_path / "cache"
    data = str(make_tree(tmp_path / "set"))
    train, val = (open_split(data, split, cache=cache, announce=said.append)
                  for split in ("train", "val"))  # fmt: skip
    assert train.labels is not None and train.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert val.labels is not None and val.labels.tolist() == [1, 1, 2]
    assert train.classes == val.classes == ("ant", "bee", "cat")
    assert len(said) == 2 and all("packing" in line and "MB" in line for line in said)
    before = left(cache)
    open_split(data, "train", cache=cache, announce=said.append)
    assert len(said) == 2 and left(cache) == before
    photo(3).save(tmp_path / "set" / "train" / "ant" / "new.png")
    assert open_split(data, "train", cache=cache, announce=said.append).images == 7


def test_a_class_that_only_val_has(tmp_path: Path, said: list[str]) -> None:
    make_folder(tmp_path / "set" / "train", {"ant": 2})
    make_folder(tmp_path / "set" / "val", {"wasp": 1})
    with pytest.raises(DataError, match="class 'wasp' is not among the 1"):
        open_split(str(tmp_path / "set"), "val", cache=tmp_path / "cache", announce=said.append)


def test_a_labelled_set_alone_is_split(tmp_path: Path, said: list[str]) -> None:
    source = make_folder(tmp_path / "set", {"a": 10, "b": 16, "c": 4})
    cache = tmp_path / "cache"
    parts = {
        split: open_split(str(source), split, cache=cache, announce=said.append)
        for split in ("train", "val")
    }
    counts = {split: np.bincount(beton.labels).tolist() for split, beton in parts.items()}
    assert counts == {"train": [8, 13, 4], "val": [2, 3]}
    assert parts["val"].classes == ("a", "b", "c")
    words = "25 images train, 5 (a fifth of each class, rounded down) validate"
    assert [words in line for line in said if "images train" in line] == [True, True]
    digests = [
        json.loads(sidecar_path(beton.path).read_text())["digests"] for beton in parts.values()
    ]
    assert len(digests[0]) == 25 and len(digests[1]) == 5


def test_unlabelled_data_trains_only(tmp_path: Path, said: list[str]) -> None:
    make_folder(tmp_path, {"flat": 3})
    flat, cache = str(tmp_path / "flat"), tmp_path / "cache"
    assert open_split(flat, "train", cache=cache, announce=said.append).images == 3
    with pytest.raises(DataError, match="has no labels, so it trains only"):
        open_split(flat, "val", cache=cache, announce=said.append)


def test_a_beton_trains_only(tmp_path: Path, said: list[str]) -> None:
    pack(make_folder(tmp_path / "set", {"a": 2}), tmp_path / "x.beton")
    data = str(tmp_path / "x.beton")
    assert open_split(data, "train", announce=said.append).images == 2
    with pytest.raises(DataError, match="validation needs another") as caught:
        open_split(data, "val", announce=said.append)
    assert "--val" in caught.value.help and said == []


def test_unknown_data(tmp_path: Path, said: list[str]) -> None:
    for wrong, meant in (("digit", "digits"), ("cifar10", "CIFAR10"), ("Flower", "Flowers102")):
        with pytest.raises(DataError, match="no data set of that name") as caught:
            open_split(wrong, "train", cache=tmp_path, announce=said.append)
        assert caught.value.help.startswith(f"did you mean {meant}? ")
        with pytest.raises(DataError, match="no data set of that name"):
            pack(wrong, tmp_path / "x.beton")
    with pytest.raises(DataError) as caught:
        open_split("sets/nothing/near", "train", cache=tmp_path, announce=said.append)
    assert caught.value.help.startswith("name a beton, an image folder, or one of digits, ")


def test_a_misspelt_path_is_met_with_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "photos.beton").touch()
    with pytest.raises(DataError) as caught:
        need_there(str(tmp_path / "phtos.beton"))
    assert caught.value.help.startswith(f"did you mean {tmp_path / 'photos.beton'}? ")
    with pytest.raises(DataError) as caught:
        need_there(str(tmp_path / "nowhere" / "else"))
    assert caught.value.help.startswith("name a beton")


def test_digits(tmp_path: Path, said: list[str]) -> None:
    from sklearn.datasets import load_digits

    content = load_digits()
    parts = [open_split("digits", split, cache=tmp_path, announce=said.append)
             for split in ("train", "val")]  # fmt: skip
    assert [part.images for part in parts] == [1000, 797]
    labels = np.concatenate([part.labels for part in parts])
    assert np.array_equal(labels, content.target) and parts[0].classes == tuple("0123456789")
    assert (parts[0].heights == 32).all() and (parts[1].widths == 32).all()
    image = Image.fromarray(digits("val").image(5))
    small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255 * 16
    assert np.corrcoef(small.ravel(), content.images[1005].ravel())[0, 1] > 0.97


def test_a_damaged_cache_is_packed_again(tmp_path: Path, said: list[str]) -> None:
    beton = open_split("digits", "val", cache=tmp_path, announce=said.append)
    beton.path.write_bytes(beton.path.read_bytes()[:1000])
    again = open_split("digits", "val", cache=tmp_path, announce=said.append)
    assert again.identity == beton.identity and any("packing it again" in line for line in said)


def test_cache_that_cannot_be_made(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be made") as caught:
        open_split("digits", "val", cache=tmp_path / "file" / "x", announce=said.append)
    assert "FASTCL_CACHE" in caught.value.help


def test_scikit_learn_missing(monkeypatch) -> None:
    from fastcl_cli.errors import MissingLibraryError

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingLibraryError) as caught:
        digits("train")
    assert caught.value.help == "pip install '.[digits]' (in the folder of fastcl's source)"


def test_two_processes_pack_at_once(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from fastcl_cli.data.source import open_split
from fastcl_cli.data.writer import BetonWriter, page_size
print(open_split("digits", "train", cache=Path({str(tmp_path)!r}), announce=str).identity)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=60)[0] for process in running}
    assert len(said) == 1 and [process.returncode for process in running] == [0, 0]
    assert len(left(tmp_path)) == 2
