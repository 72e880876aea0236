"""Under pytest-xdist each worker keeps to one core: networks that each take all of them would wait
for each other."""

import os

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) is not None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
