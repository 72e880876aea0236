"""The pixels of views on the CPU: loops over rows, compiled, in which nothing is stored but the
result.

A view is R · image · Cᵀ with a linear colour (see `resample` and `colour`), and a row of R or C has
few entries. So each row of a view is a weighted sum of a few rows of the image, whose columns are
then resized, blurred, reduced, coloured, clipped and solarized while they are in the processor's
nearest cache. Blur and reduction of the rows are in the weights already.

Compiling takes some ten seconds, once on a machine. All that is compiled together has to be in one
file (see `machine_code`).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastcl_cli.machine_code import compiled

Floats: TypeAlias = NDArray[np.float32]
Band: TypeAlias = tuple[NDArray[np.int64], Floats]
"""A matrix with few entries in each row: int64 (rows,), the first column that counts, and float32
(rows, W), the entries of it and of those after it."""
_REACH = 5
"""Of the blur, in standard deviations: what is farther away weighs less than 1e-6."""
_1, _2, _3, _4, _5, _6 = (np.uint64(number) for number in range(1, 7))


@compiled
def resize_band(start: int, length: int, flip: bool | np.bool_, side: int, cubic: bool) -> Band:
    """`resample.resize_matrices`, of one axis of a view."""
    scale = length / side
    wide = max(scale, 1.0)
    reach = 2.0 * wide if cubic else wide
    width = min(math.ceil(2 * reach), length)
    first = np.empty(side, np.int64)
    weights = np.empty((side, width), np.float32)
    for i in range(side):
        place = side - 1 - i if flip else i
        centre = scale * (place + 0.5)
        begin = min(max(int(centre - reach + 0.5), 0), length - width)
        first[i] = start + begin
        total = 0.0
        for t in range(width):
            x = abs(begin + t + 0.5 - centre) / wide
            if not cubic:
                weight = max(1.0 - x, 0.0)
            elif x < 1.0:
                weight = (1.5 * x - 2.5) * x * x + 1.0
            elif x < 2.0:
                weight = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
            else:
                weight = 0.0
            weights[i, t] = weight
            total += weight
        for t in range(width):
            weights[i, t] /= total
    return first, weights


@compiled
def blur_half(sigma: float, most: int) -> Floats:
    """`resample.blur_weights` from the middle on, as far as they count, and no more than ``most``
    beyond it."""
    reach = min(most, max(1, math.ceil(_REACH * sigma)))
    half = np.empty(reach + 1, np.float32)
    total = 0.0
    for k in range(reach + 1):
        half[k] = math.exp(-0.5 * (k / sigma) ** 2)
        total += half[k] if k == 0 else 2 * half[k]
    for k in range(reach + 1):
        half[k] /= total
    return half


@compiled
def reflect(place: int, side: int) -> int:
    """The pixel that stands for one beyond the border, whose edge is not repeated."""
    if side == 1:
        return 0
    period = 2 * (side - 1)
    place %= period
    return min(place, period - place)


@compiled
def compose(
    outer: Band,
    inner: Band,
) -> Band:
    """The product of two banded matrices; no row of ``inner`` begins before the row above it."""
    outer_first, outer_weights = outer
    inner_first, inner_weights = inner
    rows, reach = outer_weights.shape
    width = inner_weights.shape[1]
    first = np.empty(rows, np.int64)
    widest = 1
    for i in range(rows):
        first[i] = inner_first[outer_first[i]]
        widest = max(widest, inner_first[outer_first[i] + reach - 1] - first[i] + width)
    end = inner_first[len(inner_first) - 1] + width
    weights = np.zeros((rows, widest), np.float32)
    for i in range(rows):
        first[i] = min(first[i], end - widest)
        for j in range(reach):
            row = outer_first[i] + j
            shift = inner_first[row] - first[i]
            for t in range(width):
                weights[i, shift + t] += outer_weights[i, j] * inner_weights[row, t]
    return first, weights


@compiled
def blur_band(half: Floats, side: int) -> Band:
    """`resample.blur_matrices`, of one view."""
    reach = len(half) - 1
    width = min(2 * reach + 1, side)
    first = np.empty(side, np.int64)
    weights = np.zeros((side, width), np.float32)
    for i in range(side):
        first[i] = min(max(i - reach, 0), side - width)
        for k in range(-reach, reach + 1):
            weights[i, reflect(i + k, side) - first[i]] += half[abs(k)]
    return first, weights


@compiled
def weigh_rows(
    image: NDArray[np.uint8],
    first: int,
    weights: Floats,
    begin: int,
    total: Floats,
) -> None:
    """The weighted sum of rows ``first``.. of (S, 3S), of the bytes from ``begin`` on, into
    ``total``, float32. Four rows at a time: the sum is read and written that much less often."""
    size, count = len(total), len(weights)
    total[:] = 0.0
    whole = count // 4 * 4
    for t in range(0, whole, 4):
        a = image[first + t, begin : begin + size]
        b = image[first + t + 1, begin : begin + size]
        c = image[first + t + 2, begin : begin + size]
        d = image[first + t + 3, begin : begin + size]
        of_a, of_b, of_c, of_d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for x in range(size):
            total[x] += (
                of_a * np.float32(a[x]) + of_b * np.float32(b[x])
                + of_c * np.float32(c[x]) + of_d * np.float32(d[x])
            )  # fmt: skip
    for t in range(whole, count):
        a, of_a = image[first + t, begin : begin + size], weights[t]
        for x in range(size):
            total[x] += of_a * np.float32(a[x])


@compiled
def weigh_columns(
    pixels: Floats,
    starts: NDArray[np.uint64],
    weights: Floats,
    row: Floats,
    pad: int,
) -> None:
    """Resize one row of RGB pixels, float32 (3w,), into planes.

    ``starts``, of the values that count first, are unsigned: a signed place might be counted from
    the end, which is looked at for every value.
    """
    side, width = weights.shape
    whole = width // 2 * 2
    reds, greens, blues = (
        row[0, pad : pad + side], row[1, pad : pad + side], row[2, pad : pad + side],
    )  # fmt: skip
    for i in range(side):
        at = starts[i]
        red = green = blue = np.float32(0.0)
        for t in range(0, whole, 2):
            a, b = weights[i, t], weights[i, t + 1]
            red += a * pixels[at] + b * pixels[at + _3]
            green += a * pixels[at + _1] + b * pixels[at + _4]
            blue += a * pixels[at + _2] + b * pixels[at + _5]
            at += _6
        if whole < width:
            a = weights[i, whole]
            red += a * pixels[at]
            green += a * pixels[at + _1]
            blue += a * pixels[at + _2]
        reds[i], greens[i], blues[i] = red, green, blue


@compiled
def blur_row(
    row: Floats,
    half: Floats,
    side: int,
    blurred: Floats,
    pad: int,
) -> None:
    """Blur planes of ``side`` along their rows; what is beyond their borders is filled in."""
    reach = len(half) - 1
    for channel in range(3):
        plane, result = row[channel], blurred[channel, pad : pad + side]
        for k in range(1, reach + 1):
            plane[pad - k] = plane[pad + reflect(-k, side)]
            plane[pad + side - 1 + k] = plane[pad + reflect(side - 1 + k, side)]
        middle = plane[pad : pad + side]
        for x in range(side):
            result[x] = half[0] * middle[x]
        for k in range(1, reach + 1):
            weight = half[k]
            before = plane[pad - k : pad - k + side]
            after = plane[pad + k : pad + k + side]
            for x in range(side):
                result[x] += weight * (before[x] + after[x])


@compiled
def reduce_row(
    row: Floats,
    band: Band,
    reduced: Floats,
    pad: int,
) -> None:
    """Planes times a banded matrix."""
    first, weights = band
    count, width = weights.shape
    for channel in range(3):
        for i in range(count):
            begin = pad + first[i]
            plane, of = row[channel, begin : begin + width], weights[i]
            total = np.float32(0.0)
            for t in range(width):
                total += of[t] * plane[t]
            reduced[channel, pad + i] = total


@compiled
def colour_row(
    row: Floats,
    linear: Floats,
    bias: Floats,
    low: Floats,
    high: Floats,
    solarize: bool,
    out: Floats,
    number: int,
    pad: int,
) -> None:
    """linear · pixel + bias, clipped and perhaps solarized, into row ``number`` of (3, s, s)."""
    side = out.shape[2]
    red = row[0, pad : pad + side]
    green = row[1, pad : pad + side]
    blue = row[2, pad : pad + side]
    for channel in range(3):
        of_red, of_green, of_blue = linear[channel, 0], linear[channel, 1], linear[channel, 2]
        add, least, most = bias[channel], low[channel], high[channel]
        result = out[channel, number]
        if solarize:
            for x in range(side):
                value = of_red * red[x] + of_green * green[x] + of_blue * blue[x] + add
                value = min(max(value, least), most)
                result[x] = min(value, least + most - value)
        else:
            for x in range(side):
                value = of_red * red[x] + of_green * green[x] + of_blue * blue[x] + add
                result[x] = min(max(value, least), most)


@compiled
def make_views(
    images: NDArray[np.uint8],
    copies: int,
    rows: tuple[int, int],
    box: NDArray[np.int64],
    flip: NDArray[np.bool_],
    linear: Floats,
    of_mean: Floats,
    sigma: Floats,
    solarize: NDArray[np.bool_],
    cubic: bool,
    side: int,
    reduction: Band,
    space: tuple[Floats, Floats, Floats],
    pad: int,
    out: Floats,
) -> None:
    """Views ``rows[0]`` to ``rows[1]`` of m, into ``out``, float32 (m, 3, s, s).

    Args:
        images: uint8 (N, S, 3S).
        copies: m / N.
        box, flip, linear, of_mean, solarize: as in `pixels.ViewPart`.
        sigma: float32 (m,), of the blur; 0 is none.
        reduction: D; without any row where there is none.
        space: the normalised colours of 0, of black and of white, float32 (3,) each.
        pad: the blur's greatest reach.
    """
    offset, low, high = space
    final = out.shape[3]
    reduce = len(reduction[0]) > 0
    # Rows of a view as planes, red, green and blue, which begin at ``pad``.
    resized = np.empty((3, side + 2 * pad), np.float32)
    blurred = np.empty((3, side + 2 * pad), np.float32)
    reduced = np.empty((3, final + 2 * pad), np.float32)
    starts = np.empty(side, np.uint64)
    bias = np.empty(3, np.float32)
    upright = np.bool_(False)  # not a literal, for which `resize_band` would be compiled again
    for number in range(rows[0], rows[1]):
        image = images[number // copies]
        top, left, height, width = box[number, 0], box[number, 1], box[number, 2], box[number, 3]
        columns = resize_band(left, width, flip[number], side, cubic)
        vertical = resize_band(top, height, upright, side, cubic)
        for i in range(side):
            starts[i] = 3 * (columns[0][i] - left)
        total = np.empty(3 * width, np.float32)
        mean = mean_of(image, vertical, columns, left, total)
        for channel in range(3):
            bias[channel] = offset[channel]
            for other in range(3):
                bias[channel] += of_mean[number, channel, other] * mean[other]
        soft = sigma[number] > 0
        half = blur_half(sigma[number] if soft else np.float32(1.0), pad)
        if soft:
            vertical = compose(blur_band(half, side), vertical)
        if reduce:
            vertical = compose(reduction, vertical)
        first, weights = vertical
        for i in range(final):
            weigh_rows(image, first[i], weights[i], 3 * left, total)
            weigh_columns(total, starts, columns[1], resized, pad)
            row = resized
            if soft:
                blur_row(row, half, side, blurred, pad)
                row = blurred
            if reduce:
                reduce_row(row, reduction, reduced, pad)
                row = reduced
            colour_row(row, linear[number], bias, low, high, solarize[number], out[number], i, pad)


@compiled
def mean_of(
    image: NDArray[np.uint8],
    rows: Band,
    columns: Band,
    left: int,
    total: Floats,
) -> Floats:
    """The mean pixel of a resized view, (3,), without making it; ``total`` is (3w,) of scratch."""
    begin, shares = band_means(rows)
    weigh_rows(image, begin, shares, 3 * left, total)
    begin, shares = band_means(columns)
    mean = np.zeros(3, np.float32)
    for x in range(len(shares)):
        for channel in range(3):
            mean[channel] += shares[x] * total[3 * (begin - left + x) + channel]
    return mean


@compiled
def band_means(
    band: Band,
) -> tuple[int, Floats]:
    """The mean of a band's rows: its first column that is not 0, and those from it on."""
    first, weights = band
    side, width = weights.shape
    begin, end = first[0], first[side - 1]
    if begin > end:  # the rows of a mirrored view run backwards
        begin, end = end, begin
    means = np.zeros(end - begin + width, np.float32)
    for i in range(side):
        for t in range(width):
            means[first[i] - begin + t] += weights[i, t] / side
    return begin, means
