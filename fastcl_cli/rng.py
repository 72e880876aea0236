"""Random draws keyed by what they are for.

Every draw of a run is a pure function of (seed, purpose, step or epoch): nothing carries a
generator's state from one step to the next, so a resumed run draws what an undisturbed one draws,
and measuring something aside moves nothing.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, index: int) -> int:
    """A 63-bit seed for one purpose at one step or epoch."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
