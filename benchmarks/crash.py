"""Runs killed at random moments, half of the time in the middle of writing a checkpoint, told to
stop by each signal, and on a disk that becomes full: all of them must go on and end as one that
nobody disturbed, byte for byte.

tests/crashing.py does it; this is the long form. 1 to 2 s of one core for each.

    nice python benchmarks/crash.py --kills 200 --terms 50 --fills 60 --record
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import record, table

from fastcl_cli.train.device import choose_device

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from crashing import everything, leave

ROWS = {
    "random": "SIGKILL at a random moment",
    "write": "SIGKILL while a checkpoint is being written",
    "SIGTERM": "SIGTERM",
    "SIGUSR1": "SIGUSR1",
    "SIGINT": "SIGINT",
    "parts left": "… of which left a half-written file",
    "resumed": "runs that resumed from a checkpoint",
    "full": "a disk that became full",
    "full, in a checkpoint": "… of which in the middle of a checkpoint",
    "runs ended": "runs that came to their end, each equal to the undisturbed one",
    "runs ended, disk": "… the same, of those on the small disk",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--fills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    result = everything(asked.kills, asked.terms, asked.fills, asked.seed)
    rows = [[text, str(result[kind])] for kind, text in ROWS.items() if kind in result]
    body = table(["what", "how often"], rows)
    body += (
        f"\n\n{result['seconds']:,.0f} s in all; an undisturbed run takes "
        f"{result['undisturbed_s']:.1f} s here."
    )
    if asked.record:
        record("Killed and resumed", body, choose_device("float32"))
    else:
        print(body)


if __name__ == "__main__":
    leave(main)
