"""Small data sets in the layouts in which torchvision finds its sets on the disk.

Every image shows its number, so that images can be told apart after packing. Where torchvision
compares files with published digests, its table gets those of the files made here; its reading
stays as it is.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

Maker = Callable[[Path, pytest.MonkeyPatch], list[str]]
"""Writes a set below a folder and returns the names of its classes 0, 1, ..."""
Pixels = NDArray[np.uint8]
Numbered = list[tuple[int, int]]
"""The number that an image shows, and its label."""
TRAIN: Numbered = [(0, 1), (1, 0), (2, 2), (3, 0)]
VAL: Numbered = [(4, 2), (5, 1), (6, 0)]
HELD = 12


def picture(number: int, side: int = 32) -> Pixels:
    """uint8 (side, side, 3): red rises to the right, green downwards, blue is the number."""
    ramp = np.linspace(0, 200, side)
    image = np.empty((side, side, 3))
    image[..., 0], image[..., 1], image[..., 2] = ramp, ramp[:, None] / 2, 20 * number + 8
    return np.rint(image).astype(np.uint8)


def grey(number: int, side: int) -> Pixels:
    """uint8 (side, side): rises to the right, a little downwards, and with the number."""
    ramp = np.linspace(0, 100, side)
    return np.rint(ramp + ramp[:, None] / 3 + 10 * number).astype(np.uint8)


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    Image.fromarray(picture(number)).save(path, **options)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes as the Python 2 that made the CIFAR files did: byte strings, NumPy's old module."""

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_str(self, value: str) -> None:
        self.save_bytes(value.encode("latin1"))

    def save_global(self, value: object, name: str | None = None) -> None:
        module, name = value.__module__, name or value.__name__  # type: ignore[attr-defined]
        module = module.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(value)

    dispatch[bytes], dispatch[str] = save_bytes, save_str
    dispatch[type] = dispatch[type(len)] = save_global


def write_pickle(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, 2).dump(content)


def digest_cifar(kind: type, root: Path, monkeypatch) -> None:
    """Let torchvision's tables say that the files here are the published ones."""
    folder = root / kind.base_folder
    for table in ("train_list", "test_list"):
        rows = [[name, md5(folder / name)] for name, _ in getattr(kind, table)]
        monkeypatch.setattr(kind, table, rows)
    meta = folder / kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(meta)})


