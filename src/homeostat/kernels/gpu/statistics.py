"""Kernels for a batch's mean and variance: splits of the elements first, then all splits together.

Each element of a tile adds up its own distances and their squares along a chain of tiles, from a
pivot that is the mean of what came before; only then are they summed by channel, in registers of
other threads, and the chain's moments merged in float64. So the loop over tiles waits for nothing
but memory. Chains and splits are merged in a fixed order: the same bits on every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.gpu.channels import (
    coefficients,
    joined_moments,
    merge_partials,
    store_kept,
    store_pair,
    store_partial,
    tile_mean,
)
from homeostat.kernels.gpu.moving import move
from homeostat.kernels.gpu.tiles import (
    AT_ONCE,
    CHAIN,
    count_of,
    load,
    place,
    share_of,
    spread_out,
    sum_of,
    tiles_of,
)


@triton.jit
def split_moments(
    x, partials, outer, channel_units, inner_units, splits,
    CHANNEL_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write count, mean and spread of one split of a block of channels.

    Grid: splits * blocks of channels. Partials are float64, (3, splits, channels).
    """
    channels, inner = channel_units * CHANNEL_UNIT, inner_units * INNER_UNIT
    split, block = share_of(channels, BLOCK_C)
    tiles = tiles_of(outer, inner, BLOCK_O, BLOCK_I)
    start, within, inside = place(split, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I)
    # The first tile is read twice: distances from a mean that is near cost no digits.
    pivot = tile_mean(
        load(x, start, within, inside), count_of(split, outer, inner, BLOCK_O, BLOCK_I)
    )
    wide: tl.constexpr = pivot.dtype
    mean = pivot.to(tl.float64)
    spread = tl.zeros((BLOCK_C,), tl.float64)
    count = tl.zeros((), tl.float64)
    for link in range(split, tiles, splits * CHAIN):
        far = tl.zeros((BLOCK_O, BLOCK_C, BLOCK_I), wide)
        squares = tl.zeros((BLOCK_O, BLOCK_C, BLOCK_I), wide)
        n = tl.zeros((), tl.int64)
        end = tl.minimum(link + splits * CHAIN, tiles)
        for tile in tl.range(link, end, splits, loop_unroll_factor=AT_ONCE):
            start, within, inside = place(
                tile, block, outer, channels, inner, BLOCK_O, BLOCK_C, BLOCK_I
            )
            distance = tl.where(inside, load(x, start, within, inside) - spread_out(pivot), 0.0)
            far += distance
            squares = tl.fma(distance, distance, squares)
            n += count_of(tile, outer, inner, BLOCK_O, BLOCK_I)
        spread += sum_of(squares).to(tl.float64)
        mean, spread, count = joined_moments(mean, spread, count, pivot, sum_of(far), n)
        pivot = mean.to(wide)
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
