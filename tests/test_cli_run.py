"""Bad input to run, pack and probe: one error line, its remedy, the documented exit code."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision_layouts as layouts

from fastcl_cli.cli.main import main
from fastcl_cli.data.pack import pack
from fastcl_cli.files import locked

SCHEDULE = """
method moco; data "train.beton"; image 32; batch 64; head 32 16; precision float32;
model vit_tiny_patch16_224 (embed_dim=16, depth=1, num_heads=2, patch_size=8);
epochs 0-1: drop 0.5;
"""


class Cli:
    """Runs commands in this process and in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["fastcl", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = self.capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    def error(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, and the two lines of an error: what is wrong, and the remedy."""
        code, _, stderr = self(*arguments)
        lines = [line for line in stderr.splitlines() if not line.startswith("packing")]
        assert len(lines) == 2, stderr
        assert lines[0].startswith("error: ") and lines[1].startswith("help: "), stderr
        return code, lines[0], lines[1]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.fcs").write_text(SCHEDULE)
    return Cli(capsys, monkeypatch)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("betons") / "train.beton"
    pack("digits", path, split="val")
    return path


@pytest.fixture
def beton(digits: Path, tmp_path: Path) -> Path:
    shutil.copy(f"{digits}.json", tmp_path / "train.beton.json")
    return Path(shutil.copy(digits, tmp_path / "train.beton"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def unfinished(path: Path) -> None:
    """As FFCV's writer leaves it when it is killed: the header points to no allocation table."""
    data = bytearray(path.read_bytes())
    data[-8:] = b""
    data[16:24] = bytes(8)
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 100)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "train.beton: no such file"),
        (cut, "train.beton"),
        (unfinished, "train.beton"),
        (foreign, "train.beton"),
        (lambda p: p.write_bytes(b""), "train.beton"),
    ],
)
def test_run_refuses_a_damaged_beton(
    cli: Cli, beton: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(beton)
    code, error, _ = cli.error("run", "test.fcs", "--out", "out")
    assert code == 2 and message in error
    assert not Path("out").exists()


def test_run_names_a_damaged_record_and_keeps_what_it_has(cli: Cli, beton: Path) -> None:
    from ffcv.reader import Reader

    from fastcl_cli.data.beton import open_beton

    assert open_beton(beton).images == 797
    reader = Reader(str(beton))
    data = bytearray(beton.read_bytes())
    start = int(reader.metadata["f0"]["data_ptr"][5])
    data[start + 40 : start + 300] = bytes(260)
    beton.write_bytes(data)
    code, error, _ = cli.error("run", "test.fcs", "--out", "out")
    assert code == 2
    assert "image 5 is damaged" in error


def test_batch_above_the_data_set(cli: Cli, beton: Path) -> None:
    code, _, stderr = cli("run", "test.fcs", "--out", "out", "--set", "batch=798")
    assert code == 2
    assert "798" in stderr and "797" in stderr and "Traceback" not in stderr


def test_unwritable_out(cli: Cli, beton: Path) -> None:
    Path("file").write_text("")
    code, error, help = cli.error("run", "test.fcs", "--out", "file/run")
    assert code == 2 and "cannot write to file/run" in error and "--out" in help


def test_full_out_names_both_ways(cli: Cli, beton: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    code, error, help = cli.error("run", "test.fcs", "--out", "out")
    assert code == 2 and "not empty" in error
    assert "--resume auto" in help and "--overwrite" in help


def test_no_data(cli: Cli) -> None:
    text = SCHEDULE.replace('data "train.beton";', "")
    Path("test.fcs").write_text(text)
    code, error, help = cli.error("run", "test.fcs", "--out", "out")
    assert code == 2 and "names no data" in error and "--data" in help


def test_dry_run_shows_the_plan_and_writes_nothing(cli: Cli, beton: Path) -> None:
    before = sorted(p.name for p in Path().iterdir())
    code, stdout, stderr = cli("run", "test.fcs", "--out", "out", "--dry-run")
    assert (code, stderr) == (0, "")
    assert "797 images (of the data)" in stdout and "12 steps" in stdout
    assert sorted(p.name for p in Path().iterdir()) == before


def test_a_dry_run_says_where_it_would_go_on_and_what_it_would_refuse(
    cli: Cli, beton: Path
) -> None:
    short = ("run", "test.fcs", "--out", "out", "--ui", "plain")
    assert cli(*short, "--max-steps", "2")[0] == 0
    before = {p: p.stat().st_mtime_ns for p in Path("out").rglob("*")}
    assert "is not empty" in cli.error(*short, "--dry-run")[1]
    code, stdout, _ = cli(*short, "--dry-run", "--resume", "auto")
    assert code == 0
    assert "goes on from out/checkpoints/step-00000002.safetensors after 2 steps" in stdout
    other = (*short, "--dry-run", "--resume", "auto", "--set", "temperature=0.5")
    code, _, stderr = cli(*other)
    assert code == 2 and "temperature was 0.2, is 0.5" in stderr and "--allow-changes" in stderr
    code, stdout, _ = cli(*other, "--allow-changes")
    assert code == 0 and "with these changes from there on" in stdout
    assert {p: p.stat().st_mtime_ns for p in Path("out").rglob("*")} == before


def test_an_invalid_schedule_exits_2_with_its_place(cli: Cli) -> None:
    Path("test.fcs").write_text("epochs 0-10: dorp 0.5;")
    code, _, stderr = cli("run", "test.fcs")
    assert code == 2
    assert "test.fcs:1:14" in stderr and "drop" in stderr


def test_run_probe_and_timm_agree_on_the_command_line(cli: Cli, beton: Path) -> None:
    code, stdout, _ = cli("run", "test.fcs", "--out", "out", "--ui", "plain")
    assert code == 0
    line = next(s for s in stdout.splitlines() if s.startswith("load it:"))
    import timm

    network = eval(line.removeprefix("load it:").strip(), {"timm": timm})
    assert sum(p.numel() for p in network.parameters()) > 0
    both = ["--train", "train.beton", "--val", "train.beton", "--k", "1"]
    code, stdout, stderr = cli("probe", "out/backbone.safetensors", *both, "--json")
    assert (code, stderr) == (0, "")
    answer = json.loads(stdout)
    assert answer["schema_version"] == 1
    assert (answer["n_train"], answer["n_val"]) == (797, 797)
    # Every image's nearest neighbour in its own set is itself.
    assert answer["results"][0]["top1"] == 1.0
    assert answer["results"][0]["protocol"]["k"] == 1


def test_probe_takes_the_data_of_the_run(cli: Cli) -> None:
    Path("test.fcs").write_text("knn none;" + SCHEDULE.replace('"train.beton"', "digits"))
    code, _, _ = cli("run", "test.fcs", "--out", "out", "--max-steps", "1", "--ui", "none")
    assert code == 0
    for path in ("out/backbone.safetensors", "out/checkpoints/step-00000001.safetensors"):
        code, stdout, _ = cli("probe", path, "--k", "20", "--json")
        assert code == 0
        assert json.loads(stdout)["n_val"] == 797


def test_probe_takes_what_the_run_was_judged_on(cli: Cli, beton: Path) -> None:
    shutil.copy("train.beton", "other.beton")
    shutil.copy("train.beton.json", "other.beton.json")
    code, _, _ = cli(
        *("run", "test.fcs", "--out", "out", "--max-steps", "1", "--ui", "none"),
        *("--set", "val=other.beton", "--set", "knn=1 epochs"),
    )
    assert code == 0
    for more in ((), ("--val", "other.beton"), ("--data", "train.beton", "--val", "other.beton")):
        code, stdout, stderr = cli("probe", "out/backbone.safetensors", *more, "--k", "1", "--json")
        assert code == 0, stderr
        answer = json.loads(stdout)
        assert (answer["n_train"], answer["n_val"], answer["results"][0]["top1"]) == (797, 797, 1)


def test_probe_refuses_a_cut_checkpoint(cli: Cli, beton: Path) -> None:
    Path("cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    code, error, _ = cli.error("probe", "cut.safetensors", "--data", "digits")
    assert code == 2 and "cut.safetensors is not a complete safetensors file" in error


def test_probe_without_data_says_what_to_give(cli: Cli) -> None:
    code, error, _ = cli.error("probe", "x.safetensors")
    assert code == 2 and "x.safetensors: no such file" in error
    Path("x.safetensors").touch()
    code, error, help = cli.error("probe", "x.safetensors")
    assert code == 2 and "labelled data" in error and "--train" in help


def test_an_interrupted_command_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(checkpoint: Path) -> None:
        raise KeyboardInterrupt  # as Python's handler of SIGINT does, which a shell may have off

    Path("x.safetensors").touch()
    monkeypatch.setattr("fastcl_cli.evaluate.sets.data_of_run", interrupted)
    code, out, err = cli("probe", "x.safetensors")
    assert (code, out, err) == (130, "", "interrupted\n")


def test_probe_of_another_kind_of_file(cli: Cli) -> None:
    Path("notes.txt").write_text("no network at all")
    code, error, help = cli.error("probe", "notes.txt")
    assert code == 2 and "notes.txt: is not a safetensors file" in error
    assert help == "help: name a backbone or a checkpoint"


def test_pack_skips_what_cannot_be_read_and_strict_fails(cli: Cli) -> None:
    from PIL import Image

    folder = Path("photos/cats")
    folder.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (20, 20), (index * 80, 0, 0)).save(folder / f"{index}.png")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    code, stdout, stderr = cli("pack", "photos", "out.beton", "--workers", "1")
    assert code == 0
    assert "3 images" in stdout and "2 skipped" in stdout
    assert "zero.jpg" in stderr and "text.jpg" in stderr
    code, error, _ = cli.error("pack", "photos", "strict.beton", "--strict", "--workers", "1")
    assert code == 2 and ".jpg" in error
    assert not Path("strict.beton").exists()


def test_pack_replaces_a_file_only_where_asked(cli: Cli) -> None:
    from PIL import Image

    for part in ("train", "val"):
        for name in ("cats", "dogs"):
            Path("photos", part, name).mkdir(parents=True)
            Image.new("RGB", (20, 20), "red").save(Path("photos", part, name, "0.png"))
    work = Path("out-val.beton")
    work.write_text("years of work")
    code, error, help = cli.error("pack", "photos", "out.beton", "--workers", "1")
    assert (code, error) == (2, "error: out-val.beton exists") and "--overwrite" in help
    assert work.read_text() == "years of work" and not Path("out-train.beton").exists()
    # One part goes to a name of its own.
    one = ("pack", "photos", "one.beton", "--split", "train", "--workers", "1")
    assert cli(*one)[0] == 0
    before = Path("one.beton").read_bytes()
    assert cli.error(*one)[:2] == (2, "error: one.beton exists")
    assert cli(*one, "--overwrite", "--quality", "10")[0] == 0
    assert Path("one.beton").read_bytes() != before
    assert cli("pack", "photos", "out.beton", "--workers", "1", "--overwrite")[0] == 0
    assert len(work.read_bytes()) > 1000 and Path("out-train.beton").exists()


def test_a_set_by_name_is_packed_trained_on_and_judged_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "cache" / "torchvision"
    root.mkdir(parents=True)
    layouts.WHOLE["EuroSAT"](root, monkeypatch)
    monkeypatch.setenv("FASTCL_CACHE", "cache")
    code, stdout, stderr = cli("pack", "EuroSAT", "set.beton", "--workers", "1")
    assert code == 0 and stderr.count("10 images train, 2 ") == 1
    assert "set-train.beton: 10 images, 2 classes" in stdout
    assert "set-val.beton: 2 images, 2 classes" in stdout
    code, _, _ = cli("run", "test.fcs", "--data", "EuroSAT", "--set", "batch=8", "--out", "out")
    assert code == 0
    backbone = "out/backbone.safetensors"
    for data in ("--train set-train.beton --val set-val.beton", ""):
        code, stdout, _ = cli("probe", backbone, *data.split(), "--json")
        result = json.loads(stdout)
        assert (code, result["n_train"], result["n_val"]) == (0, 10, 2)


def test_pack_takes_a_root_for_torchvision_alone(cli: Cli) -> None:
    code, error, help = cli.error("pack", "digits", "out.beton", "--root", "here")
    assert code == 2 and "--root" in error
    code, error, help = cli.error("pack", "cifar10", "out.beton")
    assert code == 2 and "cifar10: no such file or folder" in error and "mean CIFAR10?" in help


@pytest.mark.parametrize(
    "arguments",
    [
        *(["run"], ["run", "none.fcs"], ["probe"], ["pack", "x"]),
        *(["run", "test.fcs", "--seed", "-1"], ["run", "test.fcs", "--shard"]),
    ],
)
def test_usage_errors_exit_2(cli: Cli, arguments: list[str]) -> None:
    code, _, stderr = cli(*arguments)
    assert code == 2 and stderr.startswith("error: ") and "Traceback" not in stderr


def test_a_folder_in_which_a_run_is_at_work_says_so_at_once(cli: Cli, beton: Path) -> None:
    out = Path("out")
    out.mkdir()
    (out / "metrics.jsonl").touch()
    with locked(out / ".lock"):
        code, error, help = cli.error("run", "test.fcs", "--out", "out")
    assert code == 2 and "in use by process" in error and "wait" in help
    code, error, _ = cli.error("run", "test.fcs", "--out", "out")
    assert code == 2 and "is not empty" in error


def test_a_folder_is_no_checkpoint(cli: Cli) -> None:
    Path("out").mkdir()
    _, error, help = cli.error("probe", "out", "--data", "digits")
    assert error == "error: out: is a folder" and help == "help: name a file in it"
    Path("out/backbone.safetensors").touch()
    _, error, help = cli.error("export", "out", "--out", "vit.onnx")
    assert error == "error: out: is a folder" and help == "help: name out/backbone.safetensors"


def test_a_run_whose_reader_has_gone_goes_on(beton: Path, tmp_path: Path) -> None:
    (tmp_path / "test.fcs").write_text(SCHEDULE)
    command = [sys.executable, "-m", "fastcl_cli", "run", "test.fcs", "--out", "out"]
    umask = os.umask(0o022)
    try:
        with subprocess.Popen(
            [*command, "--ui", "plain", "--log-every", "1"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(timeout=200) == 0
    finally:
        os.umask(umask)
    backbone = tmp_path / "out" / "backbone.safetensors"
    assert stat.S_IMODE(backbone.stat().st_mode) == 0o644  # a colleague may read it
