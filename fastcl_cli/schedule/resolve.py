"""From checked phases to a plan: ranges become steps, compression becomes grids and tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from fastcl_cli.config import RunConfig
from fastcl_cli.cost import forward_flops
from fastcl_cli.plan import (
    Compression,
    Plan,
    Position,
    Rung,
    Segment,
    Tokens,
    Unit,
    View,
    advance,
    begin,
    steps_until,
)
from fastcl_cli.schedule.clauses import PhaseSpec
from fastcl_cli.schedule.diagnostics import Collector, FaultError
from fastcl_cli.schedule.phases import Phases
from fastcl_cli.schedule.source import Span
from fastcl_cli.schedule.words import MAX_SEGMENTS
from fastcl_cli.units import ceil, round_half_up, short_number


def tokens_kept(length: int, drop: Fraction) -> int:
    """Patch tokens that stay of ``length``: L·(1 - R), a half rounding up, at least 1."""
    return max(1, round_half_up(length * (1 - drop)))


def global_tokens(image: int, compression: Compression) -> Tokens:
    """Tokens of a global view; its patch divides the image."""
    grid = image // compression.patch
    return Tokens(compression.patch, grid, tokens_kept(grid * grid, compression.drop))


def local_tokens(side: int, compression: Compression) -> Tokens:
    """Tokens of a local view: g = max(2, floor(side/P + 1/2)) per side; P need not divide it."""
    grid = max(2, round_half_up(Fraction(side, compression.patch)))
    return Tokens(compression.patch, grid, tokens_kept(grid * grid, compression.drop))


def views_of(
    config: RunConfig, online: Compression, target: Compression | None
) -> tuple[View, ...]:
    """Every view of an image, as the encoders see it. The target sees global views only."""
    seen = global_tokens(config.image, target) if target is not None else None
    views = [View("global", 2, config.image, global_tokens(config.image, online), seen)]
    if config.locals is not None:
        count, side = config.locals.count, config.locals.side
        views.append(View("local", count, side, local_tokens(side, online), None))
    return tuple(views)


def full_views(config: RunConfig) -> tuple[View, ...]:
    """Every view of an image without compression."""
    full = Compression(Fraction(0), config.model.patch)
    return views_of(config, full, full if config.method != "simclr" else None)


def sample_cost(config: RunConfig, views: tuple[View, ...], batch: int) -> float:
    """Operations for one image seen in ``views``, forward and backward, over those at `full`."""
    full = forward_flops(config, full_views(config), batch).training
    return forward_flops(config, views, batch).training / full


def ladder(config: RunConfig, batch: int) -> tuple[Rung, ...]:
    """The settings that an `auto` phase with ``batch`` chooses from, the cheapest first.

    A drop is for the online encoder, a patch for both, as in a phase that names no encoder. Of
    settings that cost the same, the smaller drop comes first. The order is the same for every
    batch: of the operations, only the loss's depend on it, and they are the same for all settings.
    """
    choices = config.choices
    assert choices is not None
    rungs = []
    for drop in choices.drop:
        for patch in choices.patch:
            online = Compression(drop, patch)
            target = Compression(Fraction(0), patch) if config.method != "simclr" else None
            views = views_of(config, online, target)
            rungs.append(Rung(online, target, views, sample_cost(config, views, batch)))
    return tuple(sorted(rungs, key=lambda rung: (rung.sample_cost, rung.online.drop)))


@dataclass(slots=True)
class _Resolver:
    config: RunConfig
    unit: Unit
    length: Fraction | None
    segments: list[Segment] = field(default_factory=list)
    position: Position = field(default_factory=lambda: Position(0, 0))
    costs: dict[object, float] = field(default_factory=dict)
    cheapest: Rung | None = None

    def bound(self, value: Fraction) -> Position:
        """The place in the data that a range's bound in epochs or per cent is."""
        if self.unit == "percent":
            assert self.length is not None
            value = value * self.length / 100
        epoch = value.numerator // value.denominator
        return Position(epoch, ceil((value - epoch) * self.config.images))

    def cost(self, views: tuple[View, ...], batch: int) -> float:
        key = (views, batch)
        if key not in self.costs:
            self.costs[key] = sample_cost(self.config, views, batch)
        return self.costs[key]

    def phase(self, index: int, spec: PhaseSpec) -> None:
        batch = spec.batch if spec.batch is not None else self.config.batch
        if spec.auto:
            if self.cheapest is None:
                self.cheapest = ladder(self.config, self.config.batch)[0]
            online, target = self.cheapest.online, self.cheapest.target
            self.segment(index, spec, spec.start, spec.end, batch, online, target)
            return
        ramps = (spec.drop_online, spec.drop_target, spec.patch_online, spec.patch_target)
        # Where a drop ramp and a patch ramp share a phase, each keeps its own equal stairs.
        cuts = sorted({Fraction(i, len(ramp)) for ramp in ramps for i in range(len(ramp))})
        for cut, following in zip(cuts, [*cuts[1:], Fraction(1)], strict=True):
            drop_online, drop_target, patch_online, patch_target = (
                ramp[int(cut * len(ramp))] for ramp in ramps
            )
            online = Compression(drop_online, patch_online)  # type: ignore[arg-type]
            target = Compression(drop_target, patch_target)  # type: ignore[arg-type]
            span = spec.end - spec.start
            start, end = spec.start + span * cut, spec.start + span * following
            self.segment(
                index,
                spec,
                start,
                end,
                batch,
                online,
                target if self.config.method != "simclr" else None,
            )

    def segment(
        self,
        phase: int,
        spec: PhaseSpec,
        start: Fraction,
        end: Fraction,
        batch: int,
        online: Compression,
        target: Compression | None,
    ) -> None:
        images = self.config.images
        here = begin(self.position, batch, images)
        first = self.segments[-1].end_step if self.segments else 0
        if self.unit == "steps":
            start, end = Fraction(round_half_up(start)), Fraction(round_half_up(end))
            steps = int(end - start)
        else:
            steps = steps_until(here, self.bound(end), batch, images)
        if steps == 0:
            raise self.too_short(spec, start, end, batch)
        self.position = advance(here, batch, steps, images)
        if self.unit != "steps":
            self.position = max(self.position, self.bound(end))
        views = views_of(self.config, online, target)
        self.segments.append(
            Segment(
                start,
                end,
                first,
                first + steps,
                batch,
                here,
                phase,
                online,
                target,
                views,
                self.cost(views, batch),
                spec.auto,
            )
        )

    def too_short(self, spec: PhaseSpec, start: Fraction, end: Fraction, batch: int) -> FaultError:
        sign = "%" if self.unit == "percent" else f" {self.unit}"
        what = f"{short_number(start)} to {short_number(end)}{sign}"
        message = f"not one step of {batch:,} of {self.config.images:,} images from {what}"
        help = "make the range longer, or the batch smaller"
        if (start, end) != (spec.start, spec.end):
            help = "use fewer stairs, or make the range longer"
        return FaultError("FCS024", spec.node.range_span, message, help)


