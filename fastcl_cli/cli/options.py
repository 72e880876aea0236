"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer


def builtin_names(incomplete: str) -> list[str]:
    """Built-in schedules for a shell to complete; where there is none it completes files."""
    from fastcl_cli.schedule.library import builtin_schedules

    return [name for name in builtin_schedules() if incomplete and name.startswith(incomplete)]


Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE...",
        help="Schedule files, built-in names, or - for stdin.",
        autocompletion=builtin_names,
    ),
]
Schedule = Annotated[
    str,
    typer.Argument(metavar="FILE", help="Schedule or built-in name.", autocompletion=builtin_names),
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
