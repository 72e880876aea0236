"""What benchmarks of whole runs share: the full counterpart of a schedule, and a run with its cost
and its features' accuracy."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from fastcl_cli.cost import units_per_image
from fastcl_cli.evaluate.bench import Row
from fastcl_cli.evaluate.probe import probe
from fastcl_cli.evaluate.sets import open_probe_data
from fastcl_cli.evaluate.settings import ProbeSettings
from fastcl_cli.events import Event, Notice, RunFinished
from fastcl_cli.schedule import Loaded, compile_text
from fastcl_cli.schedule.ast import Clause, Phase, Word
from fastcl_cli.schedule.format import format_schedule
from fastcl_cli.schedule.resolve import full_views
from fastcl_cli.train.request import RunRequest
from fastcl_cli.train.session import Session


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that is over: its length, its cost in units (uncompressed forward passes of one
    image), its seconds of training, and what the probe says of its backbone and of the same
    network with its initial weights."""

    epochs: float
    units: float
    seconds: float
    rows: tuple[Row, ...]
    untrained: tuple[Row, ...]


def without_compression(loaded: Loaded) -> Loaded:
    """The same settings for the same epochs, all of them in one phase `full`."""
    statements = loaded.schedule.statements
    phases = [s for s in statements if isinstance(s, Phase)]
    first, last = phases[0], phases[-1]
    full = Clause(Word("full", first.span), None, None, None, None, first.span)
    whole = replace(first, end=last.end, clauses=(full,))
    kept = tuple(s for s in statements if not isinstance(s, Phase))
    text = format_schedule(replace(loaded.schedule, statements=(*kept, whole)))
    return compile_text(text, f"{Path(loaded.name).stem}, full", loaded.request)


def train_and_judge(loaded: Loaded, folder: Path, seed: int, settings: ProbeSettings) -> Outcome:
    """Train a schedule in a new folder and probe its backbone on the schedule's own data."""
    seconds = 0.0

    def listen(event: Event) -> None:
        nonlocal seconds
        if isinstance(event, Notice):
            print(event.text, file=sys.stderr)
        elif isinstance(event, RunFinished):
            seconds = event.seconds

    session = Session(RunRequest(loaded, folder, seed), listen)
    session.train()
    plan, config = session.plan, session.config
    assert config.data is not None
    train, val = open_probe_data(config.data, None, None, announce=lambda text: None)
    judged = probe(session.folder.backbone, train, val, replace(settings, untrained=True))
    assert judged.untrained is not None
    units = plan.images_at(plan.steps) * units_per_image(config, full_views(config))
    return Outcome(plan.epochs, units * plan.mean_cost, seconds, judged.results, judged.untrained)
