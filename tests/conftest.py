"""How the tests share two cores or more.

Under pytest-xdist each worker keeps to one core: networks that each take all of them would wait for
each other. The longest files are begun first, so that the workers end together.
"""

import os

import pytest

LONGEST = (
    "test_distributed",
    "test_shard",
    "test_lost_process",
    "test_run",
    "test_schedule_fuzz",
    "test_bench",
    "test_auto",
)

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))
