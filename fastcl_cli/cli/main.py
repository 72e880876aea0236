"""The program: its commands, and how an error becomes a line and an exit status."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from fastcl_cli import __version__
from fastcl_cli.cli.data import pack
from fastcl_cli.cli.features import export, probe
from fastcl_cli.cli.machine import doctor
from fastcl_cli.cli.runs import report, watch
from fastcl_cli.cli.schedules import estimate, fmt, validate
from fastcl_cli.cli.training import bench, run, search
from fastcl_cli.errors import FastclError, InterruptError, StoppedError
from fastcl_cli.schedule import ScheduleError


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fastcl {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="fastcl",
    help="Pre-train Vision Transformers with MoCo-v3, SimCLR and DINO at a quarter of the compute.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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


_WORDS: dict[str, str] = {
    "validate": "Check schedules and show their plans.",
    "fmt": "Format schedules in place.",
    "estimate": "Say what schedules cost, and what of them a budget pays for.",
    "bench": "Measure whole training steps on this device.",
    "run": "Train as a schedule says.",
    "search": "Find a schedule by measuring gradient errors.",
    "watch": "Show a run on this screen while it goes on, or how it ended.",
    "report": "Make one HTML page of a run, or of several side by side.",
    "probe": "Say how good a checkpoint's features are on labelled images.",
    "export": "Write a backbone for timm, Hugging Face or ONNX.",
    "pack": "Pack images into an FFCV file.",
    "doctor": "Say whether this machine can train, and what would mend it.",
}
"""Each command in the list of all, on one line of a narrow terminal."""

COMMANDS: dict[Callable[..., None], str] = {
    validate: "fastcl validate my.fcs",
    fmt: "fastcl fmt my.fcs",
    estimate: "fastcl estimate moco_opt --budget 100gpuh --gpus 8",
    bench: "fastcl bench moco_opt --data photos.beton --set batch=512",
    run: "fastcl run moco_opt --data photos.beton --set batch=512 --out runs/first",
    search: "fastcl search moco_full --data photos.beton --out mine.fcs",
    watch: "fastcl watch runs/first",
    report: "fastcl report runs/first runs/second --out both.html",
    probe: "fastcl probe runs/first/backbone.safetensors --data labelled/",
    export: "fastcl export runs/first/backbone.safetensors --out vit-hf --format hf",
    pack: "fastcl pack photos/ photos.beton",
    doctor: "fastcl doctor",
}
"""Each command, with an example of its use."""


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Typer ends a command that Ctrl-C interrupts without a word, from some version on."""

    @wraps(command)
    def called(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            raise InterruptError("interrupted") from interrupt

    return called


for _command, _example in COMMANDS.items():
    app.command(short_help=_WORDS[_command.__name__], epilog=f"Example: {_example}")(
        _interruptible(_command)
    )


def main() -> None:
    """Run the command line: an error is one line, its remedy another, its kind the exit status."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # As an exception, so that what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # SLURM's warning before it takes a machine away: whoever handles the one handles the other.
    signal.signal(signal.SIGUSR1, lambda number, frame: signal.raise_signal(signal.SIGTERM))
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
    finally:
        atexit.register(_only_end)  # registered last, so that it is called first
    sys.exit(status)


def _only_end() -> None:
    """From here on a signal could only change the exit status, or add a traceback to what was said:
    a launcher that has lost one process sends SIGTERM to the others, which are ending too."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        result = typer.main.get_command(app).main(
            arguments, prog_name="fastcl", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        raise
    except SystemExit as stop:
        # Typer ends the program itself where the reader of the output has gone.
        if isinstance(stop.__context__, BrokenPipeError):
            raise stop.__context__ from None
        raise
    except FastclError as error:
        if debug:
            raise
        details = getattr(error, "details", "")
        if details:
            print(details, file=sys.stderr)
        if isinstance(error, ScheduleError) and error.alone:
            return error.exit_code  # its details have said it, with the place and the remedy
        word = "" if isinstance(error, StoppedError) else "error: "
        return _end(f"{word}{error.message}", error.help, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            raise
        return _end("interrupted", "", 130)
    except Exception as error:
        # Typer's own faults of usage, which it keeps in a place that differs between versions.
        describe = getattr(error, "format_message", None)
        if debug:
            raise
        if describe is not None:
            context = getattr(error, "ctx", None)
            path = context.command_path if context is not None else "fastcl"
            status = getattr(error, "exit_code", 2)
            return _end(f"error: {describe()}", f"{path} --help", status)
        kind = type(error).__name__
        message = f"error: a fault of fastcl itself: {kind}: {error}"
        return _end(message, "run again with --debug", 1)


def _end(message: str, help: str, status: int) -> int:
    """Say in a line how the command ended, and in another what to do; returns the exit status."""
    sys.stdout.flush()
    print(message, file=sys.stderr)
    if help:
        print(f"help: {help}", file=sys.stderr)
    return status
