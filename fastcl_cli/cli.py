"""The command line. Commands are short: what they do stands elsewhere, imported when needed."""

from __future__ import annotations

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastcl_cli import __version__
from fastcl_cli.errors import FastclError, UsageError

app = typer.Typer(
    name="fastcl",
    help="Pre-train Vision Transformers with MoCo-v3, SimCLR and DINO at a quarter of the compute.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Format(str, Enum):
    """How `validate` prints what it found."""

    text = "text"
    json = "json"
    github = "github"
    sarif = "sarif"


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastcl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (after any command).")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE...", help="Schedule files, built-in names, or - for stdin."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Images = Annotated[
    int | None,
    typer.Option("--images", min=1, help="Number of training images, whatever the file says."),
]


@app.command()
def validate(
    files: Files = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail, too.")] = False,
    as_json: Json = False,
    format: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.text,
    images: Images = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=TEXT", help="In place of the file's `NAME TEXT;`."),
    ] = None,
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


@app.command()
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


@app.command()
def estimate(
    files: Files = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="100gpuh, 2.5gpud, 90gpumin or 200Munits."),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="A device's name, or auto.")] = "auto",
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Devices that share the work.")] = 1,
    images: Images = None,
    price: Annotated[
        float | None,
        typer.Option("--price", min=0, help="Price of a GPU-hour, in any currency."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="OUT.fcs", help="Write FILE, shortened to fit, to OUT.fcs."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what fits in a budget: for FILEs, else for every built-in schedule.

    Exits with 3 where a FILE that was named does not fit (and --write did not make one that does).
    """
    from fastcl_cli.ui import estimate as view

    if budget is None:
        help = "--budget 100gpuh, 2.5gpud, 90gpumin or 200Munits"
        raise UsageError("estimate needs a --budget", help)
    view.run(files or [], budget, gpu, gpus, images, price, write, as_json)


def main() -> None:
    """Run the command line: an error is one line, its remedy another, its kind the exit status."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        status = _run([a for a in arguments if a != "--debug"], debug)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        result = typer.main.get_command(app).main(
            arguments, prog_name="fastcl", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        raise
    except FastclError as error:
        if debug:
            raise
        details = getattr(error, "details", "")
        if details:
            print(details, file=sys.stderr)
        return _fail(error.message, error.help, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            raise
        return _fail("interrupted", "", 130)
    except Exception as error:
        # Typer's own faults of usage, which it keeps in a place that differs between versions.
        describe = getattr(error, "format_message", None)
        if debug:
            raise
        if describe is not None:
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "fastcl"
            return _fail(describe(), f"{path} --help", getattr(error, "exit_code", 2))
        kind = type(error).__name__
        return _fail(f"a fault of fastcl itself: {kind}: {error}", "run again with --debug", 1)


def _fail(message: str, help: str, status: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    if help:
        print(f"help: {help}", file=sys.stderr)
    return status
