"""Checkpoints: whole, exact, strict, and never half written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import IMAGE, moco, spec
from torch.optim import AdamW

from fastcl_cli.checkpoint import (
    RunHeader,
    copy_backbone,
    is_finite,
    load_backbone,
    load_run,
    read_run_header,
    save_backbone,
    save_run,
    timm_line,
)
from fastcl_cli.errors import CheckpointError
from fastcl_cli.files import replacing
from fastcl_cli.methods.base import Input
from fastcl_cli.methods.moco import MoCo
from fastcl_cli.train.optim import build_optimizer, set_values
from fastcl_cli.train.schedules import Values

HEADER = RunHeader(
    7,
    "abc",
    {"batch": 8},
    "images",
    "epochs 0-1: full;",
    {"steps": 2, "loss": 0.1},
    {"views": "here", "groups": [[1.0, 2.0, 3.0]]},
    {"costs": [0.5], "moves": [[3, 0]]},
)


def trained(seed: int = 0) -> tuple[MoCo, AdamW]:
    method = moco(seed)
    optimizer = build_optimizer(method, (0.9, 0.999))
    generator = torch.Generator().manual_seed(seed)
    views = [Input(torch.randn(4, 3, IMAGE, IMAGE, generator=generator)) for _ in range(2)]
    method.loss(views, views, 0.0).value.backward()
    set_values(optimizer, Values(0.0, 1e-2, 0.1, 0.9))
    optimizer.step()
    return method, optimizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000007.safetensors"
    save_run(path, *trained(), spec(), HEADER)
    return path


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    path = tmp_path / "backbone.safetensors"
    save_backbone(path, trained()[0].backbone, spec(), 7)
    return path


def test_a_run_comes_back_bit_for_bit(saved: Path) -> None:
    method, optimizer = trained()
    other = moco(5)
    other_optimizer = build_optimizer(other, (0.9, 0.999))
    load_run(saved, other, other_optimizer)
    for (name, a), (_, b) in zip(
        method.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    for a, b in zip(method.parameters(), other.parameters(), strict=True):
        state, copied = optimizer.state[a], other_optimizer.state[b]
        assert state.keys() == copied.keys()
        assert all(torch.equal(state[k], copied[k]) for k in state)
    assert read_run_header(saved) == HEADER


def test_finite_is_whole_and_every_number(saved: Path, tmp_path: Path) -> None:
    assert is_finite(saved)
    tensors, bad = load_file(saved), tmp_path / "bad.safetensors"
    for value in (float("inf"), float("nan")):
        name = sorted(tensors)[-1]
        tensors[name] = torch.full_like(tensors[name], value)
        save_file(tensors, bad)
        assert not is_finite(bad)
    bad.write_bytes(saved.read_bytes()[:-10])
    assert not is_finite(bad) and not is_finite(tmp_path / "none")


def test_equal_runs_write_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_run(tmp_path / f"{name}.safetensors", *trained(), spec(), HEADER)
        save_backbone(tmp_path / f"{name}.backbone", trained()[0].backbone, spec(), 7)
    for suffix in (".safetensors", ".backbone"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_backbone_loads_into_timm_by_the_printed_line(backbone: Path) -> None:
    encoder, read = load_backbone(backbone)
    assert read == spec()
    network = eval(timm_line(backbone, read), {"timm": timm}).eval().double()
    view = torch.randn(3, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        difference = (network(view) - encoder.eval().double()(view)).abs().max()
    assert difference <= 1e-12
    assert network(view).std() > 0.1


def test_run_checkpoint_gives_the_target_backbone(saved: Path) -> None:
    encoder, _ = load_backbone(saved)
    method = trained()[0]
    expected = method.backbone.vit.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in encoder.vit.state_dict().items())
    online = method.online["backbone"].vit.state_dict()  # type: ignore[operator, union-attr]
    assert not torch.equal(online["norm.weight"], expected["norm.weight"])


def test_init_from_fills_both_encoders(backbone: Path) -> None:
    method = moco(3)
    copy_backbone(backbone, method)
    expected = load_file(backbone)
    for network in (method.online, method.target):
        state = network["backbone"].vit.state_dict()  # type: ignore[index, union-attr, operator]
        assert all(torch.equal(state[k], v) for k, v in expected.items())


def test_backbone_file_names_no_time_path_or_host(backbone: Path) -> None:
    with safe_open(backbone, "pt") as file:
        header = json.loads(file.metadata()["fastcl"])
    assert header.keys() == {"format", "fastcl", "kind", "backbone", "step", "digest"}
    assert str(backbone.parent) not in json.dumps(header)


@pytest.mark.parametrize("length", [0, 5, 100, 2000, -1])
def test_a_cut_file_is_refused(saved: Path, length: int) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[:length])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_backbone(saved)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_run_header(saved)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_backbone(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="not written by fastcl"):
        load_backbone(foreign)


def rewrite(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Apply ``change(tensors, header)`` to a file."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    header = json.loads(metadata["fastcl"])
    del header["digest"]  # as an older fastcl wrote it
    change(tensors, header)
    save_file(tensors, path, {"format": "pt", "fastcl": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, h: t.update({"norm.weight": torch.zeros(3)}), r"norm.weight is .*\(3,\)"),
        (lambda t, h: t.pop("norm.bias"), "lacks tensor norm.bias"),
        (lambda t, h: t.update({"norm.scale": torch.zeros(3)}), "unknown tensor norm.scale"),
        (lambda t, h: t.update({"norm.bias": t["norm.bias"].half()}), "float16"),
        (lambda t, h: h["backbone"]["model"].update(options=[]), "not those of the vit_tiny"),
        (lambda t, h: h["backbone"]["model"].update(name="hf-hub:x/y"), "no known backbone"),
        (lambda t, h: h["backbone"]["model"].update(options=[["embed_dim", 10**9]]), "not those"),
        (lambda t, h: h["backbone"]["model"].update(options=[["patch_size", 0]]), "not those"),
        (lambda t, h: h["backbone"]["model"].update(options=[["pretrained", 1]]), "no known"),
        (lambda t, h: h.update(format=99), "format 99"),
        (lambda t, h: h.pop("backbone"), "no known backbone"),
    ],
)
def test_wrong_contents_are_refused(backbone: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rewrite(backbone, change)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(backbone)


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    def lose(tensors, header):  # type: ignore[no-untyped-def]
        tensors["online.predictor.3.weight"] = torch.zeros(2, 2)

    rewrite(saved, lose)
    method = moco()
    with pytest.raises(CheckpointError, match=r"predictor\.3\.weight"):
        load_run(saved, method, build_optimizer(method, (0.9, 0.999)))


def test_wrong_optimizer_state_is_refused(saved: Path) -> None:
    def reshape(tensors, header):  # type: ignore[no-untyped-def]
        name = next(n for n in tensors if n.endswith("/exp_avg"))
        tensors[name] = torch.zeros(1)

    rewrite(saved, reshape)
    method = moco()
    with pytest.raises(CheckpointError, match="optimizer state"):
        load_run(saved, method, build_optimizer(method, (0.9, 0.999)))


def test_a_backbone_cannot_be_resumed(backbone: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        read_run_header(backbone)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
