"""torchvision's sets by name, from small files in each one's own layout on the disk.

Pixels that were transposed, or given to another label, are found: every image shows its number.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torchvision_layouts as layouts
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision_layouts import (
    HELD,
    MAKERS,
    MORE,
    TRAIN,
    VAL,
    WHOLE,
    Numbered,
    Pixels,
    grey,
    picture,
    save,
)

from fastcl_cli.data import torchvision_sets
from fastcl_cli.data.beton import ALLOCATION, HEADER, Beton, open_beton
from fastcl_cli.data.encode import Settings
from fastcl_cli.data.pack import pack
from fastcl_cli.data.sidecar import sidecar_path
from fastcl_cli.data.source import open_split
from fastcl_cli.data.torchvision_table import SETS
from fastcl_cli.errors import DataError, MissingLibraryError, UsageError


def stored(beton: Beton) -> list[Pixels]:
    data = beton.path.read_bytes()
    table_at = int(np.frombuffer(data, HEADER, 1)[0]["alloc_table_ptr"])
    rows = np.frombuffer(data, ALLOCATION, beton.images, table_at)
    jpegs = [data[int(row["ptr"]) : int(row["ptr"]) + int(row["size"])] for row in rows]
    return [np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]


def number_of(image: Pixels) -> int:
    """The number that an image shows; every pixel must be near what was drawn."""
    side = len(image)
    if side in (16, 28):
        drawn = [np.repeat(grey(number, side)[..., None], 3, 2) for number in range(HELD)]
    else:
        drawn = [picture(number, side) for number in range(HELD)]
    distances = [float(np.abs(image.astype(int) - one).mean()) for one in drawn]
    assert min(distances) < 5, "is none of the images drawn"
    return int(np.argmin(distances))


def numbered(beton: Beton) -> Numbered:
    assert beton.labels is not None
    shown = [number_of(image) for image in stored(beton)]
    return sorted(zip(shown, beton.labels.tolist(), strict=True))


@pytest.fixture
def said() -> list[str]:
    return []


def test_every_set_is_tested() -> None:
    assert set(SETS) == set(MAKERS) | set(WHOLE) | {"STL10-unlabeled"}
    for name, spec in SETS.items():
        assert hasattr(datasets, spec.kind or name) and len(spec.images) == 1 + bool(spec.val)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_parts(name: str, tmp_path: Path, monkeypatch, said: list[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    classes = MAKERS[name](root, monkeypatch)
    reports = pack(name, tmp_path / "x.beton", root=root, announce=said.append)
    train, val = (open_beton(report.path) for report in reports)
    if name == "RenderedSST2":
        expected = [[(0, 1), (1, 0), (2, 1), (3, 0)], [(5, 1), (6, 0)]]
    else:
        expected = [sorted(TRAIN + MORE.get(name, [])), sorted(VAL)]
    assert [numbered(train), numbered(val)] == expected
    for part, beton in (("train", train), ("val", val)):
        content = json.loads(sidecar_path(beton.path).read_text())
        assert list(beton.classes or ()) == content["classes"] == classes
        assert content["source"] == f"{name}/{part}" and content["skipped"] == []
        assert len(content["digests"]) == len(set(content["digests"])) == beton.images
    assert sum("as published" in line for line in said) == 2
    (alone,) = pack(name, tmp_path / "one.beton", split="val", root=root)
    assert alone.path.read_bytes() == reports[1].path.read_bytes()


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_sets_without_parts(name: str, tmp_path: Path, monkeypatch, said: list[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    classes = WHOLE[name](root, monkeypatch)
    # A disk may list files in any order: SUN397's is made to list them backwards.
    listed = Path.rglob
    monkeypatch.setattr(
        Path, "rglob", lambda path, pattern: sorted(listed(path, pattern), reverse=True)
    )
    reports = pack(name, tmp_path / "x.beton", root=root, announce=said.append)
    betons = [open_beton(report.path) for report in reports]
    for beton in betons:
        shown = [number_of(image) for image in stored(beton)]
        assert shown == sorted(shown, key=lambda number: (number % 2, number))
    parts = [numbered(beton) for beton in betons]
    assert sorted(parts[0] + parts[1]) == [(number, number % 2) for number in range(HELD)]
    assert [label for _, label in sorted(parts[1], key=lambda one: one[1])] == [0, 1]
    assert all(list(report.classes or ()) == classes for report in reports)
    words = "10 images train, 2 (a fifth of each class, rounded down) validate"
    assert any(words in s for s in said)


def test_unlabelled_images_train(tmp_path: Path, monkeypatch, said: list[str]) -> None:
    layouts.stl10(tmp_path, monkeypatch)
    (report,) = pack("STL10-unlabeled", tmp_path / "x.beton", root=tmp_path)
    beton = open_beton(report.path)
    assert beton.labels is None and beton.classes is None
    assert [number_of(image) for image in stored(beton)] == list(range(7))
    with pytest.raises(UsageError, match="has no val part"):
        pack("STL10-unlabeled", tmp_path / "x.beton", split="val", root=tmp_path)
    with pytest.raises(DataError, match="has no labels, so it trains only") as caught:
        open_split("STL10-unlabeled", "val", cache=tmp_path / "cache", announce=said.append)
    assert "STL10" in caught.value.help


def test_arrays_order_and_processes(tmp_path: Path, monkeypatch) -> None:
    """Rows stay in the order of the files, whoever reads them."""
    numbers = [(index * 5) % 7 for index in range(40)]
    monkeypatch.setattr(layouts, "TRAIN", [(number, number % 3) for number in numbers])
    layouts.stl10(tmp_path, monkeypatch)
    files = []
    for workers in (1, 2):
        (report,) = pack(
            "STL10", tmp_path / f"{workers}.beton", split="train", root=tmp_path,
            settings=Settings(workers=workers),
        )  # fmt: skip
        files.append(report.path.read_bytes())
    beton = open_beton(tmp_path / "2.beton")
    assert files[0] == files[1] and [number_of(image) for image in stored(beton)] == numbers


def test_files_are_read_as_a_folder_s(tmp_path: Path, monkeypatch) -> None:
    """torchvision itself would keep the image lying on its side, and fail at the damaged one."""
    layouts.food101(tmp_path, monkeypatch)
    images = tmp_path / "food-101" / "images"
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.rot90(picture(3)).copy())
    lying.save(images / "apple_pie" / "3.jpg", quality=95, exif=exif)
    (images / "bibimbap" / "0.jpg").write_bytes(b"no picture")
    (images / "waffles" / "2.jpg").unlink()
    (report,) = pack("Food101", tmp_path / "x.beton", split="train", root=tmp_path)
    assert numbered(open_beton(report.path)) == [(1, 0), (3, 0)]
    assert [(item.path.rsplit("/", 1)[1], item.reason) for item in report.skipped] == [
        ("0.jpg", "is not an image that Pillow can read"),
        ("2.jpg", "cannot be read: No such file or directory"),
    ]
    with pytest.raises(DataError, match=r"bibimbap/0\.jpg: is not an image"):
        pack("Food101", tmp_path / "y.beton", root=tmp_path, settings=Settings(strict=True))
    assert not list(tmp_path.glob("*y*"))


def test_a_set_is_packed_once_into_the_cache(tmp_path: Path, monkeypatch, said: list[str]) -> None:
    cache = tmp_path / "cache"
    (cache / "torchvision").mkdir(parents=True)
    layouts.flowers102(cache / "torchvision", monkeypatch)
    train = open_split("Flowers102", "train", cache=cache, announce=said.append)
    assert numbered(train) == sorted(TRAIN) and train.classes == tuple(datasets.Flowers102.classes)
    shutil.rmtree(cache / "torchvision")
    before = len(said)
    again = open_split("Flowers102", "train", cache=cache, announce=said.append)
    assert again.identity == train.identity and len(said) == before


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path / "MNIST" / "seven" / "a.png", 7)
    monkeypatch.chdir(tmp_path)
    (report,) = pack("MNIST", tmp_path / "x.beton")
    assert report.classes == ("seven",)


# Files that are not what was published


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("known", [True, False])
def test_a_pickle_that_does_something_is_not_run(
    known: bool, tmp_path: Path, monkeypatch, said: list[str]
) -> None:
    """Not where its digest is wrong, and not even where it is right."""
    MAKERS["CIFAR10"](tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps(Evil()))
    if known:
        layouts.digest_cifar(datasets.CIFAR10, tmp_path, monkeypatch)
    message = r"names (nt|posix)\.mkdir" if known else "is not the published file"
    with pytest.raises(DataError, match=message):
        pack("CIFAR10", tmp_path / "x.beton", root=tmp_path)
    assert not (tmp_path / "pwned").exists()
    pickle.loads(path.read_bytes())  # the negative control: this is what it would have done
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "devkit" / "cars_meta.mat").write_bytes(b"x" * 300),
         "cannot be read"),
        (lambda root: savemat(root / "devkit" / "cars_meta.mat",
                              {"class_names": np.array([["a", "b"]], object)}),
         "labels go from 0 to 2, but there are 2 classes"),
    ],
)  # fmt: skip
def test_damaged_lists(damage, message: str, tmp_path: Path, monkeypatch) -> None:
    layouts.cars(tmp_path, monkeypatch)
    damage(tmp_path / "stanford_cars")
    with pytest.raises(DataError, match=message) as caught:
        pack("StanfordCars", tmp_path / "x.beton", root=tmp_path)
    assert "\n" not in caught.value.message


def test_splits_that_lack_a_class(tmp_path: Path, monkeypatch) -> None:
    """DTD numbers the classes that it finds: a missing one would shift the others."""
    layouts.dtd(tmp_path, monkeypatch)
    labels = tmp_path / "dtd" / "dtd" / "labels"
    for split in ("val", "test"):
        text = (labels / f"{split}1.txt").read_text()
        lines = [line for line in text.splitlines(True) if not line.startswith("dotted")]
        (labels / f"{split}1.txt").write_text("".join(lines))
        with pytest.raises(DataError, match=r"differ in.* 'dotted'"):
            pack("DTD", tmp_path / "x.beton", root=tmp_path)
        (labels / "val1.txt").write_text(text)


@pytest.mark.parametrize("library", ["scipy", "torchvision"])
def test_missing_libraries(library: str, tmp_path: Path, monkeypatch) -> None:
    if library == "scipy":
        monkeypatch.setattr(torchvision_sets, "find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingLibraryError, match=library) as caught:
        pack("SVHN", tmp_path / "x.beton", root=tmp_path)
    assert "pip install" in caught.value.help


# Downloads


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_missing_set_without_a_network(
    name: str, tmp_path: Path, monkeypatch, said: list[str]
) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(DataError) as caught:
        pack(name, tmp_path / "x.beton", root=tmp_path / "root", announce=said.append)
    reason = "URL is broken" if name == "StanfordCars" else "Temporary failure in name resolution"
    assert caught.value.message.startswith(f"{name}: not whole in {tmp_path / 'root'}")
    assert reason in caught.value.message and "\n" not in caught.value.message
    assert str(tmp_path / "root" / SETS[name].folder) in caught.value.help
    assert said == [f"{name}: not whole in {tmp_path / 'root'}: downloading it"]
    assert not list(tmp_path.glob("*.beton*"))


def test_the_command_says_it_in_two_lines(tmp_path: Path) -> None:
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    result = subprocess.run(
        [sys.executable, "-m", "fastcl_cli", "pack", "STL10", "x.beton", "--root", "here"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env=environment | nowhere | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    lines = result.stderr.splitlines()
    assert (result.returncode, result.stdout, len(lines)) == (2, "", 3)
    assert "downloading it" in lines[0] and lines[2].startswith("help: place its files by hand")
    assert lines[1].startswith("error: STL10: not whole") and lines[1].endswith(
        "Connection refused"
    )


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server for a folder: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            asked.append(f"{self.command} {self.path}")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def published(tmp_path: Path, monkeypatch, address: str, extra: Path | None = None) -> None:
    """CIFAR-10 as an archive on a server, with torchvision's table pointing there."""
    made = tmp_path / "made"
    made.mkdir()
    MAKERS["CIFAR10"](made, monkeypatch)
    archive = tmp_path / "site" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made / "cifar-10-batches-py", "cifar-10-batches-py")
        if extra is not None:
            tar.add(extra, "../escaped")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}/{archive.name}")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", layouts.md5(archive))


