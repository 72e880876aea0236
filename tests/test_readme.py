"""README says what the code does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from fastcl_cli.cli.main import COMMANDS as EXAMPLES
from fastcl_cli.cli.main import app
from fastcl_cli.schedule import compile_text
from fastcl_cli.schedule.settings import settings_markdown

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^fastcl .*?(?=  +#|$)", "\n".join(BLOCKS), re.MULTILINE)


def test_the_settings_table_is_the_codes() -> None:
    table = README.split("settings_markdown -->\n")[1].split("<!-- end of settings -->")[0]
    assert table == settings_markdown()


def test_the_schedule_shown_is_valid() -> None:
    text = next(block for block in BLOCKS if block.startswith("method moco;"))
    plan = compile_text(text).plan
    assert [s.views[0].online.kept for s in plan.segments] == [25, 196]


@pytest.mark.parametrize("line", [*COMMANDS, *EXAMPLES.values()])
def test_commands_have_the_options_shown(line: str) -> None:
    """Parsed by the real command line, up to but not including what it would do."""
    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, arguments)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 6
