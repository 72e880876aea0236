"""Heat maps: every value stands where it belongs, in a colour that orders it."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from rich.console import Console

from fastcl_cli.ui.heatmap import HeatMap, heat_svg, heat_table, ink, viridis

SVG = "{http://www.w3.org/2000/svg}"
MAP = HeatMap(
    "sample <cost> & more",
    "patch",
    "drop",
    ["16", "32"],
    ["0", "0.5", "0.75"],
    [[1.0, 0.46, None], [0.25, 0.125, math.inf]],
    marked=frozenset({(1, 0)}),
)


def luminance(colour: str) -> float:
    shares = [byte / 255 for byte in bytes.fromhex(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_scale_grows_lighter_from_end_to_end() -> None:
    steps = [luminance(viridis(i / 100)) for i in range(101)]
    assert steps == sorted(steps) and len(set(steps)) > 95
    assert (viridis(0), viridis(1)) == ("440154", "fde725")
    assert (viridis(-1), viridis(2)) == (viridis(0), viridis(1))


@pytest.mark.parametrize("share", [i / 20 for i in range(21)])
def test_text_can_be_read_on_every_colour(share: float) -> None:
    """Contrast of 4.5 is what WCAG 2 asks of small text."""
    colour = viridis(share)
    light, dark = sorted((luminance(colour), luminance(ink(colour))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_colours_follow_the_values_on_both_scales() -> None:
    ends = (viridis(0), viridis(1))
    assert (MAP.colour(0.125), MAP.colour(1.0)) == ends
    assert MAP.colour(0.5625) == viridis(0.5)
    logarithmic = replace(MAP, log=True)
    assert (logarithmic.colour(0.125), logarithmic.colour(1.0)) == ends
    assert logarithmic.colour(math.sqrt(0.125)) == viridis(0.5)
    assert logarithmic.colour(-3.0) == logarithmic.colour(0.0) == viridis(0)
    assert MAP.colour(math.inf) is None and MAP.colour(math.nan) is None
    one = replace(MAP, rows=["16"], columns=["0"], values=[[2.0]])
    assert one.colour(2.0) == viridis(0.5)
    none = replace(one, values=[[None]])
    assert none.colour(0.0) == viridis(0.5)


def test_an_svg_holds_every_cell_in_its_place() -> None:
    root = ElementTree.fromstring(heat_svg(MAP, replace(MAP, title="other")))
    panels = root.findall(f"{SVG}g")
    assert len(panels) == 2
    cells = panels[0].findall(f"{SVG}g")
    found = {cell.findtext(f"{SVG}title"): cell for cell in cells}
    assert set(found) == {
        "patch 16, drop 0: 1",
        "patch 16, drop 0.5: 0.46",
        "patch 16, drop 0.75: no value",
        "patch 32, drop 0: 0.25",
        "patch 32, drop 0.5: 0.125",
        "patch 32, drop 0.75: inf",
    }
    for place, cell in found.items():
        assert place is not None
        rect, text = cell.find(f"{SVG}rect"), cell.find(f"{SVG}text")
        assert rect is not None and text is not None
        inside = float(text.attrib["x"]) - float(rect.attrib["x"])
        assert 0 < inside < float(rect.attrib["width"])
        value = place.split(": ")[1]
        assert text.text == ("–" if value == "no value" else value)
        no_colour = value in ("no value", "inf")
        fill = "eeeeee" if no_colour else MAP.colour(float(value))
        assert rect.attrib["fill"] == f"#{fill}"
    frame = [r for r in panels[0].findall(f"{SVG}rect") if r.get("fill") == "none"]
    marked = found["patch 32, drop 0: 0.25"].find(f"{SVG}rect")
    assert len(frame) == 1 and marked is not None
    assert float(frame[0].attrib["x"]) - float(marked.attrib["x"]) == 2
    titles = [panel.findtext(f"{SVG}text") for panel in panels]
    assert titles == ["sample <cost> & more", "other"]


def test_panels_do_not_overlap() -> None:
    wide = replace(MAP, title="a title that is much longer than its three cells, " * 2)
    root = ElementTree.fromstring(heat_svg(wide, MAP))
    starts = [
        float(panel.attrib["transform"].removeprefix("translate(").split()[0])
        for panel in root.findall(f"{SVG}g")
    ]
    assert starts[1] - starts[0] > 7 * len(wide.title)
    assert float(root.attrib["width"]) > starts[1] + 3 * 76


@pytest.mark.parametrize("colour", [None, "truecolor"])
def test_a_terminal_shows_the_same_figures(colour: str | None) -> None:
    output = io.StringIO()
    console = Console(
        file=output, width=120, color_system=colour, force_terminal=True, markup=False
    )  # type: ignore[arg-type]
    console.print(heat_table(MAP))
    text = output.getvalue()
    for part in ("sample <cost> & more", "0.46", "0.125", "–", "patch \\ drop"):
        assert part in text
    assert ("\x1b[4;38;2" in text) == (colour is not None)
