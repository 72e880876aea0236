"""The command line. Commands are short: what they do stands elsewhere, imported when needed."""

from __future__ import annotations

import os
import signal
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


class Ui(str, Enum):
    """The screen of `run`."""

    tui = "tui"
    plain = "plain"
    none = "none"


class Task(str, Enum):
    """What `probe` does with the features, or with the network."""

    knn = "knn"
    linear = "linear"
    finetune = "finetune"


class Weights(str, Enum):
    """A network of a run."""

    target = "target"
    online = "online"


class Precision(str, Enum):
    """Of matrix products."""

    auto = "auto"
    float32 = "float32"
    bf16 = "bf16"


class Method(str, Enum):
    """What to train with."""

    moco = "moco"
    simclr = "simclr"
    dino = "dino"


class Metric(str, Enum):
    """In which gradient errors are measured."""

    euclidean = "euclidean"
    adam = "adam"


class Split(str, Enum):
    """A part of a data set."""

    train = "train"
    val = "val"


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
            "--write", metavar="OUT.fcs", help="Write FILE, shortened to fit, to OUT.fcs."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what fits in a budget: for FILEs, else for every built-in schedule.

    Times are those that `fastcl bench` measured on the device, if it did, else counted from
    operations; which it is stands below the table, with all that is assumed.

    Exits with 3 where a FILE that was named does not fit (and --write did not make one that does).
    """
    from fastcl_cli.ui import estimate as view

    if budget is None:
        help = "--budget 100gpuh, 2.5gpud, 90gpumin or 200Munits"
        raise UsageError("estimate needs a --budget", help)
    view.run(files or [], budget, gpu, gpus, images, price, profile or [], write, as_json)


@app.command()
def bench(
    schedule: Annotated[str, typer.Argument(metavar="FILE", help="Schedule or built-in name.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Beton, image folder or built-in name.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=TEXT", help="In place of the file's `NAME TEXT;`."),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="'drop … patch …'",
            help="Measure every combination of these, not the schedule's phases.",
        ),
    ] = None,
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=1, max=1000, help="Rounds over all settings.")
    ] = 5,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, max=600, help="Length of one timing, about.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PROFILE.json",
            help="The file to write. [default: where `estimate` looks]",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", min=1, help="Processes that share the work, one for each GPU (or on the CPU)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure whole training steps on this device: for every phase of FILE, or over a --grid.

    Writes a profile, from which `fastcl estimate` tells hours, and the sample cost of every
    setting; with --grid also a heat map of it (SVG) beside the profile. Settings are timed in turn,
    after a warm-up.
    """
    from fastcl_cli.ui import bench as view

    status = view.run(
        schedule,
        data=data,
        settings=set or [],
        grid=grid,
        repetitions=repetitions,
        seconds=seconds,
        out=out,
        gpus=gpus,
        as_json=as_json,
        arguments=sys.argv[1:],
    )
    raise typer.Exit(status)


@app.command()
def run(
    schedule: Annotated[str, typer.Argument(metavar="FILE", help="Schedule or built-in name.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder. [default: runs/NAME]")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Beton, image folder or name of a set.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=TEXT", help="In place of the file's `NAME TEXT;`."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every random draw.")] = 0,
    resume: Annotated[
        str,
        typer.Option("--resume", metavar="auto|never|CKPT", help="Go on from a checkpoint."),
    ] = "never",
    init_from: Annotated[
        Path | None, typer.Option("--init-from", help="Start with this checkpoint's backbone.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that is in --out.")
    ] = False,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=0, help="Stop after so many steps.")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option("--save-every", min=1, help="Steps between checkpoints.")
    ] = None,
    log_every: Annotated[
        int | None, typer.Option("--log-every", min=1, help="Steps between log lines.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", min=1, help="Processes that share the work, one for each GPU (or on the CPU)."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan, do not train.")
    ] = False,
    ui: Annotated[
        Ui | None, typer.Option("--ui", help="[default: tui on a terminal, else plain]")
    ] = None,
) -> None:
    """Train as a schedule says, and write a backbone for timm."""
    from fastcl_cli.ui import run as view

    status = view.run(
        schedule,
        out=out,
        data=data,
        settings=set or [],
        seed=seed,
        resume=resume,
        init_from=init_from,
        overwrite=overwrite,
        max_steps=max_steps,
        save_every=save_every,
        log_every=log_every,
        gpus=gpus,
        dry_run=dry_run,
        ui=ui.value if ui else None,
        arguments=sys.argv[1:],
    )
    raise typer.Exit(status)


