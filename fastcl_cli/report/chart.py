"""Line charts as SVG: axes with round numbers, curves, bands, marks, a legend.

Colours and fonts are classes of ``chart.css``, which a page includes once and a file of its own
carries (`as_file`). Curves differ by dashes, too, and marks by shape, so none needs its colour.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, BOTTOM, LINE = 74, 16, 42, 18
CHARACTER = 6.6
"""Width of a letter of a label, on average."""
COLOURS = 8
OUTLYING = 0.02
"""Share of values at either end that a `robust` axis need not show."""


@dataclass(frozen=True)
class Curve:
    """Points from left to right; ``band`` has the bounds of a band around them, None where there is
    none. ``marks`` draws the points, ``line`` what joins them; ``tips`` name the points; ``style``
    is the number of its colour, dashes and shape."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float] | None] = ()
    marks: bool = False
    line: bool = True
    tips: Sequence[str] = ()
    style: int = 0


@dataclass(frozen=True)
class Chart:
    """A figure's axes and curves.

    Attributes:
        title, description: what it shows, for who cannot see it.
        x_format: of the numbers at the axis; by default as few digits as tell them apart.
        x_end: how far the x axis goes at least, from 0.
        bounds: places on the x axis where segments of the plan meet.
        robust: leave outliers above or below the chart.
        diagonal: draw y = x.
        zero: the y axis begins at 0.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    x_format: Callable[[float], str] | None = None
    y_format: Callable[[float], str] | None = None
    x_end: float = 0.0
    bounds: Sequence[float] = ()
    robust: bool = False
    diagonal: bool = False
    zero: bool = False


def draw(chart: Chart, key: str) -> str:
    """The chart as an ``<svg>`` element whose ids begin with ``key``."""
    legend, top = _legend([(curve.style, curve.name) for curve in chart.curves if curve.name])
    xs = [chart.x_end, *(x for curve in chart.curves for x in curve.x)]
    x_ticks = ticks(0.0, max(xs), 6)
    y_ticks = ticks(*_y_range(chart), 5)
    x_low, x_high = 0.0, max(xs) or x_ticks[-1]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def px(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        place = top + (y_high - y) / (y_high - y_low) * (HEIGHT - top - BOTTOM)
        return min(max(place, -HEIGHT), 2 * HEIGHT)

    parts = [*legend]
    x_text = chart.x_format or _labels(x_ticks)
    y_text = chart.y_format or _labels(y_ticks)
    for tick in y_ticks:
        y = py(tick)
        kind = "base" if tick == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 7, y + 4, "end", y_text(tick)))
    for tick in x_ticks:
        if tick <= x_high:
            x = px(tick)
            parts.append(f'<path class="tick" d="M{x:.1f} {HEIGHT - BOTTOM}v5"/>')
            parts.append(_text(x, HEIGHT - BOTTOM + 18, "middle", x_text(tick)))
    for bound in chart.bounds:
        if x_low < bound < x_high:
            parts.append(f'<path class="bound" d="M{px(bound):.1f} {top}V{HEIGHT - BOTTOM}"/>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 6, "middle", chart.x_label, "name"))
    turned = f"rotate(-90 14 {(top + HEIGHT - BOTTOM) / 2:.0f})"
    parts.append(
        f'<text class="name" text-anchor="middle" x="14" y="{(top + HEIGHT - BOTTOM) / 2:.0f}" '
        f'transform="{turned}">{escape(chart.y_label)}</text>'
    )
    window = f'<rect x="{LEFT}" y="{top - 4}" width="{WIDTH - LEFT - RIGHT + 5}" '
    window += f'height="{HEIGHT - BOTTOM - top + 8}"/>'
    parts.append(f'<clipPath id="{key}-w">{window}</clipPath><g clip-path="url(#{key}-w)">')
    if chart.diagonal:
        end = min(x_high, y_high)
        parts.append(
            f'<path class="ideal" d="M{px(0):.1f} {py(0):.1f}L{px(end):.1f} {py(end):.1f}"/>'
        )
    for curve in chart.curves:
        parts += _curve(curve, px, py)
    parts.append("</g>")
    return svg(WIDTH, HEIGHT, chart.title, chart.description, key, parts)


def svg(
    width: float, height: float, title: str, description: str, key: str, parts: Sequence[str]
) -> str:
    """An ``<svg>`` element with a title and a description that screen readers say."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>' + "".join(parts) + "</svg>"
    )


