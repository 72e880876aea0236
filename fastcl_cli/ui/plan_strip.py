"""A plan as one line: the run from left to right, shaded and coloured by what an image costs."""

from __future__ import annotations

from rich.text import Text

from fastcl_cli.plan import Plan, Segment
from fastcl_cli.ui.run_words import short

_SHADES = ((0.25, "░", "green"), (0.5, "▒", "cyan"), (0.85, "▓", "yellow"), (9.0, "█", "red"))
_AUTO = ("~", "magenta")


def shade(segment: Segment) -> tuple[str, str]:
    """The character and colour that stand for a segment's sample cost, where that is fixed."""
    if segment.auto:
        return _AUTO
    return next(((mark, colour) for most, mark, colour in _SHADES if segment.sample_cost <= most))


def strip(plan: Plan, width: int, step: int | None = None) -> Text:
    """The plan's segments side by side, each as wide as its steps.

    Args:
        width: in characters.
        step: where a run stands: there is a mark, and segments say what the online encoder sees
            where there is room.
    """
    segments = [plan.at(column * plan.steps // width) for column in range(width)]
    cells = [shade(segment) for segment in segments]
    if step is not None:
        mark = min(width - 1, step * width // plan.steps)
        for segment in {id(segment): segment for segment in segments}.values():
            first = -(-segment.first_step * width // plan.steps)
            end = -(-segment.end_step * width // plan.steps)
            label = f" {short(segment)} "
            if first <= mark < first + len(label):
                first = mark + 1  # the mark must not cut it
            if first + len(label) <= end:
                cells[first : first + len(label)] = [(letter, "bold") for letter in label]
        cells[mark] = "▼", "bold reverse"
    return Text.assemble(*cells)
