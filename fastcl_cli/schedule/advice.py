"""Warnings: what is legal in a schedule, but unwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fastcl_cli.config import Method, RunConfig
from fastcl_cli.plan import Plan, Segment
from fastcl_cli.schedule.check import Settings
from fastcl_cli.schedule.diagnostics import Diagnostic
from fastcl_cli.schedule.phases import Phases
from fastcl_cli.units import short_number

MIN_TOKENS = 8
MIN_BATCH: dict[Method, int] = {"moco": 128, "simclr": 128, "dino": 32}
MAX_OF_A_KIND = 10


def advise(
    plan: Plan, phases: Phases, settings: Settings, config: RunConfig
) -> Iterator[Diagnostic]:
    """Warnings about a plan, at most ten of a kind.

    None about the compression of `auto` phases: they measure what these warnings guess at.
    """
    segments = [plan.segments[0]]
    for segment in plan.segments[1:]:
        if segment.phase != segments[-1].phase or segment.views != segments[-1].views:
            segments.append(segment)
    yield from _few(_warmup(plan, phases, settings, config))
    chosen = [segment for segment in segments if not segment.auto]
    yield from _few(_growing(chosen, phases))
    yield from _few(_tokens(chosen, phases))
    yield from _few(_batches(segments, phases, settings, config))
    yield from _few(_locals(chosen, phases))


def _few(warnings: Iterator[Diagnostic]) -> Iterator[Diagnostic]:
    """One warning for a phase, and the first ten."""
    seen: set[int] = set()
    for warning in warnings:
        if warning.span.start not in seen and len(seen) < MAX_OF_A_KIND:
            seen.add(warning.span.start)
            yield warning


def _warmup(
    plan: Plan, phases: Phases, settings: Settings, config: RunConfig
) -> Iterator[Diagnostic]:
    warmup = plan.in_epochs(config.warmup)
    if warmup > plan.epochs or (warmup == plan.epochs and warmup > 0):
        unit = "%" if config.warmup.unit == "percent" else f" {config.warmup.unit}"
        default = "" if "warmup" in settings.nodes else f" ({config.method}'s default)"
        place = settings.span("warmup") or phases.specs[-1].node.range_span
        message = (
            f"the warm-up of {short_number(config.warmup.value)}{unit}{default} lasts "
            f"{'longer than' if warmup > plan.epochs else 'as long as'} the run"
        )
        help = "the learning rate never falls: write a shorter one, such as `warmup 10%;`"
        yield Diagnostic("FCS102", place, message, help)


def _growing(segments: Sequence[Segment], phases: Phases) -> Iterator[Diagnostic]:
    for before, after in pairwise(segments):
        if before.views != after.views and after.sample_cost < before.sample_cost:
            message = (
                f"compression grows: sample cost {after.sample_cost:.3f} "
                f"after {before.sample_cost:.3f}"
            )
            help = "late in training its bias weighs more: put strong compression first"
            yield Diagnostic("FCS101", phases.specs[after.phase].node.range_span, message, help)


def _tokens(segments: Sequence[Segment], phases: Phases) -> Iterator[Diagnostic]:
    for segment in segments:
        view = segment.views[0]
        for name, tokens in (("online", view.online), ("target", view.target)):
            if tokens is not None and tokens.kept < MIN_TOKENS:
                message = f"the {name} encoder keeps {tokens.kept} of {tokens.grid**2} tokens"
                help = f"fewer than {MIN_TOKENS} show next to nothing of a view"
                yield Diagnostic(
                    "FCS103", phases.specs[segment.phase].node.range_span, message, help
                )


def _batches(
    segments: Sequence[Segment], phases: Phases, settings: Settings, config: RunConfig
) -> Iterator[Diagnostic]:
    least = MIN_BATCH[config.method]
    for segment in segments:
        if segment.batch < least:
            spec = phases.specs[segment.phase]
            place = spec.batch_span or settings.span("batch") or spec.node.range_span
            message = f"a batch of {segment.batch} is small for {config.method}"
            yield Diagnostic("FCS104", place, message, f"{least} or more are advised")


def _locals(segments: Sequence[Segment], phases: Phases) -> Iterator[Diagnostic]:
    for segment in segments:
        for view in segment.views[1:]:
            if view.online.grid == 2:
                message = (
                    f"patch {view.online.patch} leaves 2 x 2 tokens of a local view of {view.side}"
                )
                help = "larger patches change nothing there: use smaller ones or larger locals"
                yield Diagnostic(
                    "FCS105", phases.specs[segment.phase].node.range_span, message, help
                )
