"""Exports: what others load computes what the checkpoint computes, or nothing is written."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_checkpoint import HEADER
from test_cli_run import Cli
from timm.data import resolve_model_data_config
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from tiny import BASE, IMAGE, WIDTH, moco, spec

from fastcl_cli.checkpoint import load_backbone, save_backbone, save_run
from fastcl_cli.compression.patches import reduction_matrix
from fastcl_cli.config import Method
from fastcl_cli.errors import MissingLibraryError, RunFailedError
from fastcl_cli.export import onnx_file
from fastcl_cli.export.export import export
from fastcl_cli.methods.build import build_backbone
from fastcl_cli.model.position import sincos_embedding
from fastcl_cli.model.vit import Encoder
from fastcl_cli.train.optim import build_optimizer


def encoder_of(method: Method) -> Encoder:
    """Weights far from their initial ones: position embeddings start near zero."""
    encoder = build_backbone(spec(0, method))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in encoder.vit.named_parameters():
            if name != "pos_embed" or encoder.position == "learned":
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return encoder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Path]:
    folder = tmp_path_factory.mktemp("trained")
    methods: tuple[Method, ...] = ("moco", "simclr")
    paths: dict[Method, Path] = {name: folder / f"{name}.safetensors" for name in methods}
    for name, path in paths.items():
        save_backbone(path, encoder_of(name), spec(0, name), 1234)
    return paths


def images(side: int, count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7)).double()


@torch.no_grad()
def ours(method: Method, side: int, patch: int) -> torch.Tensor:
    """Features in float64 from the low-resolution view, as training sees it."""
    view, D = images(side), reduction_matrix(side, patch, BASE)
    if D is not None:
        view = D @ view @ D.T
    features: torch.Tensor = encoder_of(method).double().eval()(view)
    return features


@pytest.mark.parametrize("method", ["moco", "simclr"])
@pytest.mark.parametrize(
    ("image", "patch"), [(None, None), (24, None), (None, 8), (48, 8), (36, 9)]
)
def test_a_timm_file_of_any_size_computes_what_the_encoder_does(
    files: dict[Method, Path], tmp_path: Path, method: Method, image: int | None, patch: int | None
) -> None:
    out = tmp_path / "out.safetensors"
    done = export(files[method], out, image=image, patch=patch)
    image, patch = image or IMAGE, patch or BASE
    network = eval(done.line, {"timm": timm}).eval().double()
    with torch.no_grad():
        error = (network(images(image)) - ours(method, image, patch)).abs().max()
    assert error < 1e-5
    assert done.found.feature > 1 and 0 <= done.found.difference < 1e-5 * done.found.feature

    before, after = load_file(files[method]), load_file(out)
    kernel = resample_patch_embed(
        before["patch_embed.proj.weight"], [patch, patch], interpolation="bilinear", antialias=False
    )
    torch.testing.assert_close(after["patch_embed.proj.weight"], kernel, rtol=0, atol=1e-5)
    grid, base = image // patch, IMAGE // BASE
    position = resample_abs_pos_embed(before["pos_embed"], [grid, grid])
    if method == "moco":
        position[0, 1:] = sincos_embedding(grid, base, WIDTH)
    torch.testing.assert_close(after["pos_embed"], position, rtol=0, atol=1e-5)
    assert {k: v.shape for k, v in after.items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    encoder, made = load_backbone(out)
    assert (made.image, made.model.patch) == (image, patch)
    assert made.position == ("learned" if method == "simclr" or grid != base else "sincos")
    assert torch.equal(encoder.vit.pos_embed, after["pos_embed"])


def test_a_hugging_face_folder_loads_locally_and_as_from_the_hub(
    files: dict[Method, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "vit"
    done = export(files["moco"], out, image=32, patch=8)
    again = tmp_path / "elsewhere" / "another-name"
    again.parent.mkdir()
    export(files["moco"], again, "hf", image=32, patch=8)
    names = ["config.json", "model.safetensors"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert all((out / n).read_bytes() == (again / n).read_bytes() for n in names)

    def download(repo_id: str, filename: str, **rest: object) -> str:
        assert repo_id == "someone/vit"
        return str(out / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    lines = [done.line, "timm.create_model('hf-hub:someone/vit', pretrained=True)"]
    for line in lines:
        network = eval(line, {"timm": timm}).eval()
        data = resolve_model_data_config(network)
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()} == {
            "input_size": (3, 32, 32),
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "crop_pct": 1.0,
            "crop_mode": "center",
        }
        with torch.no_grad():
            error = (network.double()(images(32)) - ours("moco", 32, 8)).abs().max()
        assert error < 1e-5
    config = json.loads((out / "config.json").read_text())
    assert (config["num_classes"], config["num_features"]) == (0, WIDTH)
    assert config["fastcl"]["resized_from"] == [IMAGE, BASE]


def test_an_onnx_file_takes_any_batch_and_says_nothing_of_this_machine(
    files: dict[Method, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnxruntime

    graphs: list[Any] = []
    make = onnx_file._graph

    def once(backbone: Any) -> Any:
        graphs.extend([] if graphs else [make(backbone)])
        return copy.deepcopy(graphs[0])

    monkeypatch.setattr(onnx_file, "_graph", once)
    out = tmp_path / "vit.onnx"
    done = export(files["simclr"], out, image=24, patch=8)
    for count in (1, 5):
        batch = images(24, count).float()
        given = {"onnxruntime": onnxruntime, "images": batch.numpy()}
        features = torch.from_numpy(eval(done.line, given))
        assert features.shape == (count, WIDTH)
        if count == 5:
            assert (features - ours("simclr", 24, 8)).abs().max() < 2e-5
    data = out.read_bytes()
    for word in (Path(timm.__file__).parent, tmp_path, Path(__file__).parent, "stack_trace"):
        assert str(word).encode() not in data
    model = onnx.load(out)
    (about,) = (json.loads(p.value) for p in model.metadata_props if p.key == "fastcl")
    assert about["preprocessing"]["input_size"] == [3, 24, 24] and about["step"] == 1234
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vit.onnx"]

    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    large = tmp_path / "large.onnx"
    export(files["simclr"], large, image=24, patch=8)
    assert large.stat().st_size < len(data) / 2
    assert (tmp_path / "large.onnx.data").stat().st_size > len(data) / 4
    session = onnxruntime.InferenceSession(large)
    (features,) = session.run(None, {"images": images(24).float().numpy()})
    assert (torch.from_numpy(features) - ours("simclr", 24, 8)).abs().max() < 2e-5


def test_a_missing_onnx_library_is_named(
    files: dict[Method, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingLibraryError, match="onnxscript is not installed") as caught:
        export(files["moco"], tmp_path / "vit.onnx")
    assert caught.value.help == "pip install '.[onnx]' (in the folder of fastcl's source)"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_what_computes_something_else_is_not_written(
    files: dict[Method, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """timm's own resize of the kernel (bicubic, antialiased), which is not FlexiViT's."""
    out = tmp_path / name
    export(files["moco"], out)

    def wrong(kernel: torch.Tensor, patch: int) -> torch.Tensor:
        return resample_patch_embed(kernel, [patch, patch])

    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr("fastcl_cli.export.resize.pi_resize", wrong)
    with pytest.raises(RunFailedError, match="more than rounding; nothing was written"):
        export(files["moco"], out, patch=8, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    export(files["moco"], out, patch=8, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} != before


def test_either_network_of_a_run_is_exported(tmp_path: Path) -> None:
    method = moco()
    assert method.target is not None
    with torch.no_grad():
        method.target["backbone"].vit.norm.weight.fill_(2.0)  # type: ignore[union-attr, operator]
    path = tmp_path / "step-00000007.safetensors"
    save_run(path, method, build_optimizer(method, (0.9, 0.999)), spec(), HEADER)
    for weights, value in ((None, 2.0), ("target", 2.0), ("online", 1.0)):
        out = tmp_path / f"{weights}.safetensors"
        done = export(path, out, weights=weights)  # type: ignore[arg-type]
        assert done.step == 7 and done.weights == (weights or "target")
        assert load_file(out)["norm.weight"].mean() == value


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    files: dict[Method, Path],
) -> Cli:
    monkeypatch.chdir(tmp_path)
    Path("ckpt.safetensors").write_bytes(files["moco"].read_bytes())
    return Cli(capsys, monkeypatch)


def test_the_command_says_what_it_wrote(cli: Cli) -> None:
    asked = ("export", "ckpt.safetensors", "--out", "a.safetensors", "--patch", "8")
    code, out, _ = cli(*asked)
    assert code == 0
    assert "1,234 steps, for 16-pixel images in patches of 8, resized from 16 and 4" in out
    assert "greatest difference" in out and "patch_size=8" in out
    code, out, _ = cli(*asked, "--overwrite", "--json")
    assert code == 0
    answer = json.loads(out)
    assert (answer["schema_version"], answer["format"], answer["patch"]) == (1, "timm", 8)
    assert answer["model_args"]["patch_size"] == 8 and 0 <= answer["difference"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message", "help"),
    [
        ("--out a.safetensors --patch 3", "patch 3: the model's own is 4", "--patch 4"),
        ("--out a.safetensors --patch 999", "from 4 to 64", "--patch 64"),
        (
            "--out a.safetensors --patch 5",
            "patch 5 does not divide image 16",
            "use --image 15 or 20, or --patch 4 or 8 or 16",
        ),
        ("--out a.safetensors --image 18", "patch 4 does not divide image 18", "--image 16 or 20"),
        ("--out a.safetensors --image 3", "one patch", "--image 4"),
        ("--out a.safetensors --image 1000000007", "512 pixels a side", "--image 512"),
        ("--out a.pt", "no format ends in '.pt'", ".safetensors"),
        ("--out a.onnx --format timm", "ends in .safetensors", "--out a.safetensors"),
        ("--out a.onnx --format hf", "is to be a folder", "--out a"),
        ("--out none/a.safetensors", "none: no such folder", "mkdir -p"),
        ("--out ckpt.safetensors", "ckpt.safetensors exists", "--overwrite"),
        ("--out ckpt.safetensors --overwrite", "holds the checkpoint itself", "--out"),
        ("--out thesis --overwrite", "thesis/chapter.tex was not written by an export", "--out"),
        ("--out thesis.onnx --overwrite", "thesis.onnx is a folder", "--out"),
        ("--out a.safetensors --weights online", "the online weights are in", ""),
    ],
)
def test_refusals(cli: Cli, arguments: str, message: str, help: str) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    Path("thesis.onnx").mkdir()
    before = sorted(map(str, Path().rglob("*")))
    code, _, stderr = cli("export", "ckpt.safetensors", *arguments.split())
    assert code == 2 and message in stderr and help in stderr and "Traceback" not in stderr
    assert sorted(map(str, Path().rglob("*"))) == before


def test_resizing_twice_is_refused(cli: Cli) -> None:
    assert cli("export", "ckpt.safetensors", "--out", "b.safetensors", "--image", "24")[0] == 0
    code, error, help = cli.error("export", "b.safetensors", "--out", "vit", "--image", "32")
    assert code == 2 and "was resized before, from 16 pixels in patches of 4" in error
    assert "the file that it was made of" in help
    assert cli("export", "b.safetensors", "--out", "vit")[0] == 0
    config = json.loads(Path("vit/config.json").read_text())
    assert config["fastcl"]["resized_from"] == [IMAGE, BASE]


def test_a_diverged_checkpoint_is_refused(tmp_path: Path, cli: Cli) -> None:
    encoder = encoder_of("moco")
    with torch.no_grad():
        encoder.vit.norm.bias[0] = float("nan")
    save_backbone(Path("nan.safetensors"), encoder, replace(spec(), seed=1), 3)
    code, _, stderr = cli("export", "nan.safetensors", "--out", "a.safetensors")
    assert code == 2 and "not finite" in stderr and not Path("a.safetensors").exists()
