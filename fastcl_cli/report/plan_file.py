"""A run's ``plan.json``, read as if anyone had written it."""

from __future__ import annotations

from fractions import Fraction

from fastcl_cli.config import METHODS
from fastcl_cli.json_fields import Fields
from fastcl_cli.plan import Compression, Plan, Position, Segment, Tokens, View

MAX_SEGMENTS = 30_000
"""The language allows 20,000, and `auto` phases may have been cut into more."""


def plan_from_json(value: object) -> Plan:
    """The plan that `Plan.to_json` wrote, but for ``length``, which only moves need.

    Raises:
        ValueError: it is none, with the place and what is allowed there.
    """
    top = Fields(value, "")
    images = top.whole("images")
    segments: list[Segment] = []
    for item in top.objects("segments", 1, MAX_SEGMENTS):
        first = segments[-1].end_step if segments else 0
        segments.append(_segment(item, first, images))
    epochs = Fraction(top.number("epochs", 0, 1e9, above=True))
    whole = int(epochs)
    return Plan(
        method=METHODS[METHODS.index(top.text("method", METHODS))],
        unit=top.text("unit", ("epochs", "steps", "percent")),  # type: ignore[arg-type]
        total=_exact(top, "total"),
        images=images,
        segments=tuple(segments),
        end=Position(whole, round((epochs - whole) * images)),
    )


def _exact(fields: Fields, name: str) -> Fraction:
    return Fraction(repr(fields.number(name, 0, 1e9)))


def _segment(fields: Fields, first: int, images: int) -> Segment:
    start = fields.whole("first_step", 0)
    if start != first:
        fields.refuse("first_step", start, f"{first}, where the segment before ends")
    place = fields.inner("position")
    online, seen = encoder(fields.inner("online"))
    target, looked = encoder(fields.inner("target")) if fields.has("target") else (None, None)
    views = []
    for item in fields.objects("views", 1, 2):
        kind = item.text("name", ("global", "local"))
        tokens = _tokens(item, seen.patch)
        side, count = item.whole("side"), item.whole("count", 1, 1000)
        # The target sees global views alone.
        shown = looked if kind == "global" else None
        views.append(View(kind, count, side, tokens, shown))  # type: ignore[arg-type]
    return Segment(
        start=_exact(fields, "start"),
        end=_exact(fields, "end"),
        first_step=start,
        end_step=fields.whole("end_step", start + 1),
        batch=fields.whole("batch", 1, images),
        position=Position(place.whole("epoch", 0), place.whole("offset", 0, images)),
        phase=fields.whole("phase", 0),
        online=online,
        target=target,
        views=tuple(views),
        sample_cost=fields.number("sample_cost", 0, 1e6, above=True),
        auto=fields.flag("auto"),
    )


def encoder(fields: Fields) -> tuple[Compression, Tokens]:
    """What `plan` writes of one encoder."""
    drop = fields.number("drop", 0, 1)
    patch = fields.whole("patch", 1, 100_000)
    return Compression(Fraction(repr(drop)), patch), _tokens(fields, patch)


def _tokens(fields: Fields, patch: int) -> Tokens:
    grid = fields.whole("grid", 1, 100_000)
    return Tokens(patch, grid, fields.whole("tokens", 1, grid * grid))
