"""Commands on schedules, which need no torch: validate, fmt, estimate."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastcl_cli.cli.options import Data, Files, Images, Json, Set
from fastcl_cli.errors import UsageError


class Format(str, Enum):
    """How `validate` prints what it found."""

    text = "text"
    json = "json"
    github = "github"
    sarif = "sarif"


def validate(
    files: Files = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    as_json: Json = False,
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.text,
    images: Images = None,
    set: Set = None,
    explain: Annotated[
        str | None,
        typer.Option("--explain", metavar="CODE", help="Say what a code means, at length."),
    ] = None,
) -> None:
    """Check schedules and show their plans: exit 0 if all are valid, 1 if not."""
    from fastcl_cli.ui import validate as view

    if explain is not None:
        view.explain(explain)
        return
    wanted = "json" if as_json else format.value
    raise typer.Exit(view.run(files or [], wanted, strict, set or [], images))


def fmt(
    files: Files = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 if a file would change.")
    ] = False,
) -> None:
    """Format schedules in place (- from stdin to stdout)."""
    from fastcl_cli.schedule.rewrite import rewrite

    if not files:
        raise UsageError("fmt needs at least one FILE", "fastcl fmt schedule.fcs")
    changed = [name for name in files if rewrite(name, check)]
    for name in changed:
        print(f"{name}: {'would be formatted' if check else 'formatted'}", file=sys.stderr)
    raise typer.Exit(1 if check and changed else 0)


def estimate(
    files: Files = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="To spend: 100gpuh, 2gpud, 90gpumin, 5cpuh, 200Munits."),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="A device's name, or auto.")] = "auto",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Devices that share the work.")] = 1,
    data: Data = None,
    set: Set = None,
    images: Images = None,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0, help="Price of a GPU-hour, in any currency."),
    ] = None,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile",
            metavar="PROFILE.json",
            help="Of `bench`; repeatable. [default: the device's own, if there are any]",
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="OUT.fcs", help="Write FILE, shortened to fit --budget, to OUT.fcs."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what FILEs cost, else every built-in schedule; with --budget also what of it fits.

    Times are those that `fastcl bench` measured on the device, if it did, else counted from
    operations; which it is stands below the table, with all that is assumed.

    Exits with 3 where a FILE that was named does not fit (and --write did not make one that does).
    """
    from fastcl_cli.ui import estimate as view

    view.run(
        files or [],
        budget,
        gpu=gpu,
        gpus=gpus,
        data=data,
        settings=set or [],
        images=images,
        price=price,
        profiles=profile or [],
        write=write,
        as_json=as_json,
    )
