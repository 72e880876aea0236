"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE...", help="Schedule files, built-in names, or - for stdin."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Images = Annotated[
    int | None,
    typer.Option("--images", min=1, help="Number of training images, whatever the file says."),
]
