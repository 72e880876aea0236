"""Going on from a checkpoint: which one, and whether it is of this run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastcl_cli.checkpoint import RunHeader, read_run_header
from fastcl_cli.errors import UsageError
from fastcl_cli.plan import Plan
from fastcl_cli.processes import distributed
from fastcl_cli.train.changes import Changes, compare
from fastcl_cli.train.folder import RunFolder
from fastcl_cli.train.request import RunRequest


def to_resume(
    request: RunRequest, folder: RunFolder, announce: Callable[[str], None]
) -> Path | None:
    """The checkpoint that ``--resume`` asks for, the same in all processes; None for a new run.

    Raises:
        CheckpointError, UsageError: as `RunFolder.newest_whole`, or ``--init-from`` is given, too.
    """
    checkpoint = None
    if request.resume == "auto":
        checkpoint = _newest(folder, announce)
    elif request.resume != "never":
        checkpoint = Path(request.resume)
    distributed.need_equal(str(checkpoint), "the checkpoint to go on from")
    if checkpoint is not None and request.init_from is not None:
        raise UsageError("--init-from starts a new run and cannot go with a resumed one")
    return checkpoint


def _newest(folder: RunFolder, announce: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint, which process 0 looks for."""
    found = folder.newest_whole(announce) if distributed.rank() == 0 else None
    step = distributed.greatest(-1 if found is None else folder.step_of(found))
    return None if step < 0 else folder.checkpoint(step)


def accepted(
    checkpoint: Path, wanted: RunHeader, plan: Plan, *, allow_changes: bool
) -> tuple[RunHeader, Changes]:
    """The header of a checkpoint that a run may go on from, and what is different since.

    Args:
        wanted: the header that the run would write itself.

    Raises:
        CheckpointError: it cannot be read, or is of another run.
    """
    header = read_run_header(checkpoint)
    changes = compare(header, wanted, plan)
    refusal = changes.refusal(checkpoint, allow_changes)
    if changes and refusal is not None:
        raise refusal
    return header, changes
