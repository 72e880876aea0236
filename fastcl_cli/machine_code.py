"""Loops over numbers, as machine code for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from numba import njit
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])


class _Kept(FunctionCache):  # type: ignore[misc]
    """numba's files of machine code. One that cannot be read is made anew, if that can be written;
    whatever a damaged file or a full disk raises, the code just compiled is there."""

    def load_overload(self, *which: Any) -> Any:
        try:
            return super().load_overload(*which)
        except Exception:
            return None

    def save_overload(self, *compiled: Any) -> None:
        try:
            super().save_overload(*compiled)
        except Exception:
            with suppress(Exception):
                self.flush()
                super().save_overload(*compiled)


def compiled(function: F) -> F:
    """``function``, compiled by numba as it is first called, and kept on disk for other processes
    where that can be written: beside its file, or below ``~/.cache``, until that file changes.

    It may call others that are compiled, of its own file only: another's changes go unnoticed.
    Nothing in it looks whether an index is within bounds.
    """
    made = njit(nogil=True, fastmath=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # no folder for it
        made._cache = _Kept(function)
    return made  # type: ignore[no-any-return]
