"""The words of the language that are not settings, and the limits of a file."""

from __future__ import annotations

from typing import Final

UNITS: Final = ("epochs", "steps")
CLAUSES: Final = ("drop", "patch", "full", "auto", "batch")
SIDES: Final = ("online", "target", "both")

MAX_BYTES = 1_000_000
MAX_PHASES = 10_000
MAX_SETTINGS = 150
"""Many more than there are: what comes after so many can only be wrong."""
MAX_STATEMENTS = MAX_PHASES + MAX_SETTINGS
MAX_COMMENTS = 50_000
MAX_CLAUSES = 5
"""Of a phase: drop and patch for two encoders each, and batch."""
MAX_STATEMENT_WORDS = 48
"""Words, numbers and signs; the longest that means something has 41."""
MAX_STATEMENT_CHARACTERS = 300
MAX_STATEMENT_WITH_STRING = 4_000
MAX_STAIRS = 1_000
MAX_SEGMENTS = 20_000
MAX_CHOICES = 64
"""Settings that `auto` phases choose from: every drop with every patch."""
MAX_CHOICES_OF_A_KIND = 16
"""Drops, or patches: so many fit into the words of a statement."""
