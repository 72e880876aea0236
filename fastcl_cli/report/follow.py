"""A run's files as the events that its trainer gives to the screen."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcl_cli.errors import RunFolderError
from fastcl_cli.events import (
    CheckpointSaved,
    Decided,
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StepLogged,
)
from fastcl_cli.report.description import describe
from fastcl_cli.report.lines import Lines
from fastcl_cli.report.records import (
    Decision,
    Ended,
    Started,
    Warned,
    decision,
    happened,
    metrics,
)
from fastcl_cli.run_files import RunFiles

BACKLOG = 500
"""Log lines, and as many with k-NN, that are told at once: of a long run's past, the newest."""
FEW = 100
"""Decisions and warnings, likewise."""
_CHECKPOINT = re.compile(r"step-([0-9]{8,10})\.safetensors")


class Follower:
    """Tells what has happened to a run since it was last asked, from its folder alone.

    Where a run is resumed, or a new one takes its place, it is told anew from `RunStarted` on.
    Nothing in the folder is changed, and memory does not grow with the run.

    Raises:
        RunFolderError: the folder is not that of a run.
    """

    def __init__(self, folder: Path) -> None:
        self._files = RunFiles(folder)
        self._described = describe(folder)
        self._happened = Lines(self._files.events, happened)
        self._metrics = Lines(self._files.metrics, metrics)
        self._decisions = Lines(self._files.decisions, decision)
        self._started: Started | None = None
        self._seconds = 0.0
        self._checkpoint = -1
        self._step = 0
        self.ended: Ended | None = None
        self.anew = False
        """The folder is being written anew, so files may be missing for a moment."""

    def poll(self) -> list[Event]:
        """Events since the last call; `ended` is set with the last ones.

        The order of reading is the trainer's order of writing, backwards where a later file would
        otherwise tell of what an earlier one did not hold yet.

        Raises:
            RunFolderError: a file is damaged, or was removed.
        """
        lines = (self._happened, self._metrics, self._decisions)
        if any(one.replaced() for one in lines):
            for one in lines:
                one.close()
            self._started, self._seconds, self.anew = None, 0.0, True
        began, notices = self._sessions()
        if anew := self.anew or began:
            self._described = describe(self._files.path)
            self._metrics.close()
            self._decisions.close()
            self._checkpoint = -1
            self._step = 0
        told: list[Event] = []
        if self._started is None:
            raise RunFolderError(
                f"{self._files.events}: no run has started here",
                "only runs of this fastcl, or a newer one, can be followed",
            )
        logged = list(self._logged())
        decided = list(deque(self._decisions.new(), maxlen=FEW))
        if decided and not anew:
            self._described = describe(self._files.path)
        if anew:
            told.append(self._opening(self._started))
        told += notices
        told += self._in_order(logged, decided)
        told += self._saved()
        if self.ended is not None:
            told += self._closing(self.ended)
        self.anew = False
        return told

    def _sessions(self) -> tuple[bool, list[Event]]:
        """Read ``events.jsonl`` on: whether a process has begun, and what there is to say."""
        began, warned = False, deque[Event](maxlen=FEW)
        for one in self._happened.new():
            match one:
                case Started():
                    self._started, self.ended, began = one, None, True
                    warned.clear()
                    if one.step:
                        warned.append(Notice(f"resumed after {one.step:,} steps, {one.time}"))
                case Warned():
                    warned.append(Notice(one.text))
                case Ended():
                    self.ended = one
                    self._seconds += one.seconds
        return began, list(warned)

    def _opening(self, session: Started) -> RunStarted:
        plan = self._described.plan
        return RunStarted(
            title=session.title,
            folder=self._files.path,
            plan=plan,
            step=session.step,
            stop_step=min(session.stop_step, plan.steps),
            device=session.device,
            precision=session.precision,
            parameters=session.parameters,
            images=session.images,
        )

    def _logged(self) -> Iterator[dict[str, Any]]:
        """New log lines, the newest `BACKLOG` of each kind at most."""
        plan = self._described.plan
        newest = deque[dict[str, Any]](maxlen=BACKLOG)
        judged = deque[dict[str, Any]](maxlen=BACKLOG)
        for line in self._metrics.new():
            if not self._step < line["step"] <= plan.steps:
                raise RunFolderError(
                    f"{self._files.metrics}: step {line['step']} after step {self._step} "
                    f"of {plan.steps}"
                )
            self._step = line["step"]
            if len(newest) == BACKLOG and "knn" in newest[0]:
                judged.append(newest[0])
            newest.append(line)
        yield from judged
        yield from newest

    def _in_order(
        self, logged: list[dict[str, Any]], decided: list[Decision]
    ) -> Iterator[StepLogged | Decided]:
        """By step; a decision comes before the line of the first step that it is for."""
        plan = self._described.plan
        moves = iter(decided)
        move = next(moves, None)
        for line in logged:
            while move is not None and move.step < line["step"]:
                yield Decided(move.step, move.after, move.why, plan)
                move = next(moves, None)
            yield StepLogged(line)
        for left in [*([move] if move else []), *moves]:
            yield Decided(left.step, left.after, left.why, plan)

    def _saved(self) -> Iterator[CheckpointSaved]:
        try:
            found = [
                (int(match[1]), path)
                for path in self._files.checkpoints.iterdir()
                if (match := _CHECKPOINT.fullmatch(path.name))
            ]
        except OSError:
            return  # not made yet
        step, path = max(found, default=(-1, Path()))
        if step > self._checkpoint:
            self._checkpoint = step
            yield CheckpointSaved(step, path)

    def _closing(self, ended: Ended) -> Iterator[Event]:
        if ended.outcome == "done":
            described, step = self._described, ended.step or self._step
            yield RunFinished(
                step, described.plan.steps, self._seconds, self._files.path, described.load_line
            )
        else:
            how = "failed: " if ended.outcome == "failed" else "was "
            yield Notice(f"the run {how}{ended.why}")
