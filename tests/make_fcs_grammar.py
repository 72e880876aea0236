"""Makes ``grammar/editors/fcs.tmLanguage``, colours for editors, from the language's own tables.

    PYTHONPATH=. python tests/make_fcs_grammar.py > grammar/editors/fcs.tmLanguage

A word that the language does not have is marked as a fault wherever it stands; whether a known one
stands in its place is for `fastcl validate` to say.
"""

from __future__ import annotations

import plistlib
import re
from collections.abc import Iterable

from fastcl_cli.schedule.settings import SETTING_NAMES, SETTINGS
from fastcl_cli.schedule.words import CLAUSES, SIDES, UNITS
from fastcl_cli.vit_table import model_names


def words(names: Iterable[str]) -> str:
    return rf"\b(?:{'|'.join(sorted(names))})\b"


def patterns() -> dict[str, str]:
    """Scope and regular expression of each kind of token; of several that match, the first."""
    phase = {*CLAUSES, *SIDES, *UNITS, "on", "in"} - SETTING_NAMES
    forms = " ".join(spec.syntax for spec in SETTINGS.values())
    values = set(re.findall(r"\b[a-z][a-z0-9_]*\b", forms)) - SETTING_NAMES - phase
    models = {name.split("_")[0] for name in model_names()}
    return {
        "comment.line.number-sign": "#.*$",
        "string.quoted.double": r'"[^"]*"',
        "constant.numeric": r"(?<![A-Za-z_])\.?[0-9][0-9.]*(?:[eE][+-]?[0-9]+)?%?(?![A-Za-z_])",
        "keyword.other.setting": words(SETTING_NAMES),
        "keyword.control.phase": words(phase),
        "constant.language": words(values),
        "entity.name.type.model": rf"\b(?:{'|'.join(sorted(models))})_[A-Za-z0-9_]+\b",
        "keyword.operator": "->",
        "invalid.illegal": r"[A-Za-z0-9_]+",
    }


def text() -> str:
    """The grammar as the property list that editors read."""
    grammar = {
        "name": "fastcl schedule",
        "scopeName": "source.fcs",
        "fileTypes": ["fcs"],
        "patterns": [{"name": f"{k}.fcs", "match": v} for k, v in patterns().items()],
    }
    return plistlib.dumps(grammar, sort_keys=False).decode()


if __name__ == "__main__":
    print(text(), end="")
