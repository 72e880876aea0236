"""Commands that read what runs have written, and need no torch: watch, report."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Screen(str, Enum):
    """Where a run is shown."""

    tui = "tui"
    plain = "plain"


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    ui: Annotated[
        Screen | None, typer.Option("--ui", help="[default: tui on a terminal, else plain]")
    ] = None,
) -> None:
    """Show a run on this screen while it goes on, or how one ended. Ctrl-C leaves the run alone."""
    from fastcl_cli.ui import watch as view

    view.watch(run, ui.value if ui else None)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.html", help="[default: report.html in RUN; of several, here]"
        ),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="DIR", help="Write the figures there, too.")
    ] = None,
) -> None:
    """Make one HTML page of a run, or of several side by side."""
    from fastcl_cli.ui import report as view

    view.report(runs, out, svg)
