"""README says what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from fastcl_cli.cli.main import COMMANDS as EXAMPLES
from fastcl_cli.cli.main import app
from fastcl_cli.extras import TRAIN_INSTALL
from fastcl_cli.schedule import compile_text
from fastcl_cli.schedule.settings import settings_markdown

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SCHEDULE = next(block for block in BLOCKS if block.startswith("method moco;"))
PYTHON = next(block for block in BLOCKS if block.startswith("timm.create_model"))
TRANSFORM = next(block for block in BLOCKS if "CenterCrop" in block)
SLURM = next(block for block in BLOCKS if "#SBATCH" in block)
LINES = [
    line
    for block in BLOCKS
    if block not in (SCHEDULE, PYTHON, TRANSFORM, SLURM)
    for line in re.findall(r"^(?!#).+?(?=  +#|$)", block.replace("\\\n", ""), re.MULTILINE)
]
"""What the other blocks tell a shell, without comments."""


def commands(program: str) -> list[str]:
    return [line for line in LINES if line.startswith(f"{program} ")]


COMMANDS = commands("fastcl")


def test_the_settings_table_is_the_codes() -> None:
    table = README.split("settings_markdown -->\n")[1].split("<!-- end of settings -->")[0]
    assert table == settings_markdown()


def test_the_schedule_shown_is_valid() -> None:
    plan = compile_text(SCHEDULE).plan
    assert [s.views[0].online.kept for s in plan.segments] == [25, 196]


@pytest.mark.parametrize("line", [*COMMANDS, *EXAMPLES.values()])
def test_commands_have_the_options_shown(line: str) -> None:
    """Parsed by the real command line, up to but not including what it would do."""
    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


def test_every_block_is_tried() -> None:
    """The schedule and the settings here; ``fastcl`` and the Python in `test_readme_tour`;
    ``torchrun`` and the Slurm script in `test_readme_launch`; of ``make``, ``pip`` and ``apt-get``,
    below, what they would do."""
    tried = [
        commands(program)
        for program in ("fastcl", "torchrun", "make", "pip install", "apt-get install")
    ]
    assert all(tried)
    assert sorted(LINES) == sorted(line for lines in tried for line in lines)


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        ("make demo", ["fastcl run schedules/quickstart.fcs", "fastcl probe"]),
        ("make test", ["ruff check", "ruff format", "mypy", "pytest"]),
    ],
)
def test_make_does_what_is_said(line: str, begins: list[str]) -> None:
    """What make would run, after the set-up; and that fastcl takes the options it is given."""
    assert line in commands("make")
    made = subprocess.run(
        [*shlex.split(line), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ran = re.findall(r"^\.venv/bin/(?!python)(.+)", made.stdout, re.MULTILINE)
    assert len(ran) == len(begins)
    for command, begin in zip(ran, begins, strict=True):
        assert command.startswith(begin)
        if command.startswith("fastcl "):
            test_commands_have_the_options_shown(command)
    assert (ROOT / "schedules" / "quickstart.fcs").exists()


def test_what_pip_and_apt_are_told_to_install_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"pip install '\.\[(\w+)\]'", README)
    assert {"train", "onnx", "tensorboard"} <= set(extras)
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^PACKAGES := (.*)", makefile, re.MULTILINE)
    (line,) = commands("apt-get install")
    assert line.split("#")[0].strip() == f"apt-get install {packages}"
    assert f"apt-get install {packages} " in TRAIN_INSTALL