def test_a_download_happens_once(tmp_path: Path, monkeypatch, said: list[str]) -> None:
    (tmp_path / "site").mkdir()
    root = tmp_path / "root"
    with served(tmp_path / "site") as (address, asked):
        published(tmp_path, monkeypatch, address)
        reports = pack("CIFAR10", tmp_path / "x.beton", root=root, announce=said.append)
        assert [numbered(open_beton(report.path)) for report in reports] == [
            sorted(TRAIN), sorted(VAL)
        ]  # fmt: skip
        once = len(asked)
        assert once and "CIFAR10: not whole in" in said[0]
        pack("CIFAR10", tmp_path / "x.beton", root=root, overwrite=True)
        # A file that is there is seen before anything is downloaded.
        with pytest.raises(UsageError, match=r"x-train\.beton exists"):
            pack("CIFAR10", tmp_path / "x.beton", root=tmp_path / "elsewhere")
        assert len(asked) == once
    assert socket.getdefaulttimeout() is None


def test_an_archive_that_was_changed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "site").mkdir()
    with served(tmp_path / "site") as (address, _):
        published(tmp_path, monkeypatch, address)
        monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
        with pytest.raises(DataError, match="cannot be downloaded: File not found or corrupted"):
            pack("CIFAR10", tmp_path / "x.beton", root=tmp_path / "root")
    assert not (tmp_path / "root" / "cifar-10-batches-py").exists()


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "payload").write_text("x")
    with served(tmp_path / "site") as (address, _):
        published(tmp_path, monkeypatch, address, tmp_path / "payload")
        with pytest.raises(DataError, match="outside the destination"):
            pack("CIFAR10", tmp_path / "x.beton", root=tmp_path / "root")
    assert not (tmp_path / "escaped").exists()


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torchvision_sets, "_PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.tar.gz"
        monkeypatch.setattr(datasets.CIFAR10, "url", address)
        with pytest.raises(DataError, match=r"cannot be downloaded: .*timed out"):
            pack("CIFAR10", tmp_path / "x.beton", root=tmp_path / "root")
