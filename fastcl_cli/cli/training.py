"""Commands that train, or time training: bench, run, search."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastcl_cli.cli.options import Data, Images, Json, Schedule, Seed, Set


class Ui(str, Enum):
    """The screen of `run`."""

    tui = "tui"
    plain = "plain"
    none = "none"


class Method(str, Enum):
    """What to train with."""

    moco = "moco"
    simclr = "simclr"
    dino = "dino"


class Log(str, Enum):
    """Where the figures of a run go, beside ``metrics.jsonl``."""

    tensorboard = "tensorboard"
    wandb = "wandb"


class Metric(str, Enum):
    """In which gradient errors are measured."""

    euclidean = "euclidean"
    adam = "adam"


def bench(
    schedule: Schedule,
    data: Data = None,
    set: Set = None,
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


def run(
    schedule: Schedule,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run's folder. [default: runs/NAME]")
    ] = None,
    data: Data = None,
    set: Set = None,
    seed: Seed = 0,
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
    allow_changes: Annotated[
        bool,
        typer.Option(
            "--allow-changes", help="Resume with other settings and phases, from there on."
        ),
    ] = False,
    max_steps: Annotated[
        int | None, typer.Option("--max-steps", min=0, help="Stop after this step of the schedule.")
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
    shard: Annotated[
        bool,
        typer.Option(
            "--shard", help="Each process holds its share of the model only: for large models."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan, do not train.")
    ] = False,
    ui: Annotated[
        Ui | None, typer.Option("--ui", help="[default: tui on a terminal, else plain]")
    ] = None,
    log: Annotated[
        list[Log] | None,
        typer.Option("--log", help="Where else the figures go; repeatable."),
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
        allow_changes=allow_changes,
        max_steps=max_steps,
        save_every=save_every,
        log_every=log_every,
        gpus=gpus,
        shard=shard,
        dry_run=dry_run,
        ui=ui.value if ui else None,
        loggers=[one.value for one in log or ()],
        arguments=sys.argv[1:],
    )
    raise typer.Exit(status)


def search(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]", help="Schedule whose settings and length to keep."),
    ] = None,
    method: Annotated[
        Method | None, typer.Option("--method", help="In place of FILE: its published recipe.")
    ] = None,
    data: Data = None,
    set: Set = None,
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
    ] = 6,
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
        typer.Option("--budget", help="For the search: 10gpuh, 5cpuh, 5Munits. Trains for less."),
    ] = None,
    seed: Seed = 0,
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
        arguments=sys.argv[1:],
    )
