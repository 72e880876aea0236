"""Completion scripts load in the shells that they are for, and complete a command's name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ASK = {
    "bash": "source {script}; complete -p fastcl",
    "zsh": "autoload -Uz compinit; compinit -u -D; source {script}; print -r -- $_comps[fastcl]",
    "fish": "source {script}; complete -C 'fastcl va'",
}
ANSWER = {"bash": "-F _fastcl_completion fastcl", "zsh": "_fastcl_completion", "fish": "validate"}


@pytest.mark.parametrize("shell", ASK)
def test_completion_loads(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    fastcl = Path(sys.executable).with_name("fastcl")
    environment = {
        **os.environ, "PATH": f"{fastcl.parent}:{os.environ['PATH']}", "HOME": str(tmp_path),
    }  # fmt: skip
    made = subprocess.run(
        [fastcl], env={**environment, "_FASTCL_COMPLETE": f"source_{shell}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    script = tmp_path / f"completion.{shell}"
    script.write_text(made.stdout)
    flags = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    asked = subprocess.run(
        [program, *flags, "-c", ASK[shell].format(script=script)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ANSWER[shell] in asked.stdout and asked.stderr == ""


def test_a_commands_name_is_completed() -> None:
    fastcl = Path(sys.executable).with_name("fastcl")
    environment = {
        **os.environ, "_FASTCL_COMPLETE": "complete_bash", "COMP_WORDS": "fastcl ex",
        "COMP_CWORD": "1",
    }  # fmt: skip
    found = subprocess.run([fastcl], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["export"]


@pytest.mark.parametrize("command", ["run", "validate"])
def test_a_built_in_schedules_name_is_completed(command: str) -> None:
    """And nothing where a file may be meant: shells complete files then."""
    fastcl = Path(sys.executable).with_name("fastcl")
    for word, expected in (("moco_f", ["moco_full"]), ("mine", []), ("", [])):
        environment = {
            **os.environ, "_FASTCL_COMPLETE": "complete_bash",
            "COMP_WORDS": f"fastcl {command} {word}", "COMP_CWORD": "2",
        }  # fmt: skip
        found = subprocess.run([fastcl], env=environment, capture_output=True, text=True)
        assert found.stdout.split() == expected
