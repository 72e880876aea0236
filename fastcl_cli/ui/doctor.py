"""`fastcl doctor` on the screen."""

from __future__ import annotations

import json

from rich.text import Text

from fastcl_cli.doctor.examine import Report, examine
from fastcl_cli.doctor.finding import Status
from fastcl_cli.ui.console import stdout

STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "problem": "red"}


def run(as_json: bool) -> int:
    """Examine this machine and print the findings.

    Returns:
        the exit status: 0 where training will work.
    """
    report = examine()
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        _show(report)
    return 0 if report.ready else 1


def _show(report: Report) -> None:
    console = stdout()
    width = max(len(finding.name) for finding in report.findings)
    for finding in report.findings:
        line = Text(f"{finding.status:<8} ", STYLES[finding.status])
        line.append(f"{finding.name:<{width}}  {finding.value}", "none")
        console.print(line, soft_wrap=True)
        if finding.help:
            console.print(f"{'':<{width + 11}}help: {finding.help}", soft_wrap=True)
    problems = sum(finding.status == "problem" for finding in report.findings)
    if problems:
        console.print(f"training will not work: {problems} problem{'s' * (problems > 1)}")
    else:
        console.print("training will work")
