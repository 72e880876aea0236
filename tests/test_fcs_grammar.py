"""The editors' colours against the language."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from make_fcs_grammar import patterns, text
from test_readme import SCHEDULE

from fastcl_cli.config import METHODS
from fastcl_cli.schedule import compile_text
from fastcl_cli.schedule.library import builtin_schedules
from fastcl_cli.schedule.settings import NONE, SETTINGS

EDITORS = Path(__file__).resolve().parent.parent / "grammar" / "editors"
# As an editor reads a line: the leftmost match, and of several there the first pattern's.
SCOPES = list(patterns())
TOKEN = re.compile("|".join(f"({pattern})" for pattern in patterns().values()), re.MULTILINE)


def tokens(schedule: str) -> list[tuple[str, str]]:
    """(scope, text) of all that has a colour."""
    found = TOKEN.finditer(schedule)
    return [(SCOPES[match.lastindex - 1], match.group()) for match in found if match.lastindex]


def of(scope: str, schedule: str) -> list[str]:
    return [text for name, text in tokens(schedule) if name == scope]


def defaults(method: str) -> str:
    """A file that writes out every default."""
    lines = [
        f"{spec.name} {spec.defaults[method]};"  # type: ignore[index]
        for spec in SETTINGS.values()
        if method in spec.defaults and spec.defaults[method] != NONE and spec.name != "method"  # type: ignore[index]
    ]
    return "\n".join([f"method {method};", *lines, "epochs 0-60: full;"])


PHASES = """
images 9999; batch 8; choices drop 0 0.5 patch 16 32; decode none; clip none; knn none;
precision bf16; gradient_error 20 steps;
steps 0-600: drop 50% on both patch 32 on online batch 16;  # "drop" 5
steps 600-900: drop 0.75 -> .25 in 4;
steps 900-1000: auto;
"""
VALID = {
    **{name: path.read_text() for name, path in builtin_schedules().items()},
    **{method: defaults(method) for method in METHODS},
    "readme": SCHEDULE,
    "phases": PHASES,
}


def test_the_file_is_what_the_tables_make() -> None:
    assert (EDITORS / "fcs.tmLanguage").read_text() == text()
    extension = json.loads((EDITORS / "package.json").read_text())["contributes"]
    assert (EDITORS / extension["grammars"][0]["path"]).exists()
    assert extension["languages"][0]["extensions"] == [".fcs"]


@pytest.mark.parametrize("name", VALID)
def test_a_valid_schedule_has_every_word_coloured(name: str) -> None:
    schedule = compile_text(VALID[name], name).schedule
    found = dict.fromkeys(SCOPES, 0)
    for scope, _ in tokens(VALID[name]):
        found[scope] += 1
    assert found["invalid.illegal"] == 0, of("invalid.illegal", VALID[name])
    assert found["comment.line.number-sign"] == VALID[name].count("#")
    settings = of("keyword.other.setting", VALID[name])
    clauses = [c.name.text for phase in schedule.phases for c in phase.clauses]
    expected = [setting.name.text for setting in schedule.settings]
    assert sorted(settings) == sorted(expected + [c for c in clauses if c == "batch"])
    assert set(clauses) - {"batch"} <= set(of("keyword.control.phase", VALID[name]))


def test_tokens_are_what_they_are_taken_for() -> None:
    line = (
        'data "a#b; drop 5"; model vit_tiny_patch16_224 (depth=4); epochs 0-5e1: drop 50% -> .25;'
    )
    assert tokens(line) == [
        ("keyword.other.setting", "data"),
        ("string.quoted.double", '"a#b; drop 5"'),
        ("keyword.other.setting", "model"),
        ("entity.name.type.model", "vit_tiny_patch16_224"),
        ("constant.language", "depth"),
        ("constant.numeric", "4"),
        ("keyword.control.phase", "epochs"),
        ("constant.numeric", "0"),
        ("constant.numeric", "5e1"),
        ("keyword.control.phase", "drop"),
        ("constant.numeric", "50%"),
        ("keyword.operator", "->"),
        ("constant.numeric", ".25"),
    ]


@pytest.mark.parametrize("word", ["dorp", "mehtod", "1e5x", "Drop", "drops", "epoch"])
def test_a_word_that_the_language_lacks_is_marked(word: str) -> None:
    assert of("invalid.illegal", f"epochs 0-60: {word} 0.5; # {word}") == [word]
