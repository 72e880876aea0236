"""Decoding through FFCV: order, resume, counting, and what must not hang."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_photos import drop_checksums, photos, write_beton
from PIL import Image

from fastcl_cli.data.beton import ALLOCATION, HEADER, Beton, open_beton
from fastcl_cli.data.ffcv_library import load_ffcv
from fastcl_cli.data.loader import DecodedLoader
from fastcl_cli.data.order import epoch_order
from fastcl_cli.data.writer import BetonWriter, page_size
from fastcl_cli.errors import DataError, MissingLibraryError, RunFailedError, UsageError

IMAGES = 50


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Beton:
    return open_beton(write_beton(tmp_path_factory.mktemp("loader") / "photos.beton", IMAGES))


@pytest.fixture(scope="module")
def loader(beton: Beton) -> DecodedLoader:
    return DecodedLoader(beton, 64, 2)


def served(loader: DecodedLoader, order: np.ndarray, batch: int) -> tuple[torch.Tensor, ...]:
    with loader.stream(order, batch) as batches:
        taken = [(item.images.clone(), item.indices) for item in batches]
    images, indices = zip(*taken, strict=True)
    return torch.cat(images), torch.cat(indices)


def test_the_whole_list_in_order(loader: DecodedLoader) -> None:
    loader.side = 64
    order = epoch_order(IMAGES, 0, 0)
    with loader.stream(order, 16) as batches:
        sizes = [(len(item.images), len(item.indices)) for item in batches]
    assert sizes == [(16, 16), (16, 16), (16, 16), (2, 2)]
    images, indices = served(loader, order, 16)
    assert images.shape == (IMAGES, 64, 64, 3) and images.dtype == torch.uint8
    assert np.array_equal(indices.numpy(), order) and indices.dtype == torch.int64
    straight, _ = served(loader, np.arange(IMAGES), 7)
    assert torch.equal(images, straight[order])


def test_two_streams_at_a_time(loader: DecodedLoader) -> None:
    """Of other orders and batch sizes, the second opened and closed within the first."""
    loader.side = 64
    first, second = epoch_order(IMAGES, 0, 0), epoch_order(IMAGES, 0, 1)
    straight, _ = served(loader, np.arange(IMAGES), 16)
    before, taken = loader.decoded, []
    with loader.stream(first, 8) as batches:
        for number, item in enumerate(batches):
            if number == 2:
                other, _ = served(loader, second, 5)
            taken.append(item.images.clone())
    assert torch.equal(torch.cat(taken), straight[first])
    assert torch.equal(other, straight[second])
    assert loader.decoded - before == 2 * IMAGES


def test_pixels_are_the_images_squashed(loader: DecodedLoader, beton: Beton) -> None:
    """Against Pillow's JPEG decoder and OpenCV's area resize.

    The fast transform of FFCV's decoder costs 1 of 255 on average, decoding at a smaller scale 4.
    """
    data = beton.path.read_bytes()
    table_at = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    table = np.frombuffer(data, ALLOCATION, IMAGES, table_at)
    for side, most in ((400, 1.2), (100, 5.0), (24, 5.0)):
        loader.side = side
        images, _ = served(loader, np.arange(IMAGES), IMAGES)
        errors = []
        for row, image in zip(table, images.numpy(), strict=True):
            jpeg = data[int(row["ptr"]) : int(row["ptr"]) + int(row["size"])]
            decoded = np.asarray(Image.open(io.BytesIO(jpeg)))
            expected = cv2.resize(decoded, (side, side), interpolation=cv2.INTER_AREA)
            errors.append(np.abs(image.astype(float) - expected).mean())
        assert np.mean(errors) < most, np.mean(errors)


def test_a_jpeg_is_decoded_at_half_its_size_where_nearly_all_of_the_side_is_left(
    tmp_path: Path,
) -> None:
    """250 of 500 pixels will do for 256, which is 39/40 of it, and not for 257."""
    buffer = io.BytesIO()
    photos()[0].resize((500, 300)).save(buffer, "JPEG", quality=90)
    with BetonWriter(tmp_path / "one.beton", 1, True, page_size(500)) as writer:
        writer.add(buffer.getvalue(), 300, 500, 0)
        writer.finish()
    loader = DecodedLoader(open_beton(tmp_path / "one.beton"), 256, 1)
    for side, half in ((256, True), (257, False)):
        loader.side = side
        found = served(loader, np.arange(1), 1)[0][0].numpy().astype(float)
        errors = {}
        for smaller in (True, False):
            image = Image.open(buffer)
            if smaller:
                image.draft("RGB", (250, 150))
            squashed = cv2.resize(np.asarray(image), (side, side), interpolation=cv2.INTER_AREA)
            errors[smaller] = np.abs(found - squashed).mean()
        assert errors[half] < 1.2 and errors[half] < errors[not half] / 2, errors


def test_resume_in_the_middle_is_the_rest(loader: DecodedLoader) -> None:
    loader.side = 64
    order = epoch_order(IMAGES, 3, 1)
    whole, _ = served(loader, order, 8)
    rest, indices = served(loader, order[24:], 8)
    assert torch.equal(rest, whole[24:]) and np.array_equal(indices.numpy(), order[24:])


def test_workers_and_batch_size_change_no_pixel(loader: DecodedLoader, beton: Beton) -> None:
    loader.side = 48
    order = epoch_order(IMAGES, 4, 0)
    one, _ = served(DecodedLoader(beton, 48, 1), order, 5)
    two, _ = served(loader, order, 32)
    assert torch.equal(one, two)


def test_another_loader_compiles_nothing(loader: DecodedLoader, tmp_path: Path) -> None:
    """Whatever its file, its side and its batches."""
    served(loader, np.arange(IMAGES), 16)
    compiled = loader._files.decode
    other = DecodedLoader(open_beton(write_beton(tmp_path / "other.beton", 3, seed=1)), 24, 2)
    served(other, np.arange(3), 2)
    assert other._files.decode is compiled
    assert len(compiled.signatures) == 1


def test_each_image_is_decoded_once(loader: DecodedLoader) -> None:
    loader.side = 32
    before = loader.decoded
    served(loader, np.arange(IMAGES), 16)
    assert loader.decoded - before == IMAGES
    served(loader, np.array([3, 3, 3]), 2)
    assert loader.decoded - before == IMAGES + 3


def test_side_changes_in_place(loader: DecodedLoader) -> None:
    for side in (96, 16, 96):
        loader.side = side
        images, _ = served(loader, np.arange(4), 4)
        assert images.shape == (4, side, side, 3) and loader.side == side


def streams() -> int:
    """How many threads there are that are not kept for the next stream."""
    return sum(not thread.name.startswith("decode") for thread in threading.enumerate())


def test_leaving_early_leaves_no_thread(loader: DecodedLoader) -> None:
    loader.side = 64
    before = streams()
    for taken in (0, 1, 3):
        with loader.stream(np.arange(IMAGES).repeat(4), 4) as batches:
            for _ in range(taken):
                next(batches)
        assert streams() == before
    with pytest.raises(KeyError), loader.stream(np.arange(IMAGES), 4) as batches:
        next(batches)
        raise KeyError
    assert streams() == before
    assert len(served(loader, np.arange(8), 4)[0]) == 8


def test_streams_one_after_the_other_share_a_thread(
    loader: DecodedLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread that has decoded costs memory to the end of the process."""
    threads: set[threading.Thread] = set()
    decode = loader._files.decode

    def noting(*arguments: object) -> None:
        threads.add(threading.current_thread())
        decode(*arguments)

    monkeypatch.setattr(loader._files, "decode", noting)
    for _ in range(10):
        with loader.stream(np.arange(8), 4) as stream:
            assert len(list(stream)) == 2
    assert len(threads) <= 2  # as many as streams were ever open at once, above


