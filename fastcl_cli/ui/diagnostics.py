"""Faults of schedules, as text with carets, as GitHub annotations and as SARIF."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from fastcl_cli.schedule.diagnostics import CODES, Diagnostic, render, severity_of
from fastcl_cli.schedule.settings import SETTINGS


def print_diagnostics(console: Console, diagnostics: Sequence[Diagnostic]) -> None:
    """Each fault with its line, a caret under the place, and help."""
    for diagnostic in diagnostics:
        colour = "bold red" if diagnostic.severity == "error" else "bold yellow"
        text = Text(render(diagnostic))
        text.highlight_regex(r"(error|warning)\[FCS[0-9]+\]", colour)
        text.highlight_regex(r"(?m)^ +\| +\^+$", colour)
        text.highlight_regex(r"= help:", "bold cyan")
        console.print(text, soft_wrap=True)


def explanation(code: str) -> str:
    """What a code means, at length."""
    title, reason = CODES[code]
    body = textwrap.fill(reason, 88, break_long_words=False, break_on_hyphens=False)
    text = f"{code} ({severity_of(code)}): {title}\n\n{body}"
    if code == "FCS007":
        text += "\n\n" + "\n".join(f"  {spec.name} {spec.syntax}" for spec in SETTINGS.values())
    return text


def github_lines(diagnostics: Sequence[Diagnostic]) -> list[str]:
    """Workflow commands by which GitHub annotates lines of a pull request."""

    def escape(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    def escape_property(text: str) -> str:
        return escape(text).replace(":", "%3A").replace(",", "%2C")

    lines = []
    for d in diagnostics:
        line, column = d.place
        message = escape(f"{d.message}: {d.help}" if d.help else d.message)
        lines.append(
            f"::{d.severity} file={escape_property(d.file)},line={line},col={column},"
            f"title={d.code}::{message}"
        )
    return lines


def sarif(diagnostics: Sequence[Diagnostic], version: str) -> dict[str, Any]:
    """A SARIF 2.1.0 log, as code scanning services take it."""
    rules = [
        {
            "id": code,
            "shortDescription": {"text": title},
            "fullDescription": {"text": reason},
            "defaultConfiguration": {"level": severity_of(code)},
        }
        for code, (title, reason) in CODES.items()
    ]
    results = []
    for d in diagnostics:
        line, column = d.place
        region = {"startLine": line, "startColumn": column}
        location = {"artifactLocation": {"uri": d.file}, "region": region}
        results.append(
            {
                "ruleId": d.code,
                "level": d.severity,
                "message": {"text": f"{d.message}: {d.help}" if d.help else d.message},
                "locations": [{"physicalLocation": location}],
            }
        )
    driver = {"name": "fastcl", "version": version, "rules": rules}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
