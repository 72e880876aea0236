"""A bar on stderr for long work; nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastcl_cli.ui.console import stderr


@contextmanager
def stage_bar(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work in stages that reports (what it is at, done, total); each starts anew.

    It holds the screen from the first report on: a download before that shows a bar of its own.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = stderr()
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    task = bar.add_task("", total=None, visible=False)
    current = ""

    def report(text: str, done: int, total: int) -> None:
        nonlocal current
        bar.start()
        if text != current:
            current = text
            bar.reset(task, description=text, visible=True)
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()


@contextmanager
def progress_bar(text: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar for work of one kind that reports (done, total)."""
    with stage_bar(shown) as report:
        yield lambda done, total: report(text, done, total)
