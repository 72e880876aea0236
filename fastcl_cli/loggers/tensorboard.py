"""TensorBoard: ``RUN/tensorboard/``, one event file for each start of the run.

A resumed run marks where it goes on, as TensorBoard asks for: what an earlier file holds beyond
that step counts no more. Records are written and flushed one by one, in this thread, so that a file
holds all that was logged when a run is killed, and a full disk is noticed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastcl_cli.events import RunStarted
from fastcl_cli.loggers.logger import scalars, written
from fastcl_cli.run_files import RunFiles


class TensorBoard:
    name = "TensorBoard"

    def __init__(self) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._event, self._log = event_pb2.Event, event_pb2.SessionLog
        self._summary = summary_pb2.Summary
        self._records: Any = None

    def start(self, event: RunStarted) -> str:
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = RunFiles(event.folder).tensorboard
        folder.mkdir(exist_ok=True)
        files = sorted(folder.glob("*tfevents*"))
        last = max((step for path in files for step in _steps(path)), default=0)
        # TensorBoard reads a folder's files in the order of their names.
        path = folder / f"events.out.tfevents.{len(files):04d}"
        self._records = RecordWriter(path.open("xb"))
        self._write(self._event(file_version="brain.Event:2"))
        if event.step > 0:
            first = event.step + 1
            self._write(self._event(step=first, session_log=self._log(status=self._log.START)))
        for line in written(event.folder, last, event.step):
            self.log(line)
        return f"tensorboard --logdir {folder}"

    def log(self, metrics: Mapping[str, Any]) -> None:
        values = [
            self._summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars(metrics).items()
            if tag != "step"
        ]
        self._write(self._event(step=metrics["step"], summary=self._summary(value=values)))

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()

    def finish(self, succeeded: bool) -> None:
        if self._records is not None:
            self._records.close()


def _steps(path: Path) -> Iterator[int]:
    """The steps that an event file has figures of."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for event in EventFileLoader(str(path)).Load():
        if event.HasField("summary"):
            yield event.step