def cifar(kind: type, label: str, names: str) -> Maker:
    def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        folder = root / kind.base_folder
        batches = np.array_split(np.arange(len(TRAIN)), len(kind.train_list))
        parts = [
            (name, [TRAIN[row] for row in rows])
            for (name, _), rows in zip(kind.train_list, batches, strict=True)
        ]
        for name, images in [*parts, (kind.test_list[0][0], VAL)]:
            pixels = [picture(number).transpose(2, 0, 1).reshape(-1) for number, _ in images]
            data = np.array(pixels, np.uint8).reshape(-1, 3072)
            write_pickle(folder / name, {"data": data, label: [wanted for _, wanted in images]})
        classes = ["apple", "boat", "cat"]
        write_pickle(folder / kind.meta["filename"], {names: classes, "num_vis": 3072})
        digest_cifar(kind, root, monkeypatch)
        return classes

    return make


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder = root / "stl10_binary"
    folder.mkdir()
    parts = {"train": TRAIN, "test": VAL, "unlabeled": [(number, 0) for number in range(7)]}
    for part, images in parts.items():
        stored = [picture(number, 96).transpose(2, 1, 0) for number, _ in images]
        (folder / f"{part}_X.bin").write_bytes(np.stack(stored).tobytes())
        if part != "unlabeled":
            labels = np.array([label + 1 for _, label in images], np.uint8)
            (folder / f"{part}_y.bin").write_bytes(labels.tobytes())
    classes = ["airplane", "bird", "car"]
    (folder / "class_names.txt").write_text("\n".join(classes) + "\n")
    for table in ("train_list", "test_list"):
        rows = [[name, md5(folder / name)] for name, _ in getattr(datasets.STL10, table)]
        monkeypatch.setattr(datasets.STL10, table, rows)
    return classes


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    table = {}
    for split, images in (("train", TRAIN), ("test", VAL)):
        path = root / f"{split}_32x32.mat"
        pixels = np.stack([picture(number) for number, _ in images], axis=-1)
        labels = np.array([[label or 10] for _, label in images], np.uint8)
        savemat(path, {"X": pixels, "y": labels})
        table[split] = ["http://localhost/", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    return list("0123456789")


def mnist(name: str) -> Maker:
    def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        for split, images in (("train", TRAIN), ("t10k", VAL)):
            pixels = np.stack([grey(number, 28) for number, _ in images])
            header = struct.pack(">4i", 0x803, len(images), 28, 28)
            (folder / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
            labels = struct.pack(">2i", 0x801, len(images)) + bytes(label for _, label in images)
            (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
        return list(getattr(datasets, name).classes)

    return make


def usps(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, images in (("usps.bz2", TRAIN), ("usps.t.bz2", VAL)):
        lines = []
        for number, label in images:
            values = grey(number, 16).reshape(-1) / 255 * 2 - 1
            cells = " ".join(f"{index + 1}:{value:.6f}" for index, value in enumerate(values))
            lines.append(f"{label + 1} {cells} \n")
        (root / name).write_bytes(bz2.compress("".join(lines).encode()))
    return list("0123456789")


def flowers102(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder = root / "flowers-102"
    for number, _ in TRAIN + VAL:
        save(folder / "jpg" / f"image_{number + 1:05d}.jpg", number)
    ids = {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6, 7]}
    savemat(folder / "setid.mat", {name: np.array([value]) for name, value in ids.items()})
    labels = np.array([[label + 1 for _, label in TRAIN + VAL]])
    savemat(folder / "imagelabels.mat", {"labels": labels})
    table = {"image": ("102flowers.tgz", "")} | {
        key: (name, md5(folder / name))
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", table)
    return list(datasets.Flowers102.classes)


def food101(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    classes = ["apple_pie", "bibimbap", "waffles"]
    for split, images in (("train", TRAIN), ("test", VAL)):
        content: dict[str, list[str]] = {name: [] for name in classes}
        for number, label in images:
            content[classes[label]].append(f"{classes[label]}/{number}")
            save(root / "food-101" / "images" / classes[label] / f"{number}.jpg", number)
        (root / "food-101" / "meta").mkdir(exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(content))
    return classes


def pets(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder, names = root / "oxford-iiit-pet", ["Abyssinian", "american_bulldog", "Bombay"]
    (folder / "annotations").mkdir(parents=True)
    for split, images in (("trainval", TRAIN), ("test", VAL)):
        lines = []
        for number, label in images:
            lines.append(f"{names[label]}_{number} {label + 1} 1 1\n")
            save(folder / "images" / f"{names[label]}_{number}.jpg", number)
        (folder / "annotations" / f"{split}.txt").write_text("".join(lines))
    return ["Abyssinian", "American Bulldog", "Bombay"]


def dtd(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder, classes = root / "dtd" / "dtd", ["banded", "dotted", "zigzagged"]
    (folder / "labels").mkdir(parents=True)
    more = [(7, 1), (8, 2)]
    for split, images in (("train", [*TRAIN[:3]]), ("val", [TRAIN[3], *more]), ("test", VAL)):
        lines = []
        for number, label in images:
            lines.append(f"{classes[label]}/{classes[label]}_{number:04d}.jpg\n")
            save(folder / "images" / lines[-1].strip(), number)
        (folder / "labels" / f"{split}1.txt").write_text("".join(lines))
    return classes


def aircraft(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder, classes = root / "fgvc-aircraft-2013b" / "data", ["707-320", "A300B4", "Yak-42 D"]
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{name}\n" for name in classes))
    for split, images in (("trainval", TRAIN), ("test", VAL)):
        lines = [f"{number:07d} {classes[label]}\n" for number, label in images]
        (folder / f"images_variant_{split}.txt").write_text("".join(lines))
        for number, _ in images:
            save(folder / "images" / f"{number:07d}.jpg", number)
    return classes


def cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder, classes = root / "stanford_cars", ["Acura RL 2012", "BMW M3 2012", "Fiat 500 2012"]
    (folder / "devkit").mkdir(parents=True)
    names = np.array(classes, object).reshape(1, -1)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, images, path in (
        ("train", TRAIN, "devkit/cars_train_annos.mat"),
        ("test", VAL, "cars_test_annos_withlabels.mat"),
    ):
        rows = [(label + 1, f"{number:05d}.jpg") for number, label in images]
        annotations = np.array([rows], [("class", object), ("fname", object)])
        savemat(folder / path, {"annotations": annotations})
        for number, _ in images:
            save(folder / f"cars_{split}" / f"{number:05d}.jpg", number)
    return classes


def gtsrb(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder = root / "gtsrb"
    for number, label in TRAIN:
        save(folder / "GTSRB" / "Training" / f"{label:05d}" / f"00000_{number:05d}.ppm", number)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"]
    for number, label in VAL:
        lines.append(f"{number:05d}.ppm;32;32;1;1;9;9;{label}\n")
        save(folder / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm", number)
    (folder / "GT-final_test.csv").write_text("".join(lines))
    return [str(number) for number in range(43)]


def country211(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    classes, more = ["AD", "AE", "ZW"], [(7, 1), (8, 2)]
    for split, images in (("train", TRAIN[:3]), ("valid", [TRAIN[3], *more]), ("test", VAL)):
        for number, label in images:
            save(root / "country211" / split / classes[label] / f"{number}.jpg", number)
    return classes


def imagenette(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    codes = ["n01440764", "n02102040", "n02979186"]
    for split, images in (("train", TRAIN), ("val", VAL)):
        for number, label in images:
            save(root / "imagenette2" / split / codes[label] / f"{number}.JPEG", number)
    return ["tench", "English springer", "cassette player"]


def sst2(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    classes = ["negative", "positive"]
    for split, images in (("train", [(0, 1), (1, 0)]), ("valid", [(3, 0), (2, 1)]),
                          ("test", [(5, 1), (6, 0)])):  # fmt: skip
        for number, label in images:
            save(root / "rendered-sst2" / split / classes[label] / f"{number}.png", number)
    return classes


def whole(paths: list[str], classes: list[str]) -> Maker:
    """A set without parts: six images of each of two classes."""

    def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        for number in range(HELD):
            save(root / paths[number % 2].format(number // 2 + 1), number)
        for name in ("101_ObjectCategories/BACKGROUND_Google",):
            if paths[0].startswith("caltech101"):
                (root / "caltech101" / name).mkdir()
        if paths[0].startswith("SUN397"):
            lines = [f"/{name[0]}/{name}\n" for name in classes]
            (root / "SUN397" / "ClassName.txt").write_text("".join(lines))
        return classes

    return make


MAKERS: dict[str, Maker] = {
    "CIFAR10": cifar(datasets.CIFAR10, "labels", "label_names"),
    "CIFAR100": cifar(datasets.CIFAR100, "fine_labels", "fine_label_names"),
    "Country211": country211,
    "DTD": dtd,
    "FGVCAircraft": aircraft,
    "FashionMNIST": mnist("FashionMNIST"),
    "Flowers102": flowers102,
    "Food101": food101,
    "GTSRB": gtsrb,
    "Imagenette": imagenette,
    "KMNIST": mnist("KMNIST"),
    "MNIST": mnist("MNIST"),
    "OxfordIIITPet": pets,
    "RenderedSST2": sst2,
    "STL10": stl10,
    "SVHN": svhn,
    "StanfordCars": cars,
    "USPS": usps,
}
WHOLE: dict[str, Maker] = {
    "Caltech101": whole(
        [f"caltech101/101_ObjectCategories/{name}/image_{{:04d}}.jpg" for name in ("ant", "bass")],
        ["ant", "bass"],
    ),
    "Caltech256": whole(
        [
            f"caltech256/256_ObjectCategories/{name}/{name[:3]}_{{:04d}}.jpg"
            for name in ("001.ak47", "002.flag")
        ],
        ["001.ak47", "002.flag"],
    ),
    "EuroSAT": whole(
        [f"eurosat/2750/{name}/{name}_{{}}.jpg" for name in ("Forest", "River")],
        ["Forest", "River"],
    ),
    "SUN397": whole(
        ["SUN397/a/abbey/sun_{:03d}.jpg", "SUN397/b/bar/outdoor/sun_{:03d}.jpg"],
        ["abbey", "bar/outdoor"],
    ),
}
MORE = {"Country211": [(7, 1), (8, 2)], "DTD": [(7, 1), (8, 2)]}
