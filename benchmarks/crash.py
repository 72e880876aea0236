"""Runs killed at random moments, half of the time in the middle of writing a checkpoint, and told
to stop by each signal: all of them must go on and end as one that nobody disturbed, byte for byte.

tests/crashing.py does it; this is the long form. About 1 s of one core for each kill.

    nice python benchmarks/crash.py --kills 200 --terms 50 --record
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from common import record, table

from fastcl_cli.train.device import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from crashing import leave, torture

ROWS = {
    "random": "SIGKILL at a random moment",
    "write": "SIGKILL while a checkpoint is being written",
    "SIGTERM": "SIGTERM",
    "SIGUSR1": "SIGUSR1",
    "SIGINT": "SIGINT",
    "parts left": "… of which left a half-written file",
    "resumed": "… of which had resumed from a checkpoint",
    "runs ended": "runs that came to their end, each equal to the undisturbed one",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = torture(Path(name), asked.kills, asked.terms, asked.seed)
    body = table(["what", "how often"], [[text, str(result.get(k, 0))] for k, text in ROWS.items()])
    body += (
        f"\n\n{result['seconds']:,.0f} s in all; an undisturbed run takes "
        f"{result['undisturbed_s']:.1f} s here, the longest other {result['slowest_s']:.1f} s."
    )
    if asked.record:
        record("Killed and resumed", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    leave(main)
