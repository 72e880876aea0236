"""What can go wrong for a user, and the exit status that each kind ends with.

Every error carries one line that names the place, the value and what is allowed, and optionally
a second one, the remedy. The command line prints both and nothing else (no traceback without
``--debug``). Faults of fastcl itself are `assert`s and are never raised from here.
"""

from __future__ import annotations


class FastclError(Exception):
    """A fault that the user can mend: a wrong option, file, value or machine set-up.

    Args:
        message: one line: the place, the value, what is allowed.
        help: one line: what to do about it, or an empty string.
    """

    exit_code = 2

    def __init__(self, message: str, help: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.help = help


class UsageError(FastclError):
    """A command was called with options that do not fit each other or the files named."""


class ConfigError(FastclError):
    """A schedule or a setting is not valid."""


class DataError(FastclError):
    """A data set is missing, damaged, empty, or not what the run needs."""


class CheckpointError(FastclError):
    """A checkpoint is missing, damaged, or belongs to another model or run."""


class RunFolderError(FastclError):
    """A run's folder is missing, is damaged, or holds something else."""


class MissingLibraryError(FastclError):
    """A library of an optional extra, or a system library, is not installed."""


class RunFailedError(FastclError):
    """The run itself failed after it had started."""

    exit_code = 1


class BudgetError(FastclError):
    """A named schedule does not fit into the budget given."""

    exit_code = 3


class NumericalError(FastclError):
    """A loss or a gradient is not finite; the update was refused."""

    exit_code = 4


class StoppedError(FastclError):
    """Not a fault: someone asked for the end, and it is said without the word."""


class RequeueError(StoppedError):
    """The run was asked to stop (SIGTERM, SIGUSR1), wrote a checkpoint where there was something to
    save, and can be started again."""

    exit_code = 75


class InterruptError(StoppedError):
    """Interrupted (SIGINT); a run has written a checkpoint, as `RequeueError` has it."""

    exit_code = 130