@app.command()
def search(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]", help="Schedule whose settings and length to keep."),
    ] = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="In place of FILE: its published recipe.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Beton, image folder or built-in name.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=TEXT", help="In place of the file's `NAME TEXT;`."),
    ] = None,
    images: Images = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="OUT.fcs", help="To write. [default: NAME_found.fcs]"),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoints", metavar="CKPT...", help="Measure these, off policy; train nothing."
        ),
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option("--grid", help="Settings to try: 'drop 0 0.5 0.75 patch 16 28 32 56'."),
    ] = None,
    stages: Annotated[int, typer.Option("--stages", min=1, max=100, help="Of equal length.")] = 5,
    groups: Annotated[
        int, typer.Option("--groups", min=4, max=1000, help="Independent estimates of each figure.")
    ] = 8,
    pairs: Annotated[
        int, typer.Option("--pairs", min=2, max=1000, help="Paired gradients of each group.")
    ] = 4,
    probe_batch: Annotated[
        int | None,
        typer.Option("--probe-batch", min=2, help="Images of a gradient. [default: up to 128]"),
    ] = None,
    metric: Annotated[
        Metric, typer.Option("--metric", help="Of gradients, or of the steps AdamW makes of them.")
    ] = Metric.euclidean,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Of `bench`, for costs. [default: counted operations]"),
    ] = None,
    free: Annotated[
        bool, typer.Option("--free", help="A stage may be cheaper than the one before.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="For the search: 10gpuh, 5Munits. It trains for less."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every random draw.")] = 0,
    resume: Annotated[
        str, typer.Option("--resume", metavar="auto|never", help="Go on with a search.")
    ] = "never",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the search that is there.")
    ] = False,
    ui: Annotated[
        Ui | None, typer.Option("--ui", help="[default: tui on a terminal, else plain]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find a schedule: measure gradient errors, choose, train a stage with the choice, again.

    Writes OUT.fcs with the tables that it was chosen from, OUT.json and a picture, OUT.svg.
    """
    from fastcl_cli.ui import search as view

    view.run(
        files or [],
        method=method.value if method else None,
        data=data,
        settings=set or [],
        images=images,
        out=out,
        checkpoints=checkpoints or [],
        grid=grid,
        stages=stages,
        groups=groups,
        pairs=pairs,
        batch=probe_batch,
        metric=metric.value,
        profile=profile,
        free=free,
        budget=budget,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        ui=ui.value if ui else None,
        as_json=as_json,
    )


@app.command()
def probe(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Backbone or checkpoint.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Folder or name of a set. [default: the run's own data]"),
    ] = None,
    train: Annotated[Path | None, typer.Option("--train", help="Labelled beton to fit on.")] = None,
    val: Annotated[Path | None, typer.Option("--val", help="Labelled beton to judge on.")] = None,
    task: Annotated[
        list[Task] | None, typer.Option("--task", help="What to do; repeatable. [default: knn]")
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option("--weights", help="Which network of a run's checkpoint. [default: target]"),
    ] = None,
    crop_ratio: Annotated[
        float | None,
        typer.Option(
            "--crop-ratio",
            min=0.1,
            max=1,
            help="Share of the short side shown. [default: 0.875, 1 below 128 px]",
        ),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Judge its initial weights beside it.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option("--dump-features", metavar="DIR", help="Write features and labels there."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="linear, finetune. [default: 0]")
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("--k", min=1, help="knn: neighbours; repeatable. [default: 20 10 100 200]"),
    ] = None,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", min=0.01, help="knn: of votes; repeatable. [default: 0.07]"),
    ] = None,
    blocks: Annotated[
        list[int] | None,
        typer.Option("--blocks", min=1, help="linear: last blocks read; repeatable. [default: 1]"),
    ] = None,
    pool: Annotated[
        bool, typer.Option("--pool", help="linear: also read the mean of the patch tokens.")
    ] = False,
    augment: Annotated[
        bool, typer.Option("--augment", help="linear: random crops and flips, not centre crops.")
    ] = False,
    linear_lr: Annotated[
        list[float] | None,
        typer.Option(
            "--linear-lr",
            min=1e-9,
            help="linear: rate per 256 images; repeatable. [default: 15, from 1e-4 to 5]",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="linear, finetune. [default: 100]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="linear, finetune. [default: 256]")
    ] = None,
    crop_min: Annotated[
        float | None,
        typer.Option(
            "--crop-min", min=0.01, max=1, help="Least area of a random crop. [default: 0.08]"
        ),
    ] = None,
    flip: Annotated[
        float | None, typer.Option("--flip", min=0, max=1, help="Probability. [default: 0.5]")
    ] = None,
    finetune_lr: Annotated[
        float | None,
        typer.Option(
            "--finetune-lr", min=1e-9, help="finetune: rate per 256 images. [default: 5e-4]"
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            "--layer-decay", min=0.01, max=1, help="finetune: rate per block. [default: 0.75]"
        ),
    ] = None,
    drop_path: Annotated[
        float | None,
        typer.Option("--drop-path", min=0, max=0.9, help="finetune. [default: 0.1]"),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option("--label-smoothing", min=0, max=0.9, help="finetune. [default: 0]"),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="finetune. [default: auto]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how good a checkpoint's features are on labelled images: k-NN, linear, fine-tuned."""
    from fastcl_cli.ui import probe as view

    given = {
        "tasks": [one.value for one in task or ()],
        "weights": weights and weights.value,
        "crop_ratio": crop_ratio,
        "untrained": untrained,
        "seed": seed,
        "dump": dump,
        "k": k,
        "temperature": temperature,
        "blocks": blocks,
        "pool": pool,
        "augment": augment,
        "linear_lr": linear_lr,
        "epochs": epochs,
        "batch": batch,
        "crop_min": crop_min,
        "flip": flip,
        "finetune_lr": finetune_lr,
        "layer_decay": layer_decay,
        "drop_path": drop_path,
        "label_smoothing": label_smoothing,
        "precision": precision and precision.value,
    }
    view.run(checkpoint, data, train, val, given, as_json)


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Image folder, or a set by name: digits, or torchvision's CIFAR10, STL10, ...",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.beton", help="The file to write.")],
    split: Annotated[
        Split | None, typer.Option("--split", help="One part only, of an SRC that has two.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            help="Where a torchvision set is, or is downloaded to. [default: in the cache]",
        ),
    ] = None,
    max_side: Annotated[
        int, typer.Option("--max-side", min=8, help="Longest side stored, in pixels.")
    ] = 384,
    quality: Annotated[
        int, typer.Option("--quality", min=1, max=100, help="JPEG quality stored.")
    ] = 90,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. [default: all cores]")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail on an unreadable image; else skip it.")
    ] = False,
) -> None:
    """Pack images into an FFCV file.

    An SRC with two parts (a folder with train/ and val/, or a set by name) makes two files,
    OUT-train.beton and OUT-val.beton, with the same class numbers; --split makes OUT.beton of one.
    """
    from fastcl_cli.ui import pack as view

    view.run(source, out, split.value if split else None, root, max_side, quality, workers, strict)


def main() -> None:
    """Run the command line: an error is one line, its remedy another, its kind the exit status."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # As an exception, so that what is half written is removed on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
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
