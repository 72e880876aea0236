"""A search as a run: an `auto` phase whose decisions fall on the stages' starts."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from fastcl_cli import __version__
from fastcl_cli.config import RunConfig
from fastcl_cli.cost import units_per_image
from fastcl_cli.errors import BudgetError, CheckpointError, StoppedError
from fastcl_cli.estimate.clocks import Clock, choose_clocks
from fastcl_cli.estimate.estimate import check_device
from fastcl_cli.events import Emit, Notice
from fastcl_cli.files import write_text
from fastcl_cli.plan import Plan
from fastcl_cli.processes import distributed
from fastcl_cli.schedule import Loaded
from fastcl_cli.schedule.resolve import full_views, ladder
from fastcl_cli.search.texts import (
    Stage,
    found_schedule,
    length_of,
    stage_starts,
    stages_of,
    trial,
)
from fastcl_cli.train.auto import Metric, Stages
from fastcl_cli.train.changes import ChangedRunError
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session
from fastcl_cli.units import Budget

DEFAULT_BATCH = 128
"""Images of a probe batch at most: large enough for batch norms and negatives to resemble those of
training, small enough for one device."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What a user asked of `search`.

    Attributes:
        base: settings, and the length of the schedule to find.
        out: the schedule to write; ``OUT.json``, ``OUT.svg`` and the run's folder stand beside it.
        grid: settings to try, as `choices` writes them; None for the base's, or a default.
        stages: how many, of equal length.
        groups, pairs, batch: R, K and b of each measurement; no batch is the default.
        profile: measured on this device, for κ; None counts operations.
        free: a stage may be cheaper than the one before.
        budget: for the search itself, at ``device``: its run is shortened to fit.
        arguments: of the command line, for the record.
    """

    base: Loaded
    out: Path
    grid: str | None = None
    stages: int = 5
    groups: int = 6
    pairs: int = 4
    batch: int | None = None
    metric: Metric = "euclidean"
    profile: Path | None = None
    free: bool = False
    seed: int = 0
    budget: Budget | None = None
    resume: str = "never"
    overwrite: bool = False
    arguments: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's."""
        return self.out.with_name(f"{self.out.stem}.search")


@dataclass(frozen=True)
class SearchResult:
    """What a search found. ``record`` is what ``OUT.json`` holds."""

    stages: tuple[Stage, ...]
    schedule: str
    record: Mapping[str, Any]


