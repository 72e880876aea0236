"""Python threads for compiled work, which lets go of the interpreter's lock."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache


def kept_threads(purpose: str, count: int) -> ThreadPoolExecutor:
    """``count`` threads at most, which this process keeps for one purpose."""
    return _kept(purpose, count, os.getpid())


@lru_cache(maxsize=4)
def _kept(purpose: str, count: int, process: int) -> ThreadPoolExecutor:
    """Of a ``process``, for a fork has none of its parent's threads."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"{purpose} {process}")
