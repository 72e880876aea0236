"""What users install: the wheel, by itself, from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, without the checkout they were made from."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out / "site")
    return out / "site"


def fastcl(site: Path, folder: Path, *arguments: str) -> str:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import fastcl_cli, fastcl_cli.cli.main;"
        "assert fastcl_cli.__file__.startswith(sys.path[0]); sys.argv[0] = 'fastcl';"
        "fastcl_cli.cli.main.main()"
    )
    command = [sys.executable, "-c", code, str(site), *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_built_in_schedules_and_grammar_travel(unpacked: Path, tmp_path: Path) -> None:
    answer = json.loads(fastcl(unpacked, tmp_path, "validate", "dino_opt", "--json"))
    assert answer["files"][0]["valid"]
    answer = json.loads(fastcl(unpacked, tmp_path, "estimate", "--budget", "100gpuh", "--json"))
    names = {row["schedule"] for row in answer["schedules"]}
    assert names >= {path.stem for path in (ROOT / "schedules").glob("*.fcs")}


def test_it_is_typed_licensed_and_whole(unpacked: Path) -> None:
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert {"fastcl_cli/py.typed", "fastcl_cli/vit_table.json"} <= names
    assert {"fastcl_cli/report/chart.css", "fastcl_cli/report/page.css"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    modules = {
        f"fastcl_cli/{path.relative_to(ROOT / 'fastcl_cli').as_posix()}"
        for path in (ROOT / "fastcl_cli").rglob("*.py")
    }
    assert modules <= names


def test_the_core_needs_no_torch(unpacked: Path) -> None:
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    lines = metadata.read_text(encoding="utf-8").splitlines()
    required = [s for s in lines if s.startswith("Requires-Dist:") and "extra ==" not in s]
    assert {s.split()[1].split(">")[0] for s in required} == {
        "typer",
        "rich",
        "lark",
        "safetensors",
    }