def as_file(element: str) -> str:
    """The same as a document of its own, in light colours: what papers and other programs take,
    which may know no variables."""
    style = re.sub(r"var\(--[a-z0-9-]+, *([^)]+)\)", r"\1", chart_css())
    end = element.index(">") + 1
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f"{element[:end]}<style>{style}</style>{paper}{element[end:]}\n"


@cache
def chart_css() -> str:
    """The rules that charts are drawn by."""
    return (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")


def _text(x: float, y: float, anchor: str, text: str, kind: str = "label") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _legend(named: Sequence[tuple[int, str]]) -> tuple[list[str], int]:
    """The names of the curves at the top, and where the chart begins below them."""
    parts: list[str] = []
    x, y = float(LEFT), 16
    for index, name in named:
        name = name if len(name) <= 44 else f"{name[:43]}…"
        room = 34 + CHARACTER * len(name)
        if x > LEFT and x + room > WIDTH - RIGHT:
            x, y = float(LEFT), y + LINE
        parts.append(f'<path class="curve {_style(index)}" d="M{x:.1f} {y - 4}h22"/>')
        parts.append(_text(x + 27, y, "start", name))
        x += room + 8
    return parts, y + 12 if named else 14


def _style(index: int) -> str:
    return f"c{index % COLOURS} d{(index % COLOURS) % 4 + (index // COLOURS)}"


def _curve(curve: Curve, px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    parts, index = [], curve.style
    bands = [(x, band) for x, band in zip(curve.x, curve.band, strict=False) if band is not None]
    if len(bands) > 1:
        upper = " ".join(f"{px(x):.1f},{py(high):.1f}" for x, (_, high) in bands)
        lower = " ".join(f"{px(x):.1f},{py(low):.1f}" for x, (low, _) in reversed(bands))
        parts.append(f'<polygon class="band c{index % COLOURS}" points="{upper} {lower}"/>')
    points = [(px(x), py(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    if curve.line and len(points) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="curve {_style(index)}" points="{path}"/>')
    if curve.marks or len(points) == 1:
        for number, (x, y) in enumerate(points):
            tip = f"<title>{escape(curve.tips[number])}</title>" if curve.tips else ""
            parts.append(_mark(index, x, y, tip))
    return parts


def _mark(index: int, x: float, y: float, tip: str) -> str:
    colour = f"mark c{index % COLOURS}"
    match index % 4:
        case 0:
            return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.6">{tip}</circle>'
        case 1:
            shape = f"M{x - 3.4:.1f} {y - 3.4:.1f}h6.8v6.8h-6.8z"
        case 2:
            shape = f"M{x:.1f} {y - 4.6:.1f}l4.4 8h-8.8z"
        case _:
            shape = f"M{x:.1f} {y - 4.8:.1f}l4.8 4.8l-4.8 4.8l-4.8 -4.8z"
    return f'<path class="{colour}" d="{shape}">{tip}</path>'


def _y_range(chart: Chart) -> tuple[float, float]:
    values = sorted(y for curve in chart.curves for y in curve.y)
    if not values:
        return 0.0, 1.0
    if chart.robust and len(values) >= 20:
        cut = int(len(values) * OUTLYING)
        values = values[cut : len(values) - cut]
    low, high = values[0], values[-1]
    # Bands may take as much room again on either side; a wide one is cut.
    bands = [band for curve in chart.curves for band in curve.band if band is not None]
    if bands:
        span = high - low
        low = max(min(low, *(band[0] for band in bands)), low - span)
        high = min(max(high, *(band[1] for band in bands)), high + span)
    if chart.zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if chart.diagonal:
        high = max(high, 1.0)
    return low, high


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, about ``count``, from at or below ``low`` to at or above ``high``."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-200):
        low, high = (0.0, 1.0) if low == 0 else (low - abs(low) * 0.05, low + abs(low) * 0.05)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _labels(marks: Sequence[float]) -> Callable[[float], str]:
    """Numbers with as many decimals as tell neighbours apart."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    largest = max(abs(mark) for mark in marks)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return lambda value: "0" if value == 0 else f"{value:.3g}".replace("e-0", "e-")
    decimals = 0
    while decimals < 8 and abs(step - round(step, decimals)) > step * 1e-6:
        decimals += 1
    return lambda value: f"{value:,.{decimals}f}"
