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
Data = Annotated[str | None, typer.Option("--data", help="Beton, image folder, or a set's name.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=TEXT", help="In place of the file's `NAME TEXT;`."),
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of every random draw.")]
