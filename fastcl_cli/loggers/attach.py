"""Loggers beside a screen: asked for by name, and never in the way of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from fastcl_cli.errors import MissingLibraryError
from fastcl_cli.events import Emit, Event, Notice, RunFinished, RunStarted, StepLogged
from fastcl_cli.extras import need_extra, pip_install
from fastcl_cli.loggers.logger import Logger

LoggerName = Literal["tensorboard", "wandb"]


def need_loggers(names: Iterable[LoggerName]) -> None:
    """Make sure that what loggers need is installed, without importing it.

    Raises:
        MissingLibraryError: naming what is missing and the line that installs it.
    """
    for name in names:
        need_extra(name, name)


def make_loggers(names: Iterable[LoggerName]) -> list[Logger]:
    """The loggers called so, each once, ready to start.

    Raises:
        MissingLibraryError: a library is missing, or does not load.
        UsageError: as `WandB`.
    """
    names = list(dict.fromkeys(names))
    need_loggers(names)
    return [_make(name) for name in names]


def _make(name: LoggerName) -> Logger:
    try:
        if name == "tensorboard":
            from fastcl_cli.loggers.tensorboard import TensorBoard

            return TensorBoard()
        from fastcl_cli.loggers.wandb import WandB

        return WandB()
    except ImportError as error:
        raise MissingLibraryError(
            f"{name} cannot be loaded: {error}", pip_install(name, "--force-reinstall")
        ) from error


@contextmanager
def attached(loggers: Sequence[Logger], screen: Emit) -> Iterator[Emit]:
    """Give what passes events on to a screen and to loggers.

    A logger that fails, whatever the reason, is left out from then on, and the screen says so once.
    """
    guarded = [_Guarded(logger, lambda text: screen(Notice(text))) for logger in loggers]

    def emit(event: Event) -> None:
        screen(event)
        for logger in guarded:
            logger(event)

    try:
        yield emit
    finally:
        for logger in guarded:
            logger.end(succeeded=False)


class _Guarded:
    """A logger that may fail."""

    def __init__(self, logger: Logger, say: Callable[[str], None]) -> None:
        self._logger = logger
        self._say = say
        self._ended = False

    def __call__(self, event: Event) -> None:
        if self._ended:
            return
        try:
            match event:
                case RunStarted():
                    place = self._logger.start(event)
                    self._say(f"{self._logger.name}: {place}")
                case StepLogged():
                    self._logger.log(event.metrics)
                case RunFinished():
                    self._logger.finish(True)
                    self._ended = True
                case _:
                    pass
        except Exception as error:
            self._fail(error)

    def end(self, succeeded: bool) -> None:
        """Close it, where the run has not come to its end."""
        if self._ended:
            return
        try:
            self._logger.finish(succeeded)
        except Exception as error:
            self._fail(error)
        self._ended = True

    def _fail(self, error: Exception) -> None:
        self._ended = True
        first = (str(error).splitlines() or [""])[0]
        self._say(
            f"warning: {self._logger.name} logs no more: {type(error).__name__}: {first}; "
            "the run goes on, and metrics.jsonl has every figure"
        )
