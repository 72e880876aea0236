"""Which image classification sets of torchvision's have a name here, and what their parts are.

What is not held out for the final figures trains (``train`` and, where there is one, ``val`` of
the set's own), and its ``test`` part judges, as published accuracies have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class NamedSet:
    """How torchvision's class is called for a set, and what the set holds.

    Attributes:
        folder: where its files lie below the root.
        train: arguments of the constructor, once for each split that trains.
        val: the same for what judges; empty where the set has no parts.
        images: the published numbers of images of both parts, or of the whole.
        kind: the name of torchvision's class, where it is not the set's.
        labelled: whether images have labels; those without train only.
        matlab: whether labels are MATLAB files, which need scipy.
        classes: how many there are, where torchvision does not name them: "0", "1", ...
    """

    folder: str
    train: tuple[Arguments, ...] = ({},)
    val: tuple[Arguments, ...] = ()
    images: tuple[int, ...] = field(kw_only=True)
    kind: str = ""
    labelled: bool = True
    matlab: bool = False
    classes: int = 0


def _splits(*names: str) -> tuple[Arguments, ...]:
    return tuple({"split": name} for name in names)


_TRAIN: tuple[Arguments, ...] = ({"train": True},)
_TEST: tuple[Arguments, ...] = ({"train": False},)

SETS: Mapping[str, NamedSet] = {
    "Caltech101": NamedSet("caltech101/101_ObjectCategories", images=(8_677,)),
    "Caltech256": NamedSet("caltech256/256_ObjectCategories", images=(30_607,)),
    "CIFAR10": NamedSet("cifar-10-batches-py", _TRAIN, _TEST, images=(50_000, 10_000)),
    "CIFAR100": NamedSet("cifar-100-python", _TRAIN, _TEST, images=(50_000, 10_000)),
    "Country211": NamedSet(
        "country211", _splits("train", "valid"), _splits("test"), images=(42_200, 21_100)
    ),
    "DTD": NamedSet("dtd/dtd", _splits("train", "val"), _splits("test"), images=(3_760, 1_880)),
    "EuroSAT": NamedSet("eurosat/2750", images=(27_000,)),
    "FashionMNIST": NamedSet("FashionMNIST/raw", _TRAIN, _TEST, images=(60_000, 10_000)),
    "FGVCAircraft": NamedSet(
        "fgvc-aircraft-2013b", _splits("trainval"), _splits("test"), images=(6_667, 3_333)
    ),
    "Flowers102": NamedSet(
        "flowers-102",
        _splits("train", "val"),
        _splits("test"),
        images=(2_040, 6_149),
        matlab=True,
        classes=102,
    ),
    "Food101": NamedSet("food-101", _splits("train"), _splits("test"), images=(75_750, 25_250)),
    "GTSRB": NamedSet(
        "gtsrb", _splits("train"), _splits("test"), images=(26_640, 12_630), classes=43
    ),
    "Imagenette": NamedSet("imagenette2", _splits("train"), _splits("val"), images=(9_469, 3_925)),
    "KMNIST": NamedSet("KMNIST/raw", _TRAIN, _TEST, images=(60_000, 10_000)),
    "MNIST": NamedSet("MNIST/raw", _TRAIN, _TEST, images=(60_000, 10_000)),
    "OxfordIIITPet": NamedSet(
        "oxford-iiit-pet", _splits("trainval"), _splits("test"), images=(3_680, 3_669)
    ),
    "RenderedSST2": NamedSet(
        "rendered-sst2", _splits("train", "val"), _splits("test"), images=(7_792, 1_821)
    ),
    "StanfordCars": NamedSet(
        "stanford_cars", _splits("train"), _splits("test"), images=(8_144, 8_041), matlab=True
    ),
    "STL10": NamedSet(
        "stl10_binary", _splits("train"), _splits("test"), images=(5_000, 8_000), classes=10
    ),
    "STL10-unlabeled": NamedSet(
        "stl10_binary",
        _splits("unlabeled"),
        images=(100_000,),
        kind="STL10",
        labelled=False,
        classes=10,
    ),
    "SUN397": NamedSet("SUN397", images=(108_754,)),
    "SVHN": NamedSet(
        "", _splits("train"), _splits("test"), images=(73_257, 26_032), matlab=True, classes=10
    ),
    "USPS": NamedSet("", _TRAIN, _TEST, images=(7_291, 2_007), classes=10),
}
