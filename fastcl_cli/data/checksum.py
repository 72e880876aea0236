"""A checksum of one stored image, cheap enough to be taken whenever the image is read.

Of n bytes as little-endian words of 8 (the last one filled up with zeros), word i counted from 1:

    x = w_i xor i·STRIDE;  x ^= x >> 32;  x *= FACTOR;  x ^= x >> 29;  checksum = n + Σ x mod 2^64

Each step can be undone, so a change within one word always changes the sum; any other goes unseen
with a probability of about 2^-64. It guards against disks and copies, not against malice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRIDE, FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_HALF, _LAST, _BYTE = np.uint64(32), np.uint64(29), np.uint64(8)


def checksum(data: bytes) -> int:
    """The checksum of some bytes; never 0, which stands for none."""
    words = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
    x = words ^ (np.arange(1, len(words) + 1, dtype=np.uint64) * STRIDE)
    x ^= x >> _HALF
    x *= FACTOR
    x ^= x >> _LAST
    return (int(x.sum(dtype=np.uint64)) + len(data)) % 2**64 or 1


def checksum_compiled(data: NDArray[np.uint8]) -> np.uint64:
    """The same, written to be compiled by numba: uint8 (n,), contiguous."""
    whole = data.size // 8
    words = data[: 8 * whole].view(np.uint64)
    total: np.uint64 = np.uint64(data.size)
    key = np.uint64(0)
    for i in range(whole):
        key += STRIDE
        x = words[i] ^ key
        x ^= x >> _HALF
        x *= FACTOR
        total += x ^ (x >> _LAST)
    if data.size > 8 * whole:
        x, shift = key + STRIDE, np.uint64(0)
        for i in range(8 * whole, data.size):
            x ^= np.uint64(data[i]) << shift
            shift += _BYTE
        x ^= x >> _HALF
        x *= FACTOR
        total += x ^ (x >> _LAST)
    return np.uint64(1) if total == np.uint64(0) else total