def test_after_the_end_comes_the_end(loader: DecodedLoader) -> None:
    with loader.stream(np.arange(3), 2) as batches:
        assert len(list(batches)) == 2
        assert next(batches, None) is None and next(batches, None) is None
    with loader.stream(np.arange(0), 2) as batches:
        assert list(batches) == []


@pytest.mark.parametrize("index", [-1, IMAGES, 2**40])
def test_index_out_of_range(loader: DecodedLoader, index: int) -> None:
    with (
        pytest.raises(DataError, match=f"holds the images 0 to {IMAGES - 1}"),
        loader.stream(np.array([0, index]), 2),
    ):
        pass


def test_no_workers(beton: Beton) -> None:
    with pytest.raises(UsageError, match="0 decoding threads"):
        DecodedLoader(beton, 64, 0)


def test_torch_keeps_its_threads(beton: Beton, loader: DecodedLoader) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        fresh = DecodedLoader(beton, 32, 1)
        served(fresh, np.arange(8), 4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_thread_that_dies_is_an_error_with_its_cause(loader: DecodedLoader, monkeypatch) -> None:
    """FFCV itself would wait for ever here."""
    from fastcl_cli.data import decoder

    def broken(self, *args):
        raise OSError("the disk went away")

    monkeypatch.setattr(decoder.Iterator, "run_pipeline", broken)
    with (
        pytest.raises(RunFailedError, match="the disk went away") as caught,
        loader.stream(np.arange(8), 4) as batches,
    ):
        next(batches)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.exit_code == 1


def damage(source: Path, target: Path, index: int, how: str, checked: bool) -> Path:
    """A beton with a damaged image; not ``checked``, it has no checksums, as from FFCV."""
    data = bytearray(source.read_bytes())
    if not checked:
        drop_checksums(data)
    table_at = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    row = np.frombuffer(bytes(data), ALLOCATION, IMAGES, table_at)[index]
    at, size = int(row["ptr"]), int(row["size"])
    if how == "zeroed":
        data[at : at + size] = bytes(size)
    elif how == "tail":
        data[at + size // 2 : at + size] = bytes(size - size // 2)
    elif how == "marker":
        data[at + size // 2 : at + size // 2 + 2] = b"\xff\xd9"
    elif how == "other size":
        frame = data.index(b"\xff\xc0", at)
        data[frame + 5 : frame + 9] = (40).to_bytes(2, "big") * 2
    target.write_bytes(bytes(data))
    return target


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize(
    "how, message",
    [
        ("zeroed", "has not the size"),
        ("tail", "cannot be decoded"),
        ("marker", "cannot be decoded"),
        ("other size", "has not the size"),
    ],
)
def test_a_damaged_record_is_named(
    beton: Beton, tmp_path: Path, how: str, message: str, checked: bool
) -> None:
    """FFCV would repeat old pixels. Images before the damaged batch are served."""
    path = damage(beton.path, tmp_path / "damaged.beton", 30, how, checked)
    damaged = DecodedLoader(open_beton(path), 64, 2)
    before = streams()
    with pytest.raises(DataError) as caught, damaged.stream(np.arange(IMAGES), 8) as batches:
        for count, _ in enumerate(batches):
            assert count < 3
    assert f"{path}: image 30 is damaged" in caught.value.message
    said = "is not what was packed" if checked else message
    assert said in caught.value.message and "pack" in caught.value.help
    assert streams() == before
    assert len(served(damaged, np.arange(30), 8)[0]) == 30


def test_betons_of_ffcvs_own_writer(tmp_path: Path) -> None:
    """Label before image, a field that we do not know of, raw and JPEG records mixed.

    The writer runs in a process of its own under a time limit: it hangs where a worker raises, and
    where it has but one core.
    """
    path = tmp_path / "theirs.beton"
    script = f"""
import os, sys
os.sched_setaffinity(0, range(os.cpu_count()))
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
from data_photos import photos
from ffcv.fields import FloatField, IntField, RGBImageField
from ffcv.writer import DatasetWriter
class Data:
    def __len__(self): return 8
    def __getitem__(self, index):
        np.random.seed(index)
        return index, 0.5, np.asarray(photos()[index % 4])
fields = {{"label": IntField(), "weight": FloatField(),
          "image": RGBImageField(write_mode="proportion", max_resolution=200)}}
DatasetWriter({str(path)!r}, fields, num_workers=1).from_indexed_dataset(Data())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300, capture_output=True)
    beton = open_beton(path)
    assert beton.images == 8
    assert beton.labels is not None and beton.labels.tolist() == list(range(8))
    images, _ = served(DecodedLoader(beton, 100, 2), np.arange(8), 4)
    errors = []
    for index, photo in enumerate(photos() * 2):
        shape = int(beton.widths[index]), int(beton.heights[index])
        stored = cv2.resize(np.asarray(photo), shape, interpolation=cv2.INTER_AREA)
        expected = cv2.resize(stored, (100, 100), interpolation=cv2.INTER_AREA)
        errors.append(np.abs(images[index].numpy().astype(float) - expected).mean())
    exact = [error == 0 for error in errors]
    assert any(exact) and not all(exact) and max(errors) < 8, errors


def test_nothing_is_printed_and_nothing_hangs_at_exit(beton: Beton) -> None:
    """A process that leaves in the middle of a stream: clean, quiet, in time."""
    script = f"""
import numpy as np
from fastcl_cli.data.beton import open_beton
from fastcl_cli.data.ffcv_library import load_ffcv
from fastcl_cli.data.loader import DecodedLoader
loader = DecodedLoader(open_beton({str(beton.path)!r}), 32, 2)
other = DecodedLoader(open_beton({str(beton.path)!r}), 32, 1)
with other.stream(np.arange(10), 4) as batches: list(batches)
del other
context = loader.stream(np.arange(50).repeat(10), 4)
next(context.__enter__())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=300, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "module, line",
    [("ffcv", "pip install '.[train]'"), ("distutils", "pip install setuptools")],
)
def test_a_missing_library_is_named(module: str, line: str) -> None:
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.modules.pop({module!r}, None)
sys.meta_path.insert(0, Missing())
from fastcl_cli.data.ffcv_library import load_ffcv
from fastcl_cli.errors import MissingLibraryError
try:
    load_ffcv()
except MissingLibraryError as error:
    print(error.message, "|", error.help)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=300, capture_output=True, text=True, check=True
    )
    assert module in done.stdout and line in done.stdout
    assert MissingLibraryError.exit_code == 2


def test_numba_keeps_its_own_dictionary() -> None:
    """FFCV is imported with Python's in its place."""
    import numba.typed
    from numba.typed.typeddict import Dict

    load_ffcv()
    assert numba.typed.Dict is Dict
