"""README's commands in README's order, in one folder: what each needs, one before it has made.

Networks, batches and lengths are made small; nothing else of a command is changed.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_readme import COMMANDS, PYTHON, TRANSFORM
from torchvision_layouts import MAKERS

from fastcl_cli.checkpoint import save_backbone
from fastcl_cli.cli.main import main
from fastcl_cli.data.beton import open_beton
from fastcl_cli.data.pack import pack
from fastcl_cli.evaluate.images import Images, default_crop_ratio
from fastcl_cli.methods.build import BackboneSpec, build_backbone
from fastcl_cli.schedule import load

MODEL = "model=vit_tiny_patch16_224 (embed_dim=24, depth=1, num_heads=2)"
NETWORK = [
    *("--set", MODEL),
    *("--set", "head=32 16"), *("--set", "precision=float32"),
]  # fmt: skip
SMALL = {
    "run": ["--max-steps", "2"],
    "bench": ["--repetitions", "1", "--seconds", "0.01"],
    "search": ["--stages", "2", "--groups", "4", "--pairs", "2", "--probe-batch", "4"],
}
SMALLER = {
    "batch=512": "batch=8", "200kunits": "3kunits", "model=vit_giant_patch14_224": MODEL,
}  # fmt: skip


def small(line: str) -> list[str]:
    """A command's arguments, made small."""
    _, name, *words = shlex.split(line)
    words = [word for part in words for word in expanded(part)]
    arguments = [name, *words, *SMALL.get(name, [])]
    if "quickstart" not in words and name in SMALL:
        arguments += NETWORK[2:] if any(word.startswith("model=") for word in words) else NETWORK
        if "batch=512" not in words:
            arguments += ["--set", "batch=8"]
    arguments = [SMALLER.get(word, word) for word in arguments]
    if name == "search" and "--budget" not in arguments and "--checkpoints" not in arguments:
        arguments += ["--grid", "drop 0 0.5 patch 16 32", "--budget", "1kunits"]
    if name == "run" and "--gpus" in arguments:
        arguments[arguments.index("--gpus") + 1] = "2"
    if "--resume" in arguments and name == "run":
        arguments[arguments.index("--max-steps") + 1] = "4"
    return arguments


def expanded(word: str) -> list[str]:
    """As a shell would."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def images(folder: Path, classes: Sequence[str], count: int) -> None:
    draws = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = draws.integers(0, 200, (48, 64, 3)) + 50 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.jpg")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tour")
    images(folder / "photos", ["cats", "dogs"], 12)
    images(folder / "labelled" / "train", ["cats", "dogs"], 12)
    images(folder / "labelled" / "val", ["cats", "dogs"], 4)
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_the_tour(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("FASTCL_CACHE", str(place / "cache"))
    if "CIFAR10" in line:
        root = place / "cache" / "torchvision"
        root.mkdir(parents=True, exist_ok=True)
        MAKERS["CIFAR10"](root, monkeypatch)
    if "runs/full" in line:
        shutil.copytree("runs/first", "runs/full")
    if "runs/quickstart" in line and not Path("runs/quickstart").exists():
        finish(["run", "quickstart", "--max-steps", "2", "--out", "runs/quickstart"], monkeypatch)
    finish(small(line), monkeypatch)
    for made in re.findall(r"(?:--out|--write) (\S+\.\w+)", line):
        assert Path(made).exists(), made


def finish(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fastcl", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, arguments


def test_the_python_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = BackboneSpec.of(load("moco_full").config, 0)
    encoder = build_backbone(spec)
    Path("runs/first").mkdir(parents=True)
    save_backbone(Path("runs/first/backbone.safetensors"), encoder, spec, 0)
    model = eval(PYTHON, {"timm": timm})
    torch.testing.assert_close(model.state_dict(), encoder.vit.state_dict(), rtol=0, atol=0)


def test_the_transform_makes_what_probe_sees(tmp_path: Path) -> None:
    """Of a photograph-like image; a JPEG of the beton and the decoder's squash lie between."""
    from torchvision import transforms

    field = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(field, (300, 400), mode="bicubic").clamp(0, 1)
    image = Image.fromarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy())
    folder = tmp_path / "photos" / "one"
    folder.mkdir(parents=True)
    image.save(folder / "image.png")
    (report,) = pack(tmp_path / "photos", tmp_path / "photos.beton")
    named = {"transforms": transforms, "InterpolationMode": transforms.InterpolationMode}
    exec(TRANSFORM, {**named, "image": image}, named)
    expected = named["views"](image)  # type: ignore[operator]
    images = Images(open_beton(report.path), 224, default_crop_ratio(224), torch.device("cpu"), 1)
    ((view, _),) = images.centre()
    difference = (view[0] - expected).abs()
    assert difference.mean() < 0.03 and difference.max() < 0.2 < expected.std()
