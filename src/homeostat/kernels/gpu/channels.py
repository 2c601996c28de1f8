"""What is computed of channels between two passes over tensors, in float64.

Moments are a count, a mean and a spread, the sum of squared deviations. Coefficients, of the
statistics' dtype, are what turns x into y: ``y = (x - pivot) * scale + shift`` where the pivot is
the mean, rounded; scale = gamma * inverse and inverse = 1 / sqrt(variance + epsilon); shift is beta
less what the offset, the rest of the mean, adds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.gpu.tiles import channels_of, spread_out, sum_of

# The rows of what a forward pass keeps of the channels for the backward, (KEPT, channels).
PIVOT = tl.constexpr(0)
SCALE = tl.constexpr(1)
SHIFT = tl.constexpr(2)
INVERSE = tl.constexpr(3)
OFFSET = tl.constexpr(4)
KEPT = 5


@triton.jit
def tile_mean(x, count):
    """Return the mean of a tile, to the digits that its dtype has."""
    return sum_of(x) * (1.0 / count.to(x.dtype))


@triton.jit
def tile_moments(x, inside, count):
    """Return the mean and the spread of a tile, centred on its own mean in registers.

    What rounding left of the mean is taken off again (the corrected two-pass rule), so neither a
    large mean nor an outlier costs digits.
    """
    mean = tile_mean(x, count)
    centred = tl.where(inside, x - spread_out(mean), 0.0)
    rest = tile_mean(centred, count).to(tl.float64)
    spread = sum_of(centred * centred).to(tl.float64) - rest * rest * count.to(tl.float64)
    return mean.to(tl.float64) + rest, spread


@triton.jit
def joined_moments(mean, spread, count, pivot, sums, more):
    """Return mean, spread and count with more elements (Chan, Golub & LeVeque 1979).

    They come as the sum of their distances from a pivot; the squares of those are in the spread.
    Before the first of them the count is 0 and the mean anything near.
    """
    n, sums = more.to(tl.float64), sums.to(tl.float64)
    offset, share = sums * (1.0 / n), n / (count + n)
    away = pivot.to(tl.float64) - mean + offset
    spread += away * away * (count * share) - sums * offset
    return mean + away * share, spread, count + n


@triton.jit
def merge_partials(
    partials, block, channels, splits, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr
):  # fmt: skip
    """Return count, mean and spread of all splits, (3, splits, channels), in a fixed order.

    BLOCK_S splits are read at a time.
    """
    c, there = channels_of(block, channels, BLOCK_C)
    step = tl.cast(splits, tl.int64) * channels
    # Past the first level of the cache, which does not see what other programs have just written.
    pivot = tl.load(partials + step + c, mask=there, other=0.0, cache_modifier=".cg")
    count = tl.zeros((BLOCK_C,), tl.float64)
    sums = tl.zeros((BLOCK_C,), tl.float64)
    squares = tl.zeros((BLOCK_C,), tl.float64)
    for first in range(0, splits, BLOCK_S):
        at, inside = split_places(first, splits, c, channels, BLOCK_S)
        counts = tl.load(partials + at, mask=inside, other=0.0, cache_modifier=".cg")
        means = tl.load(partials + step + at, mask=inside, other=0.0, cache_modifier=".cg")
        spreads = tl.load(partials + 2 * step + at, mask=inside, other=0.0, cache_modifier=".cg")
        far = tl.where(inside, means - pivot[None, :], 0.0)
        count += tl.sum(counts, axis=0)
        sums += tl.sum(counts * far, axis=0)
        squares += tl.sum(spreads + counts * far * far, axis=0)
    count = tl.where(there, count, 1.0)
    offset = sums / count
    return count, pivot + offset, squares - sums * offset


@triton.jit
def split_places(first, splits, c, channels, BLOCK_S: tl.constexpr):
    """Return where BLOCK_S splits have the values of channels, and which of them there are."""
    s = first + tl.arange(0, BLOCK_S)[:, None]
    # A split may be far away from the next: there may be many channels.
    return s.to(tl.int64) * channels + c[None, :], (s < splits) & (c < channels)[None, :]


@triton.jit
def store_partial(
    partials, split, splits, block, channels, count, mean, spread, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Write the moments of one split."""
    c, there = channels_of(block, channels, BLOCK_C)
    step = tl.cast(splits, tl.int64) * channels
    at = partials + split.to(tl.int64) * channels + c
    tl.store(at, tl.zeros_like(mean) + count, mask=there)
    tl.store(at + step, mean, mask=there)
    tl.store(at + 2 * step, spread, mask=there)


