"""A misspelt path is said before torch is loaded, which takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcl_cli.errors import CheckpointError, DataError, UsageError
from fastcl_cli.schedule import load
from fastcl_cli.train.paths import need_paths

ROOT = Path(__file__).resolve().parent.parent
LONG = "x" * 300
WITHOUT = """
import importlib.machinery, sys

class Heavy:
    '''Finds torch, so that it counts as installed, and fails where it is imported.'''

    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "ffcv", "cv2", "numba"):
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        sys.exit(f"{spec.name} was imported")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Heavy())
sys.argv = ["fastcl", *sys.argv[1:]]
from fastcl_cli.cli.main import main
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("years of work")
    (folder / "x.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run quickstart --data phtos.beton", "phtos.beton: no such file or folder"),
        ("run quickstart --data phtos-*.beton", "phtos-*.beton: no file has such a name"),
        ("run quickstart --set val=labeled", "labeled: no such file or folder"),
        ("run quickstart --init-from y.safetensors", "y.safetensors: no such file"),
        ("run quickstart --resume y.safetensors", "y.safetensors: no such file"),
        ("run quickstart --out full", "--out full is not empty"),
        ("run quickstart --out full --gpus 2", "--out full is not empty"),
        ("run quickstart --out full --dry-run", "--out full is not empty"),
        ("run quickstart --out x.safetensors/run", "cannot write to x.safetensors/run"),
        (f"run quickstart --data {LONG}", f"{LONG}: cannot be read: File name too long"),
        (f"run quickstart --out {LONG}", f"cannot write to {LONG}: File name too long"),
        ("bench quickstart --data phtos/", "phtos/: no such file or folder"),
        ("search quickstart --data phtos/", "phtos/: no such file or folder"),
        ("search --checkpoints y.safetensors", "y.safetensors: no such file"),
        ("probe y.safetensors --data digits", "y.safetensors: no such file"),
        (f"probe {LONG}", f"{LONG}: cannot be read: File name too long"),
        (f"probe x.safetensors --data {LONG}", f"{LONG}: cannot be read: File name too long"),
        ("probe x.safetensors --data labeled/", "labeled/: no such file or folder"),
        ("probe x.safetensors --train a.beton --val b.beton", "a.beton: no such file"),
        ("probe x.safetensors", "probe needs labelled data"),
        ("probe x.safetensors --val a.beton", "probe needs labelled data"),
        (
            "probe x.safetensors --train a.beton",
            "--train names what to fit on, and nothing what to",
        ),
        (
            "probe x.safetensors --train a.beton --data digits",
            "--data and --train both name what to fit on",
        ),
        ("export y.safetensors --out z.safetensors", "y.safetensors: no such file"),
        ("export x.safetensors --out no/z", "no: no such folder"),
        ("export x.safetensors --out full", "full/thesis.tex was not written by an export"),
    ],
)
def test_torch_is_not_loaded_for_a_misspelt_path(line: str, said: str, place: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, *line.split()],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FASTCL_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr.startswith(f"error: {said}"), result.stderr
    assert result.returncode == 2


def test_torch_would_be_loaded_for_right_ones(place: Path) -> None:
    """What the test above rests on."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, "run", "quickstart"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == "torch was imported\n"


def test_what_a_run_may_begin_with(tmp_path: Path) -> None:
    config = load("quickstart").config
    need_paths(config, tmp_path / "a" / "b", resume="auto", init_from=None, fresh=False)
    checkpoint = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError):
        need_paths(config, tmp_path / "a", resume=str(checkpoint), init_from=None, fresh=False)
    checkpoint.touch()
    need_paths(config, tmp_path, resume=str(checkpoint), init_from=checkpoint, fresh=False)
    with pytest.raises(UsageError, match="is not empty"):
        need_paths(config, tmp_path, resume="never", init_from=None, fresh=True)
    # Images that nothing looks at may be missing.
    text = ["knn=none", f'val="{tmp_path / "labelled"}"']
    unjudged = load("quickstart", text).config
    need_paths(unjudged, tmp_path / "a", resume="never", init_from=None, fresh=True)
    with pytest.raises(DataError, match="labelled: no such file or folder"):
        judged = load("quickstart", text[1:]).config
        need_paths(judged, tmp_path / "a", resume="never", init_from=None, fresh=True)
