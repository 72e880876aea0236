"""Heat maps of figures over a grid of settings: as an SVG file, and as a table on a terminal.

Both use the viridis scale (perceptually uniform, readable without colour vision), darkest for the
least value, and print every value, so nothing depends on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

_VIRIDIS = ("440154", "414487", "2a788e", "22a884", "7ad151", "fde725")
"""viridis at 0, 0.2, ..., 1; straight lines between, which is near enough to order values."""
_CELL_WIDTH, _CELL_HEIGHT, _GAP, _TOP = 76, 34, 28, 54
_DIGIT = 7.0
"""Width of a character of the SVG's text, in its pixels: what label columns are sized by."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A figure over a grid.

    Attributes:
        title: what the figure is.
        row_name, column_name: what the rows and columns are, e.g. ``patch`` and ``drop``.
        rows, columns: their labels.
        values: one list for each row; None where there is no value. A value that is not finite is
            shown and has no colour.
        log: colour by the logarithm, of the values above 0; others get the least colour.
        marked: (row, column) of cells to frame, such as the one chosen.
        text: how a value is written.
    """

    title: str
    row_name: str
    column_name: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    log: bool = False
    marked: frozenset[tuple[int, int]] = frozenset()
    text: Callable[[float], str] = "{:.3g}".format

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.rows)
        assert all(len(row) == len(self.columns) for row in self.values)

    def colour(self, value: float) -> str | None:
        """The colour of a value as six hexadecimal digits; None where it has none."""
        if not math.isfinite(value):
            return None
        known = [v for v in chain(*self.values) if v is not None and math.isfinite(v)]
        if self.log:
            known = [math.log(v) for v in known if v > 0]
            value = math.log(value) if value > 0 else -math.inf
        low, high = min(known, default=0.0), max(known, default=0.0)
        return viridis((max(value, low) - low) / (high - low) if high > low else 0.5)


def viridis(share: float) -> str:
    """The colour at ``share``, 0 to 1, as six hexadecimal digits."""
    place = min(max(share, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    index = min(int(place), len(_VIRIDIS) - 2)
    ends = (bytes.fromhex(_VIRIDIS[index]), bytes.fromhex(_VIRIDIS[index + 1]))
    mixed = (round(a + (b - a) * (place - index)) for a, b in zip(*ends, strict=True))
    return bytes(mixed).hex()


def ink(colour: str) -> str:
    """Black or white as six hexadecimal digits: whichever is read better on ``colour`` (WCAG 2
    relative luminance; above 0.179 black has the higher contrast)."""
    shares = (byte / 255 for byte in bytes.fromhex(colour))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "000000" if luminance > 0.179 else "ffffff"


def heat_svg(*maps: HeatMap) -> str:
    """An SVG document of the maps, side by side."""
    return heat_sheet([maps])


def heat_sheet(rows: Sequence[Sequence[HeatMap]], *, inline: bool = False) -> str:
    """An SVG document of rows of maps, each row side by side.

    Args:
        inline: for a page: no paper of its own, labels in the colour of the text around it.
    """
    panels, width, y = [], 0, 0
    label = "currentColor" if inline else "#000000"
    paper = "" if inline else '<rect width="100%" height="100%" fill="#ffffff"/>\n'
    names = escape(", ".join(map_.title for maps in rows for map_ in maps))
    for maps in rows:
        x = _GAP
        for map_ in maps:
            panels.append(f'<g transform="translate({x} {y})">{_panel(map_, label)}</g>')
            x += _width(map_) + _GAP
        width = max(width, x)
        y += _TOP + max((len(m.rows) for m in maps), default=0) * _CELL_HEIGHT + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
        f'viewBox="0 0 {width} {y}" font-family="sans-serif" font-size="12" '
        f'role="img" aria-label="{names}">\n{paper}' + "\n".join(panels) + "\n</svg>\n"
    )


def _labels(map_: HeatMap) -> int:
    """Width of the column of row labels."""
    longest = max(map(len, [_corner(map_), *map_.rows]))
    return math.ceil(longest * _DIGIT) + 10


def _corner(map_: HeatMap) -> str:
    return f"{map_.row_name} \\ {map_.column_name}"


def _width(map_: HeatMap) -> int:
    cells = _labels(map_) + len(map_.columns) * _CELL_WIDTH
    return max(cells, math.ceil(len(map_.title) * _DIGIT * 1.2))


def _panel(map_: HeatMap, colour: str) -> str:
    left = _labels(map_)
    parts = [
        f'<text x="0" y="22" font-size="14" font-weight="bold" fill="{colour}">'
        f"{escape(map_.title)}</text>",
        _text(left - 8, _TOP - 8, "end", _corner(map_), colour),
    ]
    for column, label in enumerate(map_.columns):
        parts.append(_text(left + (column + 0.5) * _CELL_WIDTH, _TOP - 8, "middle", label, colour))
    frames = []
    for row, label in enumerate(map_.rows):
        y = _TOP + row * _CELL_HEIGHT
        parts.append(_text(left - 8, y + _CELL_HEIGHT / 2 + 4, "end", label, colour))
        for column in range(len(map_.columns)):
            x = left + column * _CELL_WIDTH
            parts.append(_cell(map_, row, column, x, y))
            if (row, column) in map_.marked:
                size = f'width="{_CELL_WIDTH - 4}" height="{_CELL_HEIGHT - 4}"'
                frames.append(
                    f'<rect x="{x + 2}" y="{y + 2}" {size} fill="none" stroke="#d62728" '
                    'stroke-width="3"/>'
                )
    return "\n".join([*parts, *frames])


def _cell(map_: HeatMap, row: int, column: int, x: int, y: int) -> str:
    value = map_.values[row][column]
    shown = "–" if value is None else map_.text(value)
    colour = (None if value is None else map_.colour(value)) or "eeeeee"
    place = (
        f"{map_.row_name} {map_.rows[row]}, {map_.column_name} {map_.columns[column]}: "
        f"{'no value' if value is None else shown}"
    )
    label = _text(x + _CELL_WIDTH / 2, y + _CELL_HEIGHT / 2 + 4, "middle", shown, f"#{ink(colour)}")
    return (
        f'<g><title>{escape(place)}</title><rect x="{x}" y="{y}" width="{_CELL_WIDTH}" '
        f'height="{_CELL_HEIGHT}" fill="#{colour}" stroke="#ffffff"/>{label}</g>'
    )


def _text(x: float, y: float, anchor: str, text: str, colour: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def heat_table(map_: HeatMap) -> Table:
    """The map for a terminal; without colour the figures remain. Marked cells are underlined."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.title, table.title_justify, table.title_style = Text(map_.title), "left", ""
    table.add_column(_corner(map_), justify="right", no_wrap=True)
    for label in map_.columns:
        table.add_column(Text(f" {label} "), justify="center", no_wrap=True)
    for row, label in enumerate(map_.rows):
        cells: list[Text] = []
        for column, value in enumerate(map_.values[row]):
            style = "underline " if (row, column) in map_.marked else ""
            colour = None if value is None else map_.colour(value)
            if colour is not None:
                style += f"#{ink(colour)} on #{colour}"
            shown = "–" if value is None else map_.text(value)
            cells.append(Text(shown.center(10), style))
        table.add_row(f"{label} ", *cells)
    return table