def resolve(
    phases: Phases,
    config: RunConfig,
    length: Fraction | None,
    batch: Span | None,
    faults: Collector,
) -> Plan | None:
    """The plan of a schedule for ``config.images`` images, or None where it has none.

    Args:
        phases: checked phases.
        config: the run's configuration.
        length: epochs of the whole run, where ranges are in per cent.
        batch: where the setting `batch` stands, if anywhere.
        faults: takes batches larger than the data, phases without a step, too many segments.
    """
    before = len(faults.found)
    for place, size in _too_large(phases, config, batch).items():
        where = f" ({config.method}'s default)" if size == config.batch and not batch else ""
        message = f"a batch of {size:,}{where} is larger than the {config.images:,} images"
        faults.add("FCS025", place, message, f"write `batch {config.images};` or less")
    stairs = 0
    for spec in phases.specs:
        stairs += spec.stairs
        if stairs > MAX_SEGMENTS:
            message = f"the plan has more than {MAX_SEGMENTS:,} segments"
            faults.add("FCS002", spec.node.span, message, "use fewer stairs or phases")
            break
    if len(faults.found) > before:
        return None
    resolver = _Resolver(config, phases.unit, length)
    for index, spec in enumerate(phases.specs):
        try:
            resolver.phase(index, spec)
        except FaultError as fault:
            faults.keep(fault.diagnostic)
    if len(faults.found) > before:
        return None
    return Plan(
        config.method,
        phases.unit,
        phases.specs[-1].end,
        config.images,
        tuple(resolver.segments),
        resolver.position,
        length if phases.unit == "percent" else None,
    )


def _too_large(phases: Phases, config: RunConfig, batch: Span | None) -> dict[Span, int]:
    """Batches larger than the data, by the place that says so."""
    found: dict[Span, int] = {}
    for spec in phases.specs:
        size = spec.batch if spec.batch is not None else config.batch
        if size <= config.images:
            continue
        if spec.batch is not None:
            found[spec.batch_span or spec.node.range_span] = size
        elif size not in found.values():
            found[batch or spec.node.range_span] = size
    return found
