"""Kernels for a batch's mean and variance: splits of the elements first, then all splits together.

Every split is merged tile by tile, and the splits in a fixed order: the same bits on every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.gpu.channels import (
    coefficients,
    merge_partials,
    merged_moments,
    store_kept,
    store_pair,
    store_partial,
    tile_moments,
)
from homeostat.kernels.gpu.moving import move
from homeostat.kernels.gpu.tiles import count_of, load, place, share_of, tiles_of


@triton.jit
def split_moments(
    x, partials, outer, channel_units, inner_units, splits, tiles_per_split,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write count, mean and spread of one split of a block of channels.

    Grid: splits * blocks of channels. Partials are float64, (3, splits, channels).
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    tiles = tiles_of(outer, inner, BLOCK_O, BLOCK_I)
    first = split * tiles_per_split
    count = tl.zeros((), tl.float64)
    pivot = tl.zeros((BLOCK_C,), tl.float64)
    sums = tl.zeros((BLOCK_C,), tl.float64)
    squares = tl.zeros((BLOCK_C,), tl.float64)
    for tile in range(first, tl.minimum(first + tiles_per_split, tiles)):
        start, within, inside = place(
            tile, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I
        )
        its_count = count_of(tile, outer, inner, BLOCK_O, BLOCK_I)
        mean, spread = tile_moments(load(x, start, within, inside), inside, its_count)
        # Distances from the first tile's mean, not from 0: they cost no digits in float64.
        pivot = tl.where(tile == first, mean, pivot)
        n, far = its_count.to(tl.float64), mean - pivot
        count += n
        sums += n * far
        squares += spread + n * far * far
    mean, spread = merged_moments(pivot, sums, squares, count)
    store_partial(partials, split, splits, block, channels, count, mean, spread, BLOCK_C)


@triton.jit
def merge_moments(
    partials, moments, gamma, beta, kept, moving_mean, moving_variance, skipped, updates,
    channels, splits,
    EPSILON: tl.constexpr, MOMENTUM: tl.constexpr, SAMPLE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write mean and variance of all splits, and with somewhere to keep them the coefficients.

    Statistics that are given move.

    Grid: blocks of channels.
    """
    block = tl.program_id(0)
    count, mean, spread = merge_partials(partials, block, channels, splits, BLOCK_C, BLOCK_S)
    variance = spread / count
    store_pair(moments, block, channels, mean, variance, BLOCK_C)
    if kept is not None:
        pivot, scale, shift, inverse, offset = coefficients(
            mean, variance, gamma, beta, block, channels, kept.dtype.element_ty, EPSILON, BLOCK_C
        )
        store_kept(kept, block, channels, pivot, scale, shift, inverse, offset, BLOCK_C)
    if moving_mean is not None:
        move(
            moving_mean, moving_variance, skipped, updates, block, channels,
            mean, variance, count, MOMENTUM, SAMPLE, BLOCK_C,
        )  # fmt: skip