def search(request: SearchRequest, emit: Emit) -> SearchResult:
    """Find a schedule, and write it with the record of how it was found.

    Raises:
        BudgetError: the budget pays for no search of so many stages.
        RequeueError, InterruptError: a signal came; the search can go on.
        FastclError: as `Session` has it.
    """
    began = time.monotonic()
    session = open_search(request, emit)
    try:
        session.train()
    except ChangedRunError as error:
        help = "search on with the options that it was started with, or again with `--overwrite`"
        raise ChangedRunError(error.message, help, error.details) from None
    except StoppedError as error:
        raise type(error)(
            error.message, "go on with the same command and `--resume auto`"
        ) from None
    seconds = time.monotonic() - began
    lines = session.folder.decisions.read_text(encoding="utf-8").splitlines()
    try:
        stages = stages_of([json.loads(line) for line in lines], request.stages)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{session.folder.decisions} is not what the search wrote: {error}",
            "search again with `--overwrite`",
        ) from error
    record = _record(request, session, stages, seconds)
    text = found_schedule(request.base, stages, _head(record))
    write_text(request.out, text)
    write_text(request.out.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    return SearchResult(tuple(stages), text, record)


def open_search(request: SearchRequest, emit: Emit) -> Session:
    """The search's run, ready to start.

    Raises:
        BudgetError, FastclError: as `search`.
    """
    loaded = trial(request.base, request.grid, length_of(request.base))
    batch = min(request.batch or DEFAULT_BATCH, loaded.config.batch, loaded.plan.images)
    given = [] if request.profile is None else [request.profile]
    size = distributed.size()
    (((_, clock),), _) = choose_clocks([loaded], given, "auto", size, named=True)
    if request.budget is not None:
        check_device(request.budget, clock)
        length = _affordable(request, loaded, batch, request.budget, clock)
        loaded = trial(request.base, request.grid, length)
        emit(
            Notice(
                f"--budget {request.budget.text}: {float(length):g} of "
                f"{float(length_of(request.base)):g} epochs, which it pays for even if no stage "
                "compresses; what compression saves is left over"
            )
        )

    def policy(plan: Plan) -> Stages:
        starts = stage_starts(plan, request.stages)
        return Stages(starts, request.groups, request.pairs, batch, request.metric, request.free)

    run = RunRequest(
        loaded,
        request.folder,
        request.seed,
        resume=request.resume,
        overwrite=request.overwrite,
        arguments=request.arguments,
        policy=policy,
        clock=clock if given else None,
    )
    return Session(run, emit)


def measuring_images(config: RunConfig, groups: int, pairs: int, batch: int) -> float:
    """What measuring the whole grid once costs, in images trained without compression."""
    full = full_views(config)
    rungs = ladder(config, config.batch)
    each = 1 + sum(rung.sample_cost for rung in rungs if rung.views != full)
    return groups * pairs * batch * each


def _affordable(
    request: SearchRequest, loaded: Loaded, batch: int, budget: Budget, clock: Clock
) -> Fraction:
    """The length in epochs for which the search keeps to a budget even if it never compresses."""
    config, full = loaded.config, full_views(loaded.config)
    if budget.kind == "units":
        images = float(budget.amount) / units_per_image(config, full)
    else:
        seconds = clock.image(config, full, config.batch, distributed.size()).seconds
        images = float(budget.amount) * 3600 / seconds
    measuring = request.stages * measuring_images(config, request.groups, request.pairs, batch)
    epochs = (images - measuring) / loaded.plan.images
    least = request.stages * config.batch / loaded.plan.images
    if epochs < least:
        raise BudgetError(
            f"--budget {budget.text} pays for {images:,.0f} images without compression; measuring "
            f"{request.stages} times takes {measuring:,.0f}, and each stage needs a step",
            "a larger budget, fewer --stages or --groups, or a smaller --grid",
        )
    return min(length_of(request.base), Fraction(int(epochs * 10**4), 10**4))


def _record(
    request: SearchRequest, session: Session, stages: Sequence[Stage], seconds: float
) -> dict[str, Any]:
    config, plan = session.config, session.plan
    unit = units_per_image(config, full_views(config))
    first = stages[0].record["settings"][0]
    batch, measured = first["probe_batch"], request.groups * request.pairs
    measuring = len(stages) * measuring_images(config, request.groups, request.pairs, batch) * unit
    return {
        "schema_version": 1,
        "fastcl": __version__,
        "kind": "on-policy",
        "base": request.base.name,
        "method": config.method,
        "data": config.data,
        "images": plan.images,
        "seed": request.seed,
        "device": session.device.name,
        "precision": session.device.precision,
        "epochs": plan.epochs,
        "metric": request.metric,
        "cost_from": "operations" if request.profile is None else str(request.profile),
        "groups": request.groups,
        "pairs": request.pairs,
        "probe_batch": batch,
        "gradients_a_setting": measured,
        "rule": "the cheapest whose paired difference from the least CA-MSE is within one "
        "standard error" + ("" if request.free else ", never cheaper than the stage before"),
        "cost": {
            "training_units": plan.images_at(plan.steps) * plan.mean_cost * unit,
            "measuring_units": measuring,
            "seconds": seconds,
        },
        "mean_cost": plan.mean_cost,
        "speedup": plan.speedup,
        "stages": [
            {"start": float(s.start), "end": float(s.end), "setting": s.words, **s.record}
            for s in stages
        ],
    }


def _head(record: Mapping[str, Any]) -> list[str]:
    cost = record["cost"]
    return [
        f"# Found by measuring gradient errors, from the settings of {record['base']}:",
        f"# {record['method']} on {record['data']}, {record['images']:,} images, "
        f"{record['epochs']:g} epochs, seed {record['seed']}, {record['precision']} on "
        f"{record['device']}.",
        "# On policy: each stage was chosen with the weights that those before it had trained,",
        f"# from {record['groups']} groups of {record['pairs']} pairs of batches of "
        f"{record['probe_batch']} images in the {record['metric']} metric:",
        f"# {record['rule']}.",
        "# Estimates are unbiased: where noise outweighs an error, it may stand below 0.",
        f"# Cost of the run: {record['mean_cost']:.3f} of no compression "
        f"({record['speedup']:.2f}x). The search took {cost['training_units'] / 1e6:.3g} million",
        f"# units for training and {cost['measuring_units'] / 1e6:.3g} for measuring, "
        f"{cost['seconds']:,.0f} s.",
    ]
