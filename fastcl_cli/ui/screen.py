"""What a person sees of a run: a screen draws from events alone."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from fastcl_cli.events import Emit

Ui = Literal["tui", "plain", "none"]


def open_screen(ui: Ui | None) -> AbstractContextManager[Emit]:
    """The screen that was asked for: by default the TUI on a terminal and plain lines elsewhere."""
    chosen = ui or ("tui" if sys.stdout.isatty() else "plain")
    if chosen == "none":
        return nullcontext(lambda event: None)
    if chosen == "plain":
        from fastcl_cli.ui.run_plain import Plain

        return nullcontext(Plain())
    from fastcl_cli.ui.run_tui import Tui

    return Tui()
