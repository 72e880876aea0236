"""What a run writes of itself into its folder, weights apart; a full disk ends it in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastcl_cli.errors import RunFailedError, StoppedError
from fastcl_cli.plan import Plan
from fastcl_cli.train.folder import RunFolder


class Record:
    """Writes in the process that ``leads``; in the others it does nothing.

    Raises:
        RunFailedError: from each of its methods, where the folder cannot be written any more.
    """

    def __init__(self, folder: RunFolder, leads: bool) -> None:
        self._folder, self._leads = folder, leads

    @contextmanager
    def of_life(self, saved: Callable[[], int | None], **began: Any) -> Iterator[None]:
        """Note in ``events.jsonl`` what begins, and how it ends.

        Args:
            saved: tells the updates that the last checkpoint holds.
            began: what goes on, how and with what.
        """
        since = time.monotonic()
        self.note("started", **began)
        outcome, why = "failed", "ended without a word"
        try:
            yield
            outcome, why = "done", ""
        except StoppedError as error:
            outcome, why = "stopped", error.message
            raise
        except BaseException as error:
            why = str(error) or type(error).__name__
            raise
        finally:
            with suppress(RunFailedError):  # the error that is on its way says more
                seconds = time.monotonic() - since
                self.note("ended", step=saved(), outcome=outcome, why=why, seconds=seconds)

    def note(self, event: str, **fields: Any) -> None:
        """Something that happened to the run."""
        if self._leads:
            with writing(self._folder.events):
                self._folder.append_event(event, fields)

    def description(self, schedule: str, config: Mapping[str, Any], plan: Plan) -> None:
        """What the run is: its schedule, its resolved configuration, its plan."""
        if self._leads:
            with writing(self._folder.config):
                self._folder.write_description(schedule, config, plan.to_json())

    def metrics(self, line: Mapping[str, Any]) -> None:
        """A log line."""
        if self._leads:
            with writing(self._folder.metrics):
                self._folder.append_metrics(line)

    def decision(self, record: Mapping[str, Any], plan: Plan) -> None:
        """What an `auto` phase decided, and the plan since."""
        if self._leads:
            # In this order, so that whoever follows the decisions finds the plan they made.
            with writing(self._folder.decisions):
                self._folder.write_plan(plan.to_json())
                self._folder.append_decision(record)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, or gone, in words.

    Raises:
        RunFailedError: for an OSError, naming ``path``.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunFailedError(
            f"cannot write {path}: {reason}",
            "what was written before is whole: make room, then `--resume auto`",
        ) from error
