"""What ``fastcl validate`` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.errors import UsageError
from fastcl_cli.schedule.diagnostics import CODES, did_you_mean
from fastcl_cli.schedule.load import Report, Request, check, read_source

_SHOWN = 20
"""Faults of a file that are printed: who has more has the wrong file, or mends the first first."""


def explain(code: str) -> None:
    """Print what a code means.

    Raises:
        UsageError: there is no such code.
    """
    from fastcl_cli.ui.diagnostics import explanation

    if code.upper() not in CODES:
        raise UsageError(
            f"--explain {code}: no such code", did_you_mean(code, list(CODES), "codes")
        )
    print(explanation(code.upper()))


def run(
    files: Sequence[str],
    format: str,
    strict: bool,
    overrides: Sequence[str],
    images: int | None,
) -> int:
    """Check files and print what was found; return the exit status, 0 or 1.

    Raises:
        ConfigError: a file cannot be read.
    """
    if not files:
        raise UsageError("validate needs at least one FILE", "fastcl validate schedule.fcs")
    request = Request(tuple(overrides), (images, "option") if images is not None else None)
    sources = [read_source(name) for name in files]
    reports = [check(name, data, request) for name, data in sources]
    found = [d for report in reports for d in report.diagnostics]
    if format == "json":
        print(json.dumps({"schema_version": 1, "files": [report_json(r) for r in reports]}))
    elif format == "github":
        from fastcl_cli.ui.diagnostics import github_lines

        for line in github_lines(found):
            print(line)
    elif format == "sarif":
        from fastcl_cli.ui.diagnostics import sarif

        print(json.dumps(sarif(found, __version__)))
    else:
        _print_text(reports)
    failed = any(not r.valid for r in reports) or (strict and bool(found))
    return 1 if failed else 0


def report_json(report: Report) -> dict[str, Any]:
    plan = None
    if report.plan is not None and report.config is not None:
        plan = {**report.plan.to_json(), "images_source": report.config.images_source}
    return {
        "file": report.name,
        "valid": report.valid,
        "diagnostics": [d.to_json() for d in report.diagnostics],
        "plan": plan,
    }


def _print_text(reports: Sequence[Report]) -> None:
    from fastcl_cli.ui.console import stdout
    from fastcl_cli.ui.diagnostics import print_diagnostics
    from fastcl_cli.ui.plan_table import print_plan

    console = stdout()
    for index, report in enumerate(reports):
        if index:
            console.print()
        shown, rest = report.diagnostics[:_SHOWN], report.diagnostics[_SHOWN:]
        print_diagnostics(console, shown)
        if rest:
            console.print(f"{len(rest)} more are not shown: is {report.name} a schedule?")
        if report.plan is not None and report.config is not None:
            print_plan(console, report.name, report.plan, report.config)
        else:
            errors = sum(d.severity == "error" for d in report.diagnostics)
            console.print(f"{report.name}: {errors} error{'s' * (errors != 1)}", style="bold red")
