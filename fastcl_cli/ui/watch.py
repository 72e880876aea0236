"""`fastcl watch`: the screen of a run, drawn from its folder by another process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fastcl_cli.errors import RunFolderError
from fastcl_cli.events import Event, Notice, StepLogged
from fastcl_cli.report.follow import Follower
from fastcl_cli.ui.run_words import duration
from fastcl_cli.ui.screen import Ui, open_screen

SECONDS_BETWEEN_LOOKS = 0.25
PATIENCE = 20
"""Looks for which a folder that is being written anew may be without its files."""
SILENT_S, SILENT_LINES = 120.0, 10
"""How long, and how many times as long as between the last lines, nothing must come before it is
said that the run may be gone."""


def watch(folder: Path, ui: Ui | None) -> None:
    """Show a run until it ends, or until Ctrl-C, which leaves it alone.

    Raises:
        RunFolderError: the folder is not, or no longer, that of a run.
    """
    follower = Follower(folder)
    silence, misses = Silence(), 0
    with open_screen(ui) as emit:
        try:
            while True:
                try:
                    events, misses = follower.poll(), 0
                except RunFolderError:
                    misses += 1
                    if not follower.anew or misses > PATIENCE:
                        raise
                    events = []
                for event in events:
                    emit(event)
                if follower.ended is not None:
                    return
                if (words := silence.after(events)) is not None:
                    emit(Notice(words))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            emit(Notice("no longer watching; the run goes on"))


class Silence:
    """Says, once for each time, that nothing has come from a run for unusually long: one that was
    killed leaves no word."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._usual = 0.0
        self._step: int | None = None
        self._said = False

    def after(self, events: Sequence[Event]) -> str | None:
        """What there is to say after another look, if anything."""
        for event in events:
            if isinstance(event, StepLogged):
                step, seconds = event.metrics["step"], event.metrics["step_s"]
                if self._step is not None:
                    self._usual = (step - self._step) * seconds
                self._step = step
        if events:
            self._since, self._said = time.monotonic(), False
            return None
        silent = time.monotonic() - self._since
        if self._said or silent < max(SILENT_S, SILENT_LINES * self._usual):
            return None
        self._said = True
        return f"nothing new for {duration(silent)}: the run may have been killed"