@triton.jit
def coefficients(
    mean, variance, gamma, beta, block, channels, wide: tl.constexpr,
    EPSILON: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return pivot, scale, shift, inverse and offset of mean and variance, gamma and beta."""
    c, there = channels_of(block, channels, BLOCK_C)
    inverse = 1.0 / tl.sqrt(variance + EPSILON)
    pivot = mean.to(wide)
    offset = mean - pivot.to(tl.float64)
    scale = inverse
    if gamma is not None:
        scale = tl.load(gamma + c, mask=there, other=0.0).to(tl.float64) * inverse
    shift = -offset * scale
    if beta is not None:
        shift += tl.load(beta + c, mask=there, other=0.0).to(tl.float64)
    return pivot, scale.to(wide), shift.to(wide), inverse.to(wide), offset.to(wide)


@triton.jit
def store_kept(
    kept, block, channels, pivot, scale, shift, inverse, offset, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Write what the backward needs of the channels."""
    c, there = channels_of(block, channels, BLOCK_C)
    tl.store(kept + PIVOT * channels + c, pivot, mask=there)
    tl.store(kept + SCALE * channels + c, scale, mask=there)
    tl.store(kept + SHIFT * channels + c, shift, mask=there)
    tl.store(kept + INVERSE * channels + c, inverse, mask=there)
    tl.store(kept + OFFSET * channels + c, offset, mask=there)


@triton.jit
def load_kept(kept, row: tl.constexpr, block, channels, BLOCK_C: tl.constexpr):
    """Return one row of what was kept."""
    c, there = channels_of(block, channels, BLOCK_C)
    return tl.load(kept + row * channels + c, mask=there, other=0.0)


@triton.jit
def store_pair(pointer, block, channels, first, second, BLOCK_C: tl.constexpr):
    """Write two rows of channels, in the array's dtype."""
    c, there = channels_of(block, channels, BLOCK_C)
    kind = pointer.dtype.element_ty
    tl.store(pointer + c, first.to(kind), mask=there)
    tl.store(pointer + channels + c, second.to(kind), mask=there)


@triton.jit
def load_pair(pointer, block, channels, BLOCK_C: tl.constexpr):
    """Return two rows of channels, in float64."""
    c, there = channels_of(block, channels, BLOCK_C)
    first = tl.load(pointer + c, mask=there, other=0.0)
    second = tl.load(pointer + channels + c, mask=there, other=0.0)
    return first.to(tl.float64), second.to(tl.float64)


@triton.jit
def gradient_coefficients(
    kept, dgamma, dbeta, count, block, channels, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Return what dx has besides scale * g: by_x and constant of by_x * (x - pivot) + constant."""
    wide = kept.dtype.element_ty
    scale = load_kept(kept, SCALE, block, channels, BLOCK_C).to(tl.float64)
    inverse = load_kept(kept, INVERSE, block, channels, BLOCK_C).to(tl.float64)
    offset = load_kept(kept, OFFSET, block, channels, BLOCK_C).to(tl.float64)
    # One division for all channels.
    share = 1.0 / count
    by_x = -scale * inverse * dgamma * share
    constant = -scale * dbeta * share - by_x * offset
    return by_x.to(wide), constant.to(wide)
