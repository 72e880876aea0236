"""The two consoles that everything is printed on.

Neither interprets markup or highlights numbers: what is printed may hold a user's text. Colour
follows the terminal and NO_COLOR.
"""

from __future__ import annotations

from functools import cache

from rich.console import Console

PLAIN_WIDTH = 120
"""Columns where the output is not a terminal."""


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


@cache
def stdout() -> Console:
    """Results."""
    return _console(stderr=False)


@cache
def stderr() -> Console:
    """Everything else."""
    return _console(stderr=True)
